"""Images made of a few waves: a data set of any shape and number of classes from nothing, for
rehearsals and tests.
"""

from __future__ import annotations

import math

import torch

from fewstep.data.dataset import InMemory
from fewstep.random import Key

WAVES = 3


def waves(shape: tuple[int, int, int], classes: int, count: int, seed: int = 0) -> InMemory:
    """``count`` images (channels, H, W) in [-1, 1]: in each channel the mean of 3 cosines whose
    frequencies are the class's and whose phases are the image's; classes in turn, 0 for none.
    """
    channels, height, width = shape
    kinds = max(classes, 1)
    key = Key(seed, "waves")
    labels = torch.arange(count) % kinds
    # Up to 2 periods across, so that neighbouring pixels are alike, as in pictures.
    frequencies = (key.uniform("frequency", kinds * channels * WAVES * 2) * 2).reshape(kinds, channels, WAVES, 2)[
        labels
    ]
    phases = key.uniform("phase", count * channels * WAVES).reshape(count, channels, WAVES, 1, 1)
    rows = torch.arange(height, dtype=torch.float64).reshape(height, 1) / height
    columns = torch.arange(width, dtype=torch.float64) / width
    turns = frequencies[..., 0, None, None] * rows + frequencies[..., 1, None, None] * columns + phases
    samples = torch.cos(2 * math.pi * turns).mean(dim=2).float()
    return InMemory(
        samples, labels if classes else None, classes, origin=f"waves {channels} x {height} x {width}, seed {seed}"
    )
