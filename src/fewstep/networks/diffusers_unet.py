"""The U-Net of diffusers' unconditional and class-conditional pipelines (``UNet2DModel``), rebuilt
from its configuration.

The class is diffusers' own, so that every option of its configuration means what it means there.
Its self-attention is computed by ours (``attention``), which can be differentiated forwards, and
twice. Needs the ``diffusers`` extra, which is imported when such a network is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import torch
from torch import Tensor, nn

from fewstep.condition import NO_CLASS, Condition
from fewstep.errors import UserError
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.networks.kernels import attend
from fewstep.networks.kinds.registry import register
from fewstep.values import Given


@register("diffusers-unet2d")
class DiffusersUNet(DenoisingNetwork):
    """(B, C, H, W), noise labels (B,), condition -> (B, C, H, W).

    ``config``: the arguments of ``UNet2DModel``, plain values. ``classes``: its number of class
    embeddings, or one fewer: the last embedding is then "no class", which is the label -1, and what
    samples without labels get.

    Raises ``UserError`` when diffusers is missing, for an argument that it does not know, and for
    networks with other conditions or without a middle block.
    """

    def __init__(self, config: Annotated[Mapping[str, Any], Given()], classes: int = 0):
        super().__init__()
        try:
            from diffusers import UNet2DModel
            from diffusers.models.attention_processor import Attention, AttnProcessor2_0
        except ImportError as error:
            raise UserError(
                "the network kind 'diffusers-unet2d' needs diffusers: pip install 'fewstep[diffusers]'."
            ) from error
        unknown = sorted(set(config) - set(inspect.signature(UNet2DModel.__init__).parameters) - {"self"})
        if unknown:
            raise UserError(
                "network 'diffusers-unet2d': UNet2DModel of the installed diffusers takes no "
                f"'{unknown[0]}'; install the version that wrote the configuration, or a newer one."
            )
        embeddings = config.get("num_class_embeds") or 0
        if config.get("class_embed_type") is not None or embeddings not in (classes, classes + 1 if classes else 0):
            embedded = f"{embeddings} classes of type {config.get('class_embed_type')}"
            raise UserError(f"network 'diffusers-unet2d': its configuration embeds {embedded}, not {classes} labels.")
        if config.get("time_embedding_type", "positional") != "positional":
            # A learned embedding knows whole steps only; Fourier features take the logarithm of a
            # label, which may be 0 here.
            raise UserError(
                f"network 'diffusers-unet2d': has {config['time_embedding_type']!r:.80} for "
                "time_embedding_type, and only 'positional' takes any noise label."
            )
        self.classes = classes
        self.has_null = embeddings > classes
        unet: Any = UNet2DModel(**config)
        if unet.mid_block is None:
            raise UserError(
                "network 'diffusers-unet2d': it has no middle block, whose activations are the features for critics."
            )
        parts: list[Any] = list(unet.modules())
        for part in parts:
            # Others normalise in ways of their own, and stay as they are.
            if _is_plain(part, Attention, AttnProcessor2_0):
                part.set_processor(_SelfAttention())
        self.unet = unet
        self.bottleneck = int(unet.config.block_out_channels[-1])

    @property
    def leave(self) -> nn.Conv2d:  # type: ignore[override]
        """The last convolution."""
        return self.unet.conv_out

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        if end_label is not None:
            raise UserError(
                "this network takes no end label: diffusers' U-Net has no place for one; use a network of "
                "ours as a trajectory student."
            )
        labels = self._labels(condition, len(x))
        # Forwards, torch differentiates a group norm for contiguous input only.
        return self.unet(x.contiguous(), noise_label, class_labels=labels, return_dict=False)[0]

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
        raise AssertionError("UNet2DModel ran without its middle block")

    def _labels(self, condition: Condition, rows: int) -> Tensor | None:
        """Class ids (B,), or None for a network without classes.

        Raises ``UserError`` for a label that it has no embedding for.
        """
        if not self.classes:
            return None
        labels = condition.labels
        if labels is None and self.has_null:
            return torch.full((rows,), self.classes, device=self.leave.weight.device)
        if labels is not None and labels.is_meta:
            # There ids have no values to be looked at, and sizes are all that is asked for.
            return torch.zeros(rows, dtype=torch.int64, device="meta")
        lowest = NO_CLASS if self.has_null else 0
        if (
            labels is None
            or labels.ndim != 1
            or labels.is_floating_point()
            or int(labels.min()) < lowest
            or int(labels.max()) >= self.classes
        ):
            null = ", or -1 for 'no class'" if self.has_null else ": it has no embedding for 'no class'"
            raise UserError(
                f"diffusers' class-conditional U-Net needs a class from 0 to {self.classes - 1} for each sample{null}."
            )
        return torch.where(labels == NO_CLASS, self.classes, labels)


class _SelfAttention:
    """What ``AttnProcessor2_0`` computes for an image's positions among themselves, by
    ``attend``.
    """

    def __call__(
        self,
        layers: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        # ``temb`` is for norms that see the noise level, of which these layers have none.
        assert encoder_hidden_states is None
        assert attention_mask is None
        positions = hidden_states.flatten(2)
        if layers.group_norm is not None:
            positions = layers.group_norm(positions)
        positions = positions.transpose(1, 2)
        maps = (layers.to_q, layers.to_k, layers.to_v)
        q, k, v = (layer(positions).unflatten(2, (layers.heads, -1)).transpose(1, 2) for layer in maps)
        found = attend(q, k, v).transpose(1, 2).flatten(2)
        for layer in layers.to_out:
            found = layer(found)
        found = found.transpose(1, 2).reshape(hidden_states.shape).contiguous()
        return (found + hidden_states if layers.residual_connection else found) / layers.rescale_output_factor


class _Reached(Exception):
    """Carries activations out of a forward pass that goes no further."""

    def __init__(self, activations: Tensor):
        super().__init__()
        self.activations = activations


def _stop(module: nn.Module, arguments: Any, output: Tensor) -> NoReturn:
    raise _Reached(output)


def _is_plain(part: Any, attention: Any, usual: Any) -> bool:
    """Whether a part is diffusers' attention, done as usual, and without a norm that looks
    elsewhere.
    """
    return isinstance(part, attention) and type(part.processor) is usual and part.spatial_norm is None
