"""The networks of a text-to-image pipeline from their configurations and tensors: the denoiser's,
the codec, the text encoders'.

Each is built without initial values, since every value comes from the tensors, and only as large as
these are. Tensors are asked for when their configuration is known to be right, and let go when they
are in their network, so that no more than one network is held twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks import AutoencoderCodec, Codec, DenoisingNetwork, build
from fewstep.networks.diffusers import DeepCompressionCodec, FramedCodec
from fewstep.networks.families import DiffusersTransformer
from fewstep.networks.kinds.bounds import Undrawn, at_most
from fewstep.networks.kinds.build import NOT_BUILT
from fewstep.networks.kinds.network_files import load_strictly, room_for
from fewstep.networks.kinds.registry import kind_named
from fewstep.zoo.diffusers_configurations import (
    LARGEST,
    MOST,
    Expected,
    arguments_in,
    check_at_most,
    check_plain,
    shape_of,
    sides_of,
)
from fewstep.zoo.diffusers_schedulers import about
from fewstep.zoo.diffusers_weights import CORRECT, current_name
from fewstep.zoo.pipelines.pipeline_kinds import Codecs, PipelineKind

Made = TypeVar("Made", bound=nn.Module)

Tensors = Callable[[], Mapping[str, Tensor]]

NO_WEIGHTS = ("text_model.embeddings.position_ids", "embeddings.position_ids")
"""Tensors of older text encoders that are no weights."""

_UNET = Expected(
    whole={
        "in_channels": (1, 256),
        "out_channels": (1, 256),
        "downsample_padding": (0, 16),
        "norm_num_groups": (1, MOST),
        "conv_in_kernel": (1, 31),
        "conv_out_kernel": (1, 31),
        "time_embedding_dim": (1, MOST),
        "time_cond_proj_dim": (4, MOST),
        "projection_class_embeddings_input_dim": (1, MOST),
        "addition_time_embed_dim": (1, MOST),
        "addition_embed_type_num_heads": (1, MOST),
        "num_class_embeds": (1, MOST),
        "encoder_hid_dim": (1, MOST),
    },
    wholes={"block_out_channels": (1, MOST)},
    numbers={
        "layers_per_block": (1, 64),
        "attention_head_dim": (1, MOST),
        "num_attention_heads": (1, MOST),
        "cross_attention_dim": (1, MOST),
        "transformer_layers_per_block": (0, 64),
        "reverse_transformer_layers_per_block": (0, 64),
    },
    reals={
        "freq_shift": (-1e6, 1e6),
        "dropout": (0.0, 1.0),
        "norm_eps": (0.0, 1.0),
        "mid_block_scale_factor": (1e-6, 1e6),
        "resnet_out_scale_factor": (1e-6, 1e6),
    },
    flags=(
        "center_input_sample",
        "flip_sin_to_cos",
        "dual_cross_attention",
        "use_linear_projection",
        "upcast_attention",
        "resnet_skip_time_act",
        "class_embeddings_concat",
        "only_cross_attention",
        "mid_block_only_cross_attention",
    ),
    texts=(
        "mid_block_type",
        "act_fn",
        "resnet_time_scale_shift",
        "class_embed_type",
        "addition_embed_type",
        "time_embedding_type",
        "time_embedding_act_fn",
        "timestep_post_act",
        "attention_type",
        "encoder_hid_dim_type",
        "cross_attention_norm",
    ),
    words=("down_block_types", "up_block_types"),
    nullable=frozenset(
        (
            *("time_embedding_dim", "time_cond_proj_dim", "projection_class_embeddings_input_dim"),
            *("addition_time_embed_dim", "num_class_embeds", "encoder_hid_dim", "num_attention_heads"),
            *("reverse_transformer_layers_per_block", "upcast_attention", "mid_block_only_cross_attention"),
            *("mid_block_type", "class_embed_type", "addition_embed_type", "time_embedding_act_fn"),
            *("timestep_post_act", "encoder_hid_dim_type", "cross_attention_norm"),
        )
    ),
)
_VAE = Expected(
    whole={
        "in_channels": (1, 64),
        "out_channels": (1, 64),
        "latent_channels": (1, 256),
        "layers_per_block": (1, 64),
        "norm_num_groups": (1, MOST),
        "sample_size": (1, 2**16),
    },
    wholes={"block_out_channels": (1, MOST)},
    reals={"scaling_factor": (1e-6, 1e6), "shift_factor": (-1e6, 1e6)},
    factors={"latents_mean": (-1e6, 1e6), "latents_std": (1e-6, 1e6)},
    flags=("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"),
    texts=("act_fn",),
    words=("down_block_types", "up_block_types"),
    nullable=frozenset(("shift_factor", "latents_mean", "latents_std")),
)
_TEXT = Expected(
    whole={
        "vocab_size": (1, MOST),
        "hidden_size": (1, MOST),
        "intermediate_size": (1, MOST),
        "projection_dim": (1, MOST),
        "num_hidden_layers": (1, 1000),
        "num_attention_heads": (1, MOST),
        "max_position_embeddings": (1, MOST),
        "pad_token_id": (0, MOST),
        "bos_token_id": (0, MOST),
        "eos_token_id": (0, MOST),
    },
    reals={"layer_norm_eps": (0.0, 1.0)},
    texts=("hidden_act",),
    nullable=frozenset(("pad_token_id", "bos_token_id", "eos_token_id")),
)


def denoising_network(
    kind: PipelineKind, config: Mapping[str, Any], tensors: Tensors, where: object, source: str, side: int | None
) -> tuple[DenoisingNetwork, tuple[int, ...]]:
    """The denoiser's network and the shape of one sample, with a ``side`` unless that is None.
    ``where`` is the configuration and ``source`` the tensors, for sentences.

    Raises ``UserError`` naming what is wrong.
    """
    arguments, shape = _arguments_and_shape(kind, config, where, side)
    named = {f"{kind.network}.{current_name(name)}": value for name, value in tensors().items()}
    network = filled(lambda: build({"kind": kind.kind, "config": arguments}), named, where, source)
    assert isinstance(network, DenoisingNetwork)
    return network, shape


def refill(network: DenoisingNetwork, tensors: Mapping[str, Tensor], source: str) -> None:
    """Puts tensors under diffusers' names into a network that is a part of a pipeline, in place.

    Raises ``UserError`` naming ``source`` where they are not the network's.
    """
    load_strictly(network, {f"{network.part}.{current_name(name)}": value for name, value in tensors.items()}, source)


def denoising_sketch(
    kind: PipelineKind, config: Mapping[str, Any], where: object, side: int | None
) -> tuple[DenoisingNetwork, tuple[int, ...]]:
    """The same on the meta device, without tensors."""
    arguments, shape = _arguments_and_shape(kind, config, where, side)
    with torch.device("meta"):
        network = _made(lambda: build({"kind": kind.kind, "config": arguments}), where)
    assert isinstance(network, DenoisingNetwork)
    return network, shape


def tokens_in(network: DenoisingNetwork, shape: tuple[int, ...]) -> int | None:
    """How many tokens a sample of that shape has for a transformer; None for another network."""
    if not isinstance(network, DiffusersTransformer):
        return None
    return network.tokens_in(network.transformer.config, shape)


def _arguments_and_shape(
    kind: PipelineKind, config: Mapping[str, Any], where: object, side: int | None
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The checked arguments of the network's class, and the shape of one sample."""
    with about(where):
        arguments = arguments_in(config)
        return _OF_PART[kind.network](kind, arguments, side)


def _of_unet(kind: PipelineKind, arguments: dict[str, Any], side: int | None) -> tuple[dict[str, Any], tuple[int, ...]]:
    _UNET.check(arguments)
    arguments = arguments if side is None else {**arguments, "sample_size": side}
    return arguments, shape_of(arguments, 4)


def _of_transformer(
    kind: PipelineKind, arguments: dict[str, Any], side: int | None
) -> tuple[dict[str, Any], tuple[int, ...]]:
    check_plain(arguments)
    family = kind_named(kind.kind).cls
    assert issubclass(family, DiffusersTransformer)
    for name, most in family.tables.items():
        check_at_most(arguments.get(name), name, most)
    shape, patch = family.shape_in(arguments, side), family.patch_in(arguments)
    if any(type(size) is not int or not 1 <= size <= LARGEST for size in (*shape, patch)) or shape[1] % patch:
        raise UserError(
            f"makes samples of shape {shape} in patches of {patch}, which must be whole numbers up to {LARGEST}, and "
            "sides that patches divide"
        )
    return arguments, shape


_OF_PART: Mapping[str, Callable[..., tuple[dict[str, Any], tuple[int, ...]]]] = {
    "unet": _of_unet,
    "transformer": _of_transformer,
}


def codec(kind: Codecs, config: Mapping[str, Any], tensors: Tensors, where: object, source: str) -> Codec:
    """The codec of that class; as ``denoising_network``."""
    make = _maker_of_codec(kind, config, where)
    named = {f"vae.{current_name(name)}": value for name, value in tensors().items()}
    found = filled(make, named, where, source)
    # What is built without initial values has not heard that it is frozen.
    return found.requires_grad_(False)


def codec_sketch(kind: Codecs, config: Mapping[str, Any], where: object) -> Codec:
    """The same on the meta device, without tensors."""
    make = _maker_of_codec(kind, config, where)
    with torch.device("meta"):
        return _made(make, where)


def _maker_of_codec(kind: Codecs, config: Mapping[str, Any], where: object) -> Callable[[], Codec]:
    """What makes it of the checked arguments of its class."""
    with about(where):
        arguments = arguments_in(config)
        if kind != "AutoencoderKL":
            check_plain(arguments)
            return functools.partial(_OTHER_CODECS[kind], arguments)
        size = arguments.get("sample_size")
        if isinstance(size, list):
            # It says how large tiles are, which the codec says itself.
            arguments["sample_size"] = max(sides_of(arguments))
        _VAE.check(arguments)
        return functools.partial(AutoencoderCodec, arguments)


_OTHER_CODECS: Mapping[str, Callable[[Mapping[str, Any]], Codec]] = {
    "AutoencoderDC": DeepCompressionCodec,
    "AutoencoderKLQwenImage": FramedCodec,
}


def text_model(projects: bool, config: Mapping[str, Any], tensors: Tensors, where: object, source: str) -> nn.Module:
    """A CLIP text encoder, with its projection of the whole text or without; as
    ``denoising_network``.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    except ImportError as error:
        raise UserError(f"{where}: needs transformers: pip install 'fewstep[diffusers]'.") from error
    with about(where):
        arguments = text_values(config)
        if config.get("use_attention_mask"):
            raise UserError("has true for use_attention_mask, which is not read here (it must be false)")
    cls: Any = CLIPTextModelWithProjection if projects else CLIPTextModel
    # Version 4 of transformers puts a name before the weights' that version 5 leaves out.
    found = tensors()
    bare = {_bare(name): value for name, value in found.items()}
    if len(bare) != len(found):
        raise UserError(f"{source}: has a tensor twice, with and without 'text_model.' before its name; {CORRECT}.")
    model: nn.Module = filled(lambda: cls(CLIPTextConfig(**arguments)), bare, where, source, _bare)
    return model.requires_grad_(False).eval()


def text_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checked values of a CLIP text encoder's configuration."""
    arguments = _TEXT.taken(config)
    check_heads(arguments, 512, 8)
    return arguments


def check_heads(arguments: Mapping[str, Any], width: int, heads: int) -> None:
    """Raises ``UserError`` where heads of attention cannot share a width; ``width`` and ``heads``:
    as they are unless said.
    """
    heads, hidden = arguments.get("num_attention_heads", heads), arguments.get("hidden_size", width)
    if hidden % heads:
        raise UserError(f"has {hidden} for hidden_size, which {heads} num_attention_heads cannot share")


def filled(
    make: Callable[[], Made],
    tensors: Mapping[str, Tensor],
    where: object,
    source: str,
    called: Callable[[str], str] = str,
) -> Made:
    """What is made, with the tensors by the names that ``called`` gives to its own."""
    with torch.random.fork_rng(devices=[]), Undrawn(), at_most(room_for(tensors), "the file"):
        made = _made(make, where)
    names = {called(name): name for name in made.state_dict()}
    load_strictly(made, {names.get(name, name): value for name, value in tensors.items()}, source)
    return made


def _made(make: Callable[[], Made], where: object) -> Made:
    """What is made of a configuration. Raises ``UserError`` naming it where nothing can be made."""
    try:
        return make()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except NOT_BUILT as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}: is no network that can be built ({reason}); correct its values.") from error


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")
