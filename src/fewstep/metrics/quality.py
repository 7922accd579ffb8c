"""An honest Frechet distance.

On small conditional sets the distance is dominated by class proportions unless they are held, and one draw says little. So: every class in the data's proportions, fixed
evaluation seeds that are the same for every model measured (paired), the mean and the spread over several draws, and beside it the distance between two stratified halves of
the data, which is what a perfect generator of finite data looks like.

A distance alone does not tell missing modes from bad samples. ``Breadth`` does (see ``manifold`` and ``diversity``); it takes all pairs of samples, so it is taken of the
first draw only, of at most ``BREADTH_ROWS`` samples and as many of the data, in the data's class proportions, and not while training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.data import Dataset
from fewstep.metrics.diversity import relative_diversity
from fewstep.metrics.features import Features
from fewstep.metrics.frechet import FeatureStatistics, features_of, frechet_distance
from fewstep.metrics.manifold import ManifoldScores, manifold_scores
from fewstep.random import Place

Sample = Callable[[Place, int, "Tensor | None"], Tensor]

BREADTH_ROWS = 2000


@dataclass(frozen=True)
class Quality:
    """``fd``: mean Frechet distance over the draws; ``fd_spread``: their standard deviation (0 for one draw); ``accuracy``: class accuracy in [0, 1], if a classifier was given."""

    fd: float
    fd_spread: float
    accuracy: float | None


@dataclass(frozen=True)
class Breadth(ManifoldScores):
    """Precision, recall, density, coverage (k = 5), and ``diversity``: the mean distance within classes as a ratio to the data's own."""

    diversity: float


@dataclass(frozen=True)
class FullQuality:
    """``quality`` over all draws, and ``breadth`` of the first."""

    quality: Quality
    breadth: Breadth


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Measures a sampler ``sample(place, rows, labels) -> (rows, *D)`` against ``data`` in a feature space.

    ``samples`` a draw, at the data's class proportions; draws differ by the place's step, which is the draw's number, at one ``seed`` for all models.
    """

    data: Dataset
    features: Features
    classifier: Features | None = None
    samples: int = 5000
    seed: int = 0

    def measure(self, sample: Sample, draws: int = 3) -> Quality:
        """The quality over ``draws`` draws."""
        labels = self.data.proportional_labels(self.samples)
        distances, hits = [], []
        for draw in range(draws):
            generated = sample(Place(self.seed, "evaluation", draw), self.samples, labels)
            distances.append(frechet_distance(FeatureStatistics.of(features_of(generated, self.features)), self._reference))
            if self.classifier is not None and labels is not None:
                hits.append(self._accuracy(generated, labels))
        spread = statistics.stdev(distances) if draws > 1 else 0.0
        return Quality(statistics.fmean(distances), spread, statistics.fmean(hits) if hits else None)

    def breadth(self, sample: Sample) -> Breadth:
        """The breadth of the first draw."""
        labels = self.data.proportional_labels(self.samples)
        return self._breadth(sample(Place(self.seed, "evaluation", 0), self.samples, labels), labels)

    def describe(self, sample: Sample, draws: int = 3) -> FullQuality:
        """``measure`` and ``breadth`` together; samples are drawn as often as by ``measure`` alone."""
        first: list[Tensor] = []

        def kept(place: Place, rows: int, labels: Tensor | None) -> Tensor:
            samples = sample(place, rows, labels)
            if not first:
                first.append(samples)
            return samples

        quality = self.measure(kept, draws)
        return FullQuality(quality, self._breadth(first[0], self.data.proportional_labels(self.samples)))

    def halves(self) -> float:
        """The Frechet distance between two stratified halves of the data."""
        one, other = (FeatureStatistics.of(_features_of_data(half, self.features)) for half in self.data.stratified_halves())
        return frechet_distance(one, other)

    @cached_property
    def _reference(self) -> FeatureStatistics:
        # Once an evaluator: a quick measurement while training would else read all data again.
        return FeatureStatistics.of(_features_of_data(self.data, self.features))

    def _breadth(self, samples: Tensor, labels: Tensor | None) -> Breadth:
        order = _stratified(len(samples), labels)
        samples, labels = samples[order], None if labels is None else labels[order]
        own = self.data.subset(_stratified(len(self.data), self.data.labels))
        own_labels = own.labels
        generated, real = features_of(samples, self.features), _features_of_data(own, self.features)
        scores = manifold_scores(real, generated)
        diversity = relative_diversity(generated, labels, real, own_labels)
        return Breadth(scores.precision, scores.recall, scores.density, scores.coverage, diversity)

    @torch.no_grad()
    def _accuracy(self, samples: Tensor, labels: Tensor) -> float:
        assert self.classifier is not None
        return float((features_of(samples, self.classifier).argmax(1) == labels).double().mean())


@torch.no_grad()
def _features_of_data(data: Dataset, extract: Features) -> Tensor:
    """Features (N, d) of all samples of the data, a block at a time."""
    return torch.cat([extract(block) for block in data.blocks()])


def _stratified(rows: int, labels: Tensor | None) -> Tensor:
    """The indices of at most ``BREADTH_ROWS`` samples, evenly spaced once sorted by class, so that the classes keep their proportions."""
    order = torch.arange(rows) if labels is None else torch.argsort(labels, stable=True)
    if rows > BREADTH_ROWS:
        order = order[torch.arange(BREADTH_ROWS) * rows // BREADTH_ROWS]
    return order
