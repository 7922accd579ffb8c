"""Feature spaces in which samples are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.random import Key

Features = Callable[[Tensor], Tensor]
Readings = Callable[[Tensor], Mapping[str, Tensor]]
"""Samples (B, *D) -> logits by attribute, each (B, its number of values)."""


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """``extract``: samples (B, *D) -> features (B, d).

    ``head``: features -> logits (B, K) of the network's classes, or None where there is no
    classifier; ``labelled``: whether these are the data's classes, so that it can judge them.
    ``readings``: what the space's network tells of a picture's attributes, None where it tells
    none. ``name``: equal for equal spaces, for reference statistics. ``resizes``: whether it reads
    pictures of any size, which it resizes itself.
    """

    name: str
    extract: Features
    head: Features | None = None
    labelled: bool = False
    readings: Readings | None = None
    resizes: bool = False

    def classify(self, samples: Tensor) -> Tensor:
        """Samples (B, *D) -> logits (B, K); raises ``UserError`` where there is no classifier."""
        if self.head is None:
            raise UserError(
                f"the feature space '{self.name}' has no classifier; set 'evaluation.features' to one that has."
            )
        return self.head(self.extract(samples))


def fourier_features(dim: int, count: int = 64, bandwidth: float = 1.0, seed: int = 0) -> Features:
    """cos(w x + b) at ``count`` random frequencies w ~ N(0, bandwidth^-2 I) (Rahimi and Recht
    2007), for points in the plane, whose means and covariances alone say too little.
    """
    key = Key(seed, "fourier-features")
    frequencies = key.lasting("frequency", (count, dim)) / bandwidth
    phases = key.uniform("phase", count).float() * 2 * math.pi

    def extract(samples: Tensor) -> Tensor:
        return torch.cos(samples.flatten(1) @ frequencies.T.to(samples.device) + phases.to(samples.device))

    return extract


def placed(function: Features, device: torch.device | str) -> Features:
    """The function of a network on ``device`` for samples on any: they are taken there, and what it
    makes of them comes back to where they were. Gradients pass.
    """

    def moved(samples: Tensor) -> Tensor:
        return function(samples.to(device)).to(samples.device)

    return moved


def placed_readings(function: Readings, device: torch.device | str) -> Readings:
    """The same of what tells attributes."""

    def moved(samples: Tensor) -> dict[str, Tensor]:
        return {name: logits.to(samples.device) for name, logits in function(samples.to(device)).items()}

    return moved


def vectors(features: Tensor, what: str) -> Tensor:
    """Features (N, d), N >= 1, in float64; ``what`` is taken of them.

    Raises ``UserError`` for another shape, and where a value is not finite.
    """
    if features.ndim != 2 or len(features) == 0:
        raise UserError(
            f"{what} are taken of vectors (N, d), got a tensor of shape {tuple(features.shape)}; "
            "flatten the samples or extract features first."
        )
    if not bool(torch.isfinite(features).all()):
        raise UserError(
            f"{what} are taken of finite features, but some are infinite or not a number; the "
            "generator has probably diverged."
        )
    return features.double()
