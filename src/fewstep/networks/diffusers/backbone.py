"""What the networks around diffusers' U-Nets share: how one is built from its configuration, its
attention by ours, its features, its recomputation.

The classes are diffusers' own, so that every option of a configuration means what it means there.
Attention and layer norm are computed by ours (``attention``, ``norm``), which can be differentiated
forwards, and twice.
Needs the ``diffusers`` extra, which is imported when such a network is built.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.adapters.selection import contexts
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.networks.kernels import attend
from fewstep.networks.norm import LayerNorm


class DiffusersNetwork(DenoisingNetwork):
    """(B, C, H, W), noise labels (B,), condition -> (B, C, H, W), around one of diffusers' U-Nets.

    ``unet``: it; its middle block makes the features.
    """

    part = "unet"
    unet: Any

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet
        self.bottleneck = int(unet.config.block_out_channels[-1])

    @abc.abstractmethod
    def conditioned(self, condition: Condition, x: Tensor) -> dict[str, Any]:
        """The arguments of the U-Net by which it sees the condition of the samples x (B, *D).

        Raises ``UserError`` for a condition that lacks what the U-Net needs.
        """

    @property
    def leave(self) -> nn.Conv2d:  # type: ignore[override]
        """The last convolution."""
        return self.unet.conv_out

    @property
    def recompute(self) -> bool:
        """See ``DenoisingNetwork``."""
        return bool(self.unet.is_gradient_checkpointing)

    @recompute.setter
    def recompute(self, on: bool) -> None:
        if on:
            self.unet.enable_gradient_checkpointing(_computed_again)
        else:
            self.unet.disable_gradient_checkpointing()

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        if end_label is not None:
            raise UserError(
                "this network takes no end label: diffusers' U-Net has no place for one; use a network of "
                "ours as a trajectory student."
            )
        seen = self.conditioned(condition, x)
        # Forwards, torch differentiates a group norm for contiguous input only.
        return self.unet(x.contiguous(), noise_label, return_dict=False, **seen)[0]

    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """The activations after the middle block, (B, bottleneck, h, w); the decoder is not
        computed.
        """
        handle = self.unet.mid_block.register_forward_hook(_stop)
        try:
            self.forward(x, noise_label, condition, end_label)
        except _Reached as reached:
            return reached.activations
        finally:
            handle.remove()
        raise AssertionError("diffusers' U-Net ran without its middle block")


def made(kind: str, name: str, config: Mapping[str, Any]) -> Any:
    """diffusers' U-Net of the class ``name`` from its configuration, with attention by ours.

    ``kind``: the kind of our network, which sentences name. Raises ``UserError`` when diffusers is
    missing, for an argument that the class does not know, for a time embedding that does not take
    every noise label, and for a network without a middle block.
    """
    cls = class_of(f"network '{kind}'", name, config)
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    if config.get("time_embedding_type", "positional") != "positional":
        # A learned embedding knows whole steps only; Fourier features take the logarithm of a
        # label, which may be 0 here.
        raise UserError(
            f"network '{kind}': has {config['time_embedding_type']!r:.80} for time_embedding_type, and only "
            "'positional' takes any noise label."
        )
    unet = cls(**config)
    if unet.mid_block is None:
        raise UserError(f"network '{kind}': it has no middle block, whose activations are the features for critics.")
    parts: list[Any] = list(unet.modules())
    for part in parts:
        # Others normalise in ways of their own, and stay as they are.
        if _is_plain(part, Attention, AttnProcessor2_0):
            part.set_processor(_Attention())
        for place, norm in part.named_children():
            if type(norm) is nn.LayerNorm:
                setattr(part, place, LayerNorm.like(norm))
    return unet


def class_of(whose: str, name: str, config: Mapping[str, Any]) -> Any:
    """diffusers' class of that name, which takes every argument of the configuration.

    ``whose``: what sentences begin with. Raises ``UserError`` when diffusers is missing, and for an
    argument that the class does not know.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"{whose}: needs diffusers: pip install 'fewstep[diffusers]'.") from error
    # A name of ours, never a file's.
    cls: Any = vars(diffusers).get(name) or getattr(diffusers, name, None)
    if cls is None:
        raise UserError(f"{whose}: the installed diffusers has no {name}; install a newer one.")
    unknown = sorted(set(config) - set(inspect.signature(cls.__init__).parameters) - {"self"})
    if unknown:
        raise UserError(
            f"{whose}: {name} of the installed diffusers takes no '{unknown[0]}'; install the version "
            "that wrote the configuration, or a newer one."
        )
    return cls


def other_attention(unet: Any) -> str | None:
    """The class by which a U-Net computes attention where ours does not; None where ours always
    does.
    """
    return next((type(each).__name__ for each in unet.attn_processors.values() if type(each) is not _Attention), None)


class _Attention:
    """What ``AttnProcessor2_0`` computes, by ``attend``: an image's positions among themselves, or
    by the tokens of a text.
    """

    def __call__(
        self,
        layers: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        # ``temb`` is for norms that see the noise level, of which these layers have none.
        positions = hidden_states
        if hidden_states.ndim == 4:
            positions = hidden_states.flatten(2)
            if layers.group_norm is not None:
                positions = layers.group_norm(positions)
            positions = positions.transpose(1, 2)
        tokens = positions if encoder_hidden_states is None else encoder_hidden_states
        sources = ((layers.to_q, positions), (layers.to_k, tokens), (layers.to_v, tokens))
        q, k, v = (layer(source).unflatten(2, (layers.heads, -1)).transpose(1, 2) for layer, source in sources)
        bias = None if attention_mask is None else attention_mask[:, None].to(q.dtype)
        found = attend(q, k, v, bias).transpose(1, 2).flatten(2)
        for layer in layers.to_out:
            found = layer(found)
        if hidden_states.ndim == 4:
            found = found.transpose(1, 2).reshape(hidden_states.shape).contiguous()
        return (found + hidden_states if layers.residual_connection else found) / layers.rescale_output_factor


def _is_plain(part: Any, attention: Any, usual: Any) -> bool:
    """Whether a part is diffusers' attention, done as usual, and without a norm besides that of an
    image's groups.
    """
    if not isinstance(part, attention) or type(part.processor) is not usual:
        return False
    return part.spatial_norm is None and part.norm_cross is None and part.norm_q is None and part.norm_k is None


def _computed_again(block: nn.Module, *inputs: Any) -> Any:
    """A block of which nothing inside is kept for the backward pass."""
    # No block draws at random, so there is no generator's state to keep.
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class _Reached(Exception):
    """Carries activations out of a forward pass that goes no further."""

    def __init__(self, activations: Tensor):
        super().__init__()
        self.activations = activations


def _stop(module: nn.Module, arguments: Any, output: Tensor) -> NoReturn:
    raise _Reached(output)
