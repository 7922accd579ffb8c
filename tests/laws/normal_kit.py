"""What a word is as two normals, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def radii_and_turns(words: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """sqrt(-2 log(1 - u)) with u = (W + 1/4) 2^-64, and the lowest 24 bits as a fraction of a
    turn.
    """
    lower = words < np.uint64(2**63)
    # u for the lower half of the words, 1 - u for the upper: each is exact where it is small.
    small = np.where(lower, words + 0.25, ~words + 0.75) * 2.0**-64
    return np.sqrt(-2 * np.where(lower, np.log1p(-small), np.log(small))), (words & np.uint64(2**24 - 1)) * 2.0**-24


def normals_of(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The normals of ``words`` (B, n): cosines, then sines, (B, 2 n)."""
    radius, turns = radii_and_turns(words)
    return np.concatenate([radius * np.cos(2 * np.pi * turns), radius * np.sin(2 * np.pi * turns)], axis=1)
