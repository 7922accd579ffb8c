"""Latents in patches of 2 x 2, each a token of all its channels and places: Flux's and Qwen-Image's
form.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

PATCH = 2


def pack(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W / 4, 4 C): patches row by row; in a token the channel comes first,
    then the row, then the column.
    """
    batch, channels, height, width = x.shape
    patches = x.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of ``pack``, to the ``shape`` (B, C, H, W)."""
    batch, channels, height, width = shape
    patches = tokens.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)
