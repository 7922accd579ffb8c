"""What a classifier and a reader of images have in common: all but their heads."""

from __future__ import annotations

import itertools
from typing import Annotated

import annotated_types as at
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.norm import GroupNorm

TrunkWidth = Annotated[int, at.Interval(ge=8, le=65_536), at.MultipleOf(8)]


class _Residual(nn.Module):
    """Two normalised 3x3 convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        layers = [[GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)] for _ in range(2)]
        self.body = nn.Sequential(*(layer for pair in layers for layer in pair))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ImageTrunk(nn.Module):
    """A small residual network on images (B, channels, size, size), ``size`` a multiple of 4 that
    halves down to 4, 5, 6 or 7.

    Each stage halves the image by a convolution of stride 2, has ``depth`` residual blocks, and
    doubles the channels, from ``width`` at full size to at most 4 ``width``; the last, of 4 to 7
    pixels, goes flat into a hidden layer of ``features``, so that positions count. At full size
    there is one convolution alone, which is what keeps it cheap. ``called``: what a sentence to the
    user calls the whole network.

    Raises ``UserError`` for a ``size`` or ``width`` that there cannot be.
    """

    def __init__(self, called: str, size: int, channels: int, width: int, depth: int, features: int):
        halvings = max(size, 1).bit_length() - 3
        if halvings < 1 or size % 2**halvings:
            raise UserError(
                f"{called}: 'size' must be 4, 5, 6 or 7 doubled once or more, such as 8, 16, 32 or 64, got {size}."
            )
        if width < 8 or width % 8:
            raise UserError(f"{called}: 'width' must be a multiple of 8, got {width}.")
        super().__init__()
        self.called = called
        self.shape: tuple[int, ...] = (channels, size, size)
        counts = [min(2**stage, 4) * width for stage in range(halvings + 1)]
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.SiLU())
        self.descend = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, stride=2), *(_Residual(outputs) for _ in range(depth))
            )
            for inputs, outputs in itertools.pairwise(counts)
        )
        side = size // 2**halvings
        self.hidden = nn.Sequential(
            GroupNorm(8, counts[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(counts[-1] * side**2, features), nn.SiLU()
        )
        self.stage_channels: tuple[int, ...] = (*counts, features)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (B, features)."""
        return self.stages(x)[-1]

    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations at full size and after each stage, (B, C, size / 2^i, size / 2^i), and
        the features (B, features); raises ``UserError`` for images of another shape.
        """
        if x.shape[1:] != self.shape:
            raise UserError(
                f"this {self.called} reads images of shape {self.shape}, got {tuple(x.shape[1:])}; train one for "
                "this data."
            )
        activations = [self.enter(x)]
        for stage in self.descend:
            activations.append(stage(activations[-1]))
        return [*activations, self.hidden(activations[-1])]
