"""diffusers' image models: a ``UNet2DModel`` and the scheduler that says what its output means.

Which files are read says ``diffusers_folders``; what a scheduler means says
``diffusers_schedulers``. Weights of any floating type are read in float32. Only safetensors are
read, no pickled weights.

A network with one embedding more than there are classes was trained with the label of the last
embedding for "no class". That is said by ``classes``, since nothing in the folder says it; the
label -1 of ours ("no class") is then the last embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.denoisers import NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.kinds.store import load_strictly
from fewstep.zoo.diffusers_folders import Pipeline, find_pipeline
from fewstep.zoo.diffusers_schedulers import about, ignored_by, meaning_of
from fewstep.zoo.diffusers_weights import read_json, read_weights
from fewstep.zoo.nvidia.machine import shown
from fewstep.zoo.nvidia.modules import flag, real, whole, wholes, word, words

# Attention's layers had other names in the first releases of diffusers.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LARGEST = 4096
_MOST = 1_000_000
_WHOLE = {
    "in_channels": (1, 64),
    "out_channels": (1, 64),
    "layers_per_block": (1, 64),
    "norm_num_groups": (1, _MOST),
    "downsample_padding": (0, 16),
    "attention_head_dim": (1, _MOST),
    "attn_norm_num_groups": (1, _MOST),
    "time_embedding_dim": (1, _MOST),
    "num_class_embeds": (1, _MOST),
    "num_train_timesteps": (1, _MOST),
}
_REALS = {
    "freq_shift": (-1e6, 1e6),
    "dropout": (0.0, 1.0),
    "norm_eps": (0.0, 1.0),
    "mid_block_scale_factor": (1e-6, 1e6),
}
_FLAGS = ("center_input_sample", "flip_sin_to_cos", "add_attention")
_TEXTS = (
    "time_embedding_type",
    "mid_block_type",
    "downsample_type",
    "upsample_type",
    "act_fn",
    "resnet_time_scale_shift",
    "class_embed_type",
)
_NULLABLE = frozenset(
    (
        *(
            "attention_head_dim",
            "attn_norm_num_groups",
            "time_embedding_dim",
            "num_class_embeds",
            "num_train_timesteps",
        ),
        *("mid_block_type", "class_embed_type"),
    )
)


def load(
    source: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    classes: int | None = None,
) -> NetworkDenoiser:
    """The frozen denoiser in a pipeline's folder, or under an id of the hub (``owner/name``).

    ``revision``: of the hub's; a commit pins it. ``variant``: of the weights, such as ``fp16``.
    ``subfolder``: of the network, see ``diffusers_folders``. ``classes``: as many as there are
    embeddings unless given; with one fewer the last embedding is "no class".

    Raises ``UserError`` naming the file for a missing or malformed one, a scheduler that is not
    known, weights that do not fit, and when diffusers is missing.
    """
    pipeline = find_pipeline(source, revision, variant, subfolder)
    schedule, prediction, inputs = meaning_of(read_json(pipeline.scheduler), pipeline.scheduler)
    arguments, classes = _network(pipeline, classes)
    network = _built(arguments, classes, pipeline.config)
    tensors = {f"unet.{_renamed(name)}": value for name, value in read_weights(pipeline.weights).items()}
    load_strictly(network, tensors, pipeline.weights.name)
    return freeze(NetworkDenoiser(network, schedule, prediction, inputs, _shape(arguments), classes))


def files_of(
    source: str | Path, revision: str | None = None, variant: str | None = None, subfolder: str | None = None
) -> dict[str, Path]:
    """The files that ``load`` reads and no others, by names that do not say where the folder is.

    Raises ``UserError`` where a file is missing.
    """
    return find_pipeline(source, revision, variant, subfolder).files


def remarks_of(
    source: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    classes: int | None = None,
) -> tuple[str, ...]:
    """Sentences on what ``load`` chooses among several, and on what it leaves out.

    Raises what ``load`` raises for a configuration; weights are not read.
    """
    pipeline = find_pipeline(source, revision, variant, subfolder)
    scheduler = read_json(pipeline.scheduler)
    meaning_of(scheduler, pipeline.scheduler)
    _network(pipeline, classes)
    return (*pipeline.remarks, *ignored_by(scheduler, pipeline.scheduler))


def _built(arguments: dict[str, Any], classes: int, path: Path) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return build({"kind": "diffusers-unet2d", "config": arguments, "classes": classes})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _network(pipeline: Pipeline, classes: int | None) -> tuple[dict[str, Any], int]:
    """The arguments of ``UNet2DModel``, each checked before it is believed, and the classes."""
    config = read_json(pipeline.config)
    with about(pipeline.config):
        if config.get("_class_name") != "UNet2DModel":
            raise UserError(
                f"is the configuration of a {shown(config.get('_class_name'))}; only UNet2DModel is read here."
            )
        arguments = {name: value for name, value in config.items() if not name.startswith("_")}
        for name in arguments:
            _check(arguments, name)
        _shape(arguments)
        embeddings = arguments.get("num_class_embeds") or 0
    if classes is None or classes == embeddings:
        return arguments, embeddings
    if not 1 <= classes == embeddings - 1:
        raise UserError(
            f"{pipeline.config}: has {embeddings} for num_class_embeds, 'teacher.classes' says {classes}; "
            "leave it out for as many as "
            "there are embeddings, or set it to one fewer where the last is 'no class'."
        )
    return arguments, classes


def _check(arguments: dict[str, Any], name: str) -> None:
    """Raises ``UserError`` for a value that would be read wrongly, or break the network when it is
    called.
    """
    if arguments[name] is None and name in _NULLABLE:
        return
    if name in _WHOLE:
        whole(arguments, name, *_WHOLE[name])
    elif name in _REALS:
        real(arguments, name, *_REALS[name])
    elif name in _FLAGS:
        flag(arguments, name, False)
    elif name in _TEXTS:
        word(arguments, name)
    elif name == "block_out_channels":
        wholes(arguments, name, 1, _MOST)
    elif name in ("down_block_types", "up_block_types"):
        words(arguments, name)


def _shape(arguments: dict[str, Any]) -> tuple[int, ...]:
    """That of one sample."""
    size = arguments.get("sample_size")
    given = {"sample_size": size if isinstance(size, list) else [size, size]}
    sides = wholes(given, "sample_size", 1, _LARGEST)
    if len(sides) != 2:
        raise UserError(f"has {len(sides)} numbers for sample_size, which must be a number or two of them.")
    levels = len(arguments.get("block_out_channels", range(4)))
    if any(side % 2 ** (levels - 1) for side in sides):
        raise UserError(
            f"has {sides[0]} x {sides[1]} for sample_size, which {levels} block_out_channels halve "
            f"{levels - 1} times: it must be a multiple of {2 ** (levels - 1)}."
        )
    channels, emitted = arguments.get("in_channels", 3), arguments.get("out_channels", 3)
    if channels != emitted:
        raise UserError(
            f"has {emitted} for out_channels and {channels} for in_channels, which must be equal: a "
            "variance that a network learnt is not read here."
        )
    return (channels, *sides)


def _renamed(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    head, _, last = layer.rpartition(".")
    return f"{head}.{_OLD_NAMES[last]}.{kind}" if ".attentions." in f".{name}" and last in _OLD_NAMES else name
