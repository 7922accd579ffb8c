"""Data that are made up: Gaussian mixtures in the plane, whose exact scores are known (the toy
study of DisBack, App. E.2), and images of a few waves, of any shape and number of classes, for
rehearsals and tests.
"""

from __future__ import annotations

import math

import torch

from fewstep.data.dataset import InMemory
from fewstep.denoisers import GaussianMixture
from fewstep.random import Key
from fewstep.schedule import Schedule


def random_mixture(
    schedule: Schedule, components: int = 10, half_width: float = 4.0, std: float = 0.3, seed: int = 0
) -> GaussianMixture:
    """``components`` equal round Gaussians with means uniform in a square (the paper's "randomly
    selected 10 Gaussians", App. E.2).
    """
    key = Key(seed, "random-mixture")
    means = (
        torch.stack([key.uniform("x", components), key.uniform("y", components)], dim=1) * 2 * half_width - half_width
    )
    return GaussianMixture(schedule, torch.ones(components), means, torch.full((components,), std**2))


def ring_mixture(schedule: Schedule, components: int = 8, radius: float = 2.0, std: float = 0.2) -> GaussianMixture:
    """``components`` equal round Gaussians on a circle, each a class of its own."""
    angles = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.arange(components)
    return GaussianMixture(schedule, torch.ones(components), means, torch.full((components,), std**2), labels)


def sampled(mixture: GaussianMixture, count: int, seed: int = 0) -> InMemory:
    """``count`` samples of a mixture as a data set without classes; its range is the samples'
    own.
    """
    samples, _ = mixture.sample(count, Key(seed, "mixture-data"))
    bound = float(samples.abs().max())
    parts = torch.cat([mixture.weights[:, None], mixture.means, mixture.variances], dim=1)
    # Rounded: the last bits of what made the parts may differ between processors, as the samples'
    # do.
    origin = f"mixture, seed {seed}: " + " ".join(f"{value:.9g}" for value in parts.flatten().tolist())
    return InMemory(samples, None, 0, -bound, bound, origin=origin)


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
