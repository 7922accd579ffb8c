"""An honest Frechet distance.

On small conditional sets the distance is dominated by class proportions unless they are held, and one draw says little. So: every class in the data's proportions, fixed
evaluation seeds that are the same for every model measured (paired), the mean and the spread over several draws, and beside it the distance between two stratified halves of
the data, which is what a perfect generator of finite data looks like.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.data import Dataset
from fewstep.metrics.features import Features
from fewstep.metrics.frechet import FeatureStatistics, features_of, frechet_distance
from fewstep.random import Place

Sample = Callable[[Place, int, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Quality:
    """``fd``: mean Frechet distance over the draws; ``fd_spread``: their standard deviation (0 for one draw); ``accuracy``: class accuracy in [0, 1], if a classifier was given."""

    fd: float
    fd_spread: float
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Measures a sampler ``sample(place, rows, labels) -> (rows, *D)`` against ``data`` in a feature space.

    ``samples`` a draw, at the data's class proportions; draws differ by the place's step, which is the draw's number, at one ``seed`` for all models.
    """

    data: Dataset
    features: Features
    classifier: nn.Module | None = None
    samples: int = 5000
    seed: int = 0

    def measure(self, sample: Sample, draws: int = 3) -> Quality:
        """The quality over ``draws`` draws."""
        reference = FeatureStatistics.of(features_of(self.data.samples, self.features))
        labels = self.data.proportional_labels(self.samples)
        distances, hits = [], []
        for draw in range(draws):
            generated = sample(Place(self.seed, "evaluation", draw), self.samples, labels)
            distances.append(frechet_distance(FeatureStatistics.of(features_of(generated, self.features)), reference))
            if self.classifier is not None and labels is not None:
                hits.append(self._accuracy(generated, labels))
        spread = statistics.stdev(distances) if draws > 1 else 0.0
        return Quality(statistics.fmean(distances), spread, statistics.fmean(hits) if hits else None)

    def halves(self) -> float:
        """The Frechet distance between two stratified halves of the data."""
        one, other = (FeatureStatistics.of(features_of(half, self.features)) for half in self.data.stratified_halves())
        return frechet_distance(one, other)

    @torch.no_grad()
    def _accuracy(self, samples: Tensor, labels: Tensor) -> float:
        assert self.classifier is not None
        return float((features_of(samples, self.classifier).argmax(1) == labels).double().mean())
