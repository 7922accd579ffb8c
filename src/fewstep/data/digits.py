"""The 1,797 handwritten digits of the UCI repository's optical recognition set (its test part), 8x8
pixels.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, doi:10.24432/C50P49, licensed CC BY 4.0. The file that ships holds the pixels (0
to 16, uint8) and the classes; ``data/digits.md`` beside it says how it was made.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from fewstep.data.dataset import InMemory


def digit_images() -> InMemory:
    """All 1,797 digits as (N, 1, 8, 8) in [-1, 1], 10 classes."""
    with (
        resources.files("fewstep.data").joinpath("digits.npz").open("rb") as stream,
        np.load(stream, allow_pickle=False) as arrays,
    ):
        pixels, labels = arrays["pixels"], arrays["labels"]
    samples = torch.from_numpy(pixels.astype(np.float32) / 8.0 - 1.0)
    return InMemory(samples[:, None], torch.from_numpy(labels.astype(np.int64)), classes=10)
