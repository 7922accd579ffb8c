r"""FastGAN's generator (Liu et al. 2021, arXiv:2101.04775): a student that shares nothing with its
teacher (DisBack, App. A.2).

A transposed convolution makes a 4x4 map of the latent; each block doubles the side: nearest
neighbours, a 3x3 convolution to twice the channels, a norm, a gated linear unit that halves them,
and at 8, 32 and 128 pixels the last three once more. At side r there are c(r) = ``width`` times 16,
8, 4, 2, 2, 1, 1/2 channels for r = 4 to 256, and a last convolution and a tanh make the image.

**Skip-layer excitation** (Sec. 3.1, Eq. 1): y = F(x_low) x_high, with F(x_low) in (0, 1) one number
a channel: x_low averaged to 4x4, a 4x4 convolution, a leaky ReLU, a 1x1 convolution, a sigmoid. The
maps of 64, 128 and 256 pixels are excited by those of 4, 8 and 16. An image smaller than 64 pixels
has one excitation, of its last map by that of 4 pixels (ours).

Where the paper's generator is no function of the latent, ours differs:

- *Group norm for batch norm.* Batch norm makes a sample depend on the others of its batch while it
  is trained, and on running means afterwards, which lag behind the weights and of which an average
  of weights has none of its own.
- *Plain convolutions for spectral norm*, whose power iteration moves a hidden state at every
  forward pass. Behind a norm, a convolution's scale plays no part.
- *No noise injection*: a second latent that the caller could not hold fixed.
- *The class is concatenated to z*, as a one-hot vector of norm sqrt(latent), a latent's own, so
  that it is heard from the first step on; "no class" is zero.
"""

from __future__ import annotations

import math
from typing import Annotated

import annotated_types as at
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.embedding import one_hot
from fewstep.networks.interfaces import GeneratorNetwork
from fewstep.networks.kinds.registry import register
from fewstep.networks.norm import GroupNorm
from fewstep.values import Count, Given

CHANNELS = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 0.5}
"""Channels by side, in widths."""
_TWICE = (8, 32, 128)
_GROUPS = 8


class SkipExcitation(nn.Module):
    """x_low (B, low, s, s), x_high (B, high, H, W) -> F(x_low) x_high, s a multiple of 4; see the
    module's docstring.
    """

    def __init__(self, low: int, high: int):
        super().__init__()
        self.squeeze = nn.Conv2d(low, high, 4)
        self.act = nn.LeakyReLU(0.1)
        self.excite = nn.Conv2d(high, high, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(low, low.shape[-1] // 4)
        return high * torch.sigmoid(self.excite(self.act(self.squeeze(pooled))))


class _Gated(nn.Module):
    """A convolution to twice the channels, a norm, and a gated linear unit."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d):
        super().__init__()
        self.convolution = convolution
        self.norm = GroupNorm(math.gcd(_GROUPS, convolution.out_channels), convolution.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(self.norm(self.convolution(x)), dim=1)


class _Up(nn.Module):
    """Twice the side, by one or two gated convolutions."""

    def __init__(self, inputs: int, outputs: int, count: int):
        super().__init__()
        sizes = [inputs] + [outputs] * (count - 1)
        self.layers = nn.ModuleList(_Gated(nn.Conv2d(size, 2 * outputs, 3, padding=1, bias=False)) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        for layer in self.layers:
            x = layer(x)
        return x


def excitations(resolution: int) -> dict[int, int]:
    """By the side of an excited map, the side of the one that excites it, for images of
    ``resolution`` pixels.
    """
    return {side: max(4, side // 16) for side in CHANNELS if min(64, resolution) <= side <= resolution}


@register("fastgan")
class FastGAN(GeneratorNetwork):
    """Latents (B, latent), condition -> images (B, channels, resolution, resolution) in (-1, 1).

    ``resolution``: a power of two from 8 to 256. ``width``: a multiple of 4, the paper's 64. Raises
    ``UserError`` for others.
    """

    def __init__(
        self,
        latent: Count = 256,
        resolution: Annotated[Count, Given()] = 64,
        channels: Annotated[Count, Given()] = 3,
        width: Annotated[int, at.Interval(ge=4, le=65_536), at.MultipleOf(4)] = 64,
        classes: int = 0,
    ):
        super().__init__()
        if resolution not in CHANNELS or resolution == 4:
            raise UserError(
                f"FastGAN: makes images of 8, 16, 32, 64, 128 or 256 pixels, not of {resolution}; use "
                "images of such a size, or another kind of network."
            )
        if width < 4 or width % 4:
            raise UserError(f"FastGAN: the width must be a multiple of 4, got {width}.")
        self.classes = classes
        sizes = {side: int(factor * width) for side, factor in CHANNELS.items() if side <= resolution}
        self.start = _Gated(nn.ConvTranspose2d(latent + classes, 2 * sizes[4], 4, bias=False))
        self.blocks = nn.ModuleDict(
            {str(side): _Up(sizes[side // 2], sizes[side], 2 if side in _TWICE else 1) for side in sizes if side > 4}
        )
        self.excitations = nn.ModuleDict(
            {str(side): SkipExcitation(sizes[low], sizes[side]) for side, low in excitations(resolution).items()}
        )
        self.pairs = excitations(resolution)
        self.leave = nn.Conv2d(sizes[resolution], channels, 3, padding=1)

    @classmethod
    def sizes_for(cls, shape: tuple[int, ...]) -> dict[str, int]:
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in CHANNELS or shape[1] == min(CHANNELS):
            raise UserError(
                "makes square images whose side is a power of two from 8 to 256, and samples here have "
                f"shape {shape}; use another kind."
            )
        return {"resolution": shape[1], "channels": shape[0]}

    def forward(self, z: Tensor, condition: Condition) -> Tensor:
        if self.classes:
            z = torch.cat([z, z.shape[1] ** 0.5 * one_hot(condition, self.classes, len(z), z)], dim=1)
        x = self.start(z[:, :, None, None])
        maps = {4: x}
        for name, block in self.blocks.items():
            side = int(name)
            x = block(x)
            if side in self.pairs:
                x = self.excitations[name](maps[self.pairs[side]], x)
            maps[side] = x
        return torch.tanh(self.leave(x))
