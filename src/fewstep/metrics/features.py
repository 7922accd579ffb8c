"""Feature spaces in which samples are compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.random import Place

Features = Callable[[Tensor], Tensor]


def fourier_features(dim: int, count: int = 64, bandwidth: float = 1.0, seed: int = 0) -> Features:
    """cos(w x + b) at ``count`` random frequencies w ~ N(0, bandwidth^-2 I) (Rahimi and Recht 2007), for points in the plane, whose means and covariances alone say too little."""
    place = Place(seed, "fourier-features")
    frequencies = place.normal("frequency", (count, dim)) / bandwidth
    phases = place.uniform("phase", count).float() * 2 * math.pi

    def extract(samples: Tensor) -> Tensor:
        return torch.cos(samples.flatten(1) @ frequencies.T + phases)

    return extract
