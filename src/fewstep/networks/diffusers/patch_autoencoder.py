r"""A small codec of pictures whose encoder is a table and whose decoder is learnt: diffusers'
``AutoencoderKL``, so that its pipelines read it.

The encoder gives each patch of p x p pixels its first principal components z, C numbers for 3 p^2,
each divided by its standard deviation to the power 0.6: coarse and fine components are then nearer
to one scale, as a diffusion model wants its latents, and the coarse ones still come first. It is
exact by construction (``fit``): strided convolutions gather a patch, residual blocks add nothing,
and the last group norm sees z, -z and constants K so much larger that it divides by a constant,
after which silu(u) - silu(-u) = u. The latents' deviation is e^-15.

The decoder undoes it, and is trained (``objectives.Reconstruction``).
"""

from __future__ import annotations

from typing import Annotated, Any

import annotated_types as at
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.diffusers.autoencoder import AutoencoderCodec
from fewstep.networks.kinds.registry import register
from fewstep.values import Few

_POWER = 0.6
_CONSTANT = 64.0
_LOG_VARIANCE = -30.0
_COLOURS = 3


@register("patch-autoencoder")
class PatchAutoencoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> its reconstruction, not clamped; see the module's docstring.

    ``channels`` C of the latents; ``widths`` of the levels, one more than there are halvings: with
    three a patch is 4 x 4 pixels; ``groups`` of each norm. ``codec``: the same as a codec.

    Raises ``UserError`` for widths that do not hold a patch, or are not shared by the groups, and
    when diffusers is missing.
    """

    def __init__(
        self,
        channels: Annotated[int, at.Interval(ge=1, le=256)] = 16,
        widths: tuple[Few, ...] = (32, 48, 48),
        groups: Annotated[int, at.Interval(ge=1, le=256)] = 4,
    ):
        super().__init__()
        levels = len(widths)
        if not _hold(channels, widths, groups):
            raise UserError(
                f"network 'patch-autoencoder': 'widths' {list(widths)} do not hold patches and {channels} 'channels' "
                f"in {groups} 'groups': the last two must be equal and hold twice the channels and twice the groups, "
                "each before them 12 channels times four for each halving, and groups must divide all; change them."
            )
        self.channels, self.patch, self.groups = channels, 2 ** (levels - 1), groups
        self.codec = AutoencoderCodec(
            {
                "down_block_types": ["DownEncoderBlock2D"] * levels,
                "up_block_types": ["UpDecoderBlock2D"] * levels,
                "block_out_channels": list(widths),
                "layers_per_block": 1,
                "latent_channels": channels,
                "norm_num_groups": groups,
                "mid_block_add_attention": False,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
                "scaling_factor": 1.0,
            }
        )
        self.codec.vae.decoder.requires_grad_(True)

    def encode(self, pictures: Tensor) -> Tensor:
        """The latents (B, C, H / p, W / p)."""
        found: Tensor = self.codec.vae.encode(pictures, return_dict=False)[0].mean
        return found

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures, not clamped."""
        found: Tensor = self.codec.vae.decoder(latents)
        return found

    def forward(self, pictures: Tensor) -> Tensor:
        return self.decode(self.encode(pictures))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Makes the encoder of the principal components of the patches of ``pictures`` (N, 3, H,
        W): latents of mean 0 and mean square 1.

        Raises ``UserError`` for pictures with fewer components than channels.
        """
        rows = nn.functional.pixel_unshuffle(pictures.double(), self.patch).movedim(1, -1).flatten(0, 2)
        mean = rows.mean(dim=0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[: self.channels], vectors.flip(1)[:, : self.channels]
        if len(values) < self.channels or float(values[-1]) <= 1e-12 * float(values[0]):
            raise UserError(
                f"network 'patch-autoencoder': patches of the pictures have fewer than {self.channels} components; "
                "take fewer 'channels'."
            )
        # An eigenvector's sign is nobody's; the entry that is largest is positive.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
        variances = values ** (1 - _POWER)
        table = vectors * values ** (-_POWER / 2) / variances.mean().sqrt()
        self._gather(table.T, -(mean @ table))

    def _gather(self, table: Tensor, offset: Tensor) -> None:
        """An encoder of latents ``table`` (C, 3 p^2) times a patch plus ``offset`` (C,), the
        patch's values ordered as ``pixel_unshuffle`` does.
        """
        encoder: Any = self.codec.vae.encoder
        for value in encoder.parameters():
            value.zero_()
        for module in encoder.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.fill_(1.0)
        _same(encoder.conv_in, _COLOURS)
        *gathering, last, _ = encoder.down_blocks
        for level, block in enumerate(gathering):
            squares = torch.eye(4).reshape(4, 2, 2)
            for channel in range(_COLOURS * 4**level):
                block.downsamplers[0].conv.weight[4 * channel : 4 * channel + 4, channel, :2, :2] = squares
        for block in encoder.down_blocks:
            shortcut = block.resnets[0].conv_shortcut
            if shortcut is not None:
                _same(shortcut, min(shortcut.weight.shape[:2]))
        self._project(last.downsamplers[0].conv, encoder.conv_norm_out, encoder.conv_out, table, offset)

    def _project(self, last: nn.Conv2d, norm: nn.GroupNorm, out: nn.Conv2d, table: Tensor, offset: Tensor) -> None:
        """The last halving, from squares to latents, and what comes out."""
        assert last.bias is not None
        assert out.bias is not None
        # Each halving sets the pixels of a square behind one another.
        order = torch.arange(_COLOURS * self.patch**2).reshape(_COLOURS, self.patch, self.patch)
        while order.shape[-1] > 2:
            order = nn.functional.pixel_unshuffle(order, 2)
        per, each = last.weight.shape[0] // self.groups, self.channels // self.groups
        constants = torch.tensor([_CONSTANT, -_CONSTANT]).repeat((per - 2 * each) // 2)
        for group in range(self.groups):
            own, first = slice(group * each, (group + 1) * each), group * per
            for sign, start in ((1.0, first), (-1.0, first + each)):
                last.bias[start : start + each] = (sign * offset[own]).to(last.bias)
                last.weight[start : start + each, : len(order), :2, :2] = (sign * table[own][:, order]).to(last.weight)
                out.weight[own, start : start + each, 1, 1] = sign * torch.eye(each)
            last.bias[first + 2 * each : first + per] = constants
        # Latents have a mean square of 1.
        norm.weight.fill_(((len(constants) * _CONSTANT**2 + 2 * each) / per) ** 0.5)
        out.bias[self.channels :] = _LOG_VARIANCE


def _same(convolution: nn.Conv2d, channels: int) -> None:
    """The first channels as they are."""
    middle = convolution.kernel_size[0] // 2
    convolution.weight[:channels, :channels, middle, middle] = torch.eye(channels)


def _hold(channels: int, widths: tuple[int, ...], groups: int) -> bool:
    """Whether the levels have room for what they gather, and the last two for the latents, their
    negatives and the constants, alike in all groups.
    """
    if len(widths) < 2 or widths[-2] != widths[-1] or any(each % groups for each in (channels, *widths)):
        return False
    spare = widths[-1] - 2 * channels
    gathered = all(width >= _COLOURS * 4 ** (level + 1) for level, width in enumerate(widths[:-2]))
    return gathered and spare >= 2 * groups and spare % (2 * groups) == 0
