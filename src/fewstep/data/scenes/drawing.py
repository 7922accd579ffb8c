r"""Scenes as pictures: handwritten digits enlarged, in colour, over a grey.

An 8 x 8 digit is enlarged by cubic convolution (Keys 1981, with a = -3/4, as torch's ``bicubic``
does) along columns and rows; what is beyond [0, 1] is cut off. The result i is how much of the
colour c lies over the tone g of the background:

    x = g + i (c - g).

Sums are taken in a fixed order by additions and multiplications alone, so that a picture depends
neither on the other pictures of its batch nor on the machine.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewstep.data.digits import digit_images
from fewstep.data.scenes.placing import LARGEST, SIDE, Arrangement
from fewstep.data.scenes.vocabulary import COLOURS

_CELLS, _SHARPNESS = 8, -0.75


def pictured(scenes: Arrangement) -> Tensor:
    """The pictures of scenes, (n, 3, SIDE, SIDE) float32 in [-1, 1]."""
    pictures = scenes.tone[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    for which in range(scenes.digits.shape[1]):
        ink = _enlarged(
            _ink()[scenes.writings[:, which]], scenes.sizes[:, which], scenes.tops[:, which], scenes.lefts[:, which]
        )
        colours = _colours()[scenes.colours[:, which]][:, :, None, None]
        pictures = pictures + ink[:, None] * (colours - pictures)
    return pictures.clamp(-1, 1)


def _enlarged(ink: Tensor, sizes: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    """Digits (n, 8, 8) at their sizes and places (n,), as (n, SIDE, SIDE) in [0, 1]."""
    down, across = _placed_weights(sizes, tops), _placed_weights(sizes, lefts)
    tall = down[:, :, :1] * ink[:, :1]
    for cell in range(1, _CELLS):
        tall = tall + down[:, :, cell : cell + 1] * ink[:, cell : cell + 1]
    whole = tall[:, :, :1] * across[:, None, :, 0]
    for cell in range(1, _CELLS):
        whole = whole + tall[:, :, cell : cell + 1] * across[:, None, :, cell]
    return whole.clamp(0, 1)


def _placed_weights(sizes: Tensor, starts: Tensor) -> Tensor:
    """How much of each cell each pixel of a line takes, (n, SIDE, 8), zero outside the digit."""
    pixels = torch.arange(SIDE) - starts[:, None]
    weights = _weights()[sizes[:, None], pixels.clamp(min=0)]
    return torch.where((pixels >= 0)[:, :, None], weights, 0.0)


@functools.cache
def _weights() -> Tensor:
    """The weights of cubic convolution from 8 cells to each size, (sizes, SIDE, 8) float32; zero
    beyond a size.
    """
    found = torch.zeros(max(LARGEST.values()) + 1, SIDE, _CELLS, dtype=torch.float64)
    for size in range(1, len(found)):
        for pixel in range(size):
            centre = (pixel + 0.5) * _CELLS / size - 0.5
            first = int(centre // 1)
            for cell in range(first - 1, first + 3):
                # Beyond the edge the outermost cell goes on.
                found[size, pixel, min(max(cell, 0), _CELLS - 1)] += _cubic(abs(centre - cell))
    return found.float()


def _cubic(distance: float) -> float:
    a = _SHARPNESS
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    return (((distance - 5) * distance + 8) * distance - 4) * a


@functools.cache
def _ink() -> Tensor:
    """How much ink each cell of the shipped digits has, (N, 8, 8) in [0, 1]."""
    return (digit_images().samples[:, 0] + 1) / 2


@functools.cache
def _colours() -> Tensor:
    """(8, 3) in [-1, 1]."""
    return torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1
