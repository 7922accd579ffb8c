"""An honest Frechet distance.

On small conditional sets the distance is dominated by class proportions unless they are held, and
one draw says little. So: every class in the data's proportions, fixed evaluation seeds that are the
same for every model measured (paired), the mean and the spread over several draws, and beside it
the distance between two stratified halves of the data, which is what a perfect generator of finite
data looks like.

A distance alone does not tell missing modes from bad samples. ``Breadth`` does (see ``manifold``
and ``diversity``); it takes all pairs of samples, so it is taken of the first draw only, of at most
``BREADTH_ROWS`` samples and as many of the data, in the data's class proportions, and not while
training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.data import Dataset
from fewstep.errors import UserError
from fewstep.metrics.diversity import relative_diversity
from fewstep.metrics.features import Features, Readings
from fewstep.metrics.frechet import FeatureStatistics, features_of, frechet_distance
from fewstep.metrics.manifold import manifold_scores
from fewstep.random import Key

Sample = Callable[[Key, int, "Tensor | None"], Tensor]

BREADTH_ROWS = 2000
NEIGHBOURS = 5


@dataclass(frozen=True)
class Quality:
    """``fd``: mean Frechet distance over the draws; ``fd_spread``: their standard deviation (0 for
    one draw); ``accuracy``: class accuracy in [0, 1], if a classifier was given.

    A figure that cannot be had is None (see ``Evaluator.lacking``).
    """

    fd: float | None
    fd_spread: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Breadth:
    """Precision, recall, density, coverage (k = 5), and ``diversity``: the mean distance within
    classes as a ratio to the data's own. None for what cannot be had.
    """

    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    diversity: float | None


@dataclass(frozen=True)
class FullQuality:
    """``quality`` over all draws, and ``breadth`` of the first; ``left_out``: by the name of each
    figure that is None, why.
    """

    quality: Quality
    breadth: Breadth
    left_out: Mapping[str, str]


NEIGHBOURHOODS = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Measures a sampler ``sample(place, rows, labels) -> (rows, *D)`` against ``data`` in a
    feature space; without data, what can be said of samples alone. ``reference`` gives what Frechet
    distances are to in the place of the data.

    ``samples`` a draw, at the data's class proportions, or in equal ones of ``classes`` where there
    is no data; draws differ by the place's step, which is the draw's number, at one ``seed`` for
    all models. ``conditional``: whether the model makes the class that it is asked for.
    ``readings``: what tells a picture's attributes, None where nothing does. What cannot be had is
    left out, and takes nothing else along.
    """

    data: Dataset | None
    features: Features
    classifier: Features | None = None
    samples: int = 5000
    seed: int = 0
    classes: int = 0
    conditional: bool = True
    reference: Callable[[], FeatureStatistics] | None = None
    readings: Readings | None = None

    @property
    def labels(self) -> Tensor | None:
        """The classes of a draw's samples, sorted; None without classes."""
        return labels_of(self.data, self.samples, self.classes)

    @property
    def _shared(self) -> Tensor | None:
        """The classes that the samples share with the data; None where the data has none, whatever
        the samples' conditions are.
        """
        return None if self.data is not None and self.data.labels is None else self.labels

    def lacking(self) -> dict[str, str]:
        """Why a figure cannot be had, by its name, as far as data and the number of samples say."""
        found: dict[str, str] = {}
        if self.data is None:
            compared = (
                ("fd", *NEIGHBOURHOODS, "diversity") if self.reference is None else (*NEIGHBOURHOODS, "diversity")
            )
            found |= dict.fromkeys(compared, "there is no data to compare with")
        else:
            if len(self.data) < 2 and self.reference is None:
                found["fd"] = f"it needs at least 2 samples of data, and there are {len(self.data)}"
            few = min(self.samples, len(self.data))
            if few <= NEIGHBOURS:
                found |= dict.fromkeys(
                    NEIGHBOURHOODS,
                    f"neighbourhoods need more than {NEIGHBOURS} samples and as many of the data, got "
                    f"{self.samples} and {len(self.data)}",
                )
            if not _twice(self.data.labels, len(self.data)) & _twice(self._shared, self.samples):
                found["diversity"] = "it needs a class of which the samples and the data have two each"
        if self.labels is None or not self.conditional:
            found["accuracy"] = "there are no classes" if self.labels is None else "the model knows no classes"
        elif self.classifier is None:
            found["accuracy"] = "the feature space has no classifier of these classes"
        return found

    def measure(self, sample: Sample, draws: int = 3) -> Quality:
        """The quality over ``draws`` draws."""
        labels, lacking = self.labels, self.lacking()
        distances, hits = [], []
        for draw in range(draws):
            generated = sample(Key(self.seed, "evaluation", draw), self.samples, labels)
            if "fd" not in lacking:
                distances.append(self.distance(generated))
            if self.classifier is not None and labels is not None and "accuracy" not in lacking:
                hits.append(self._accuracy(generated, labels))
        spread = (statistics.stdev(distances) if draws > 1 else 0.0) if distances else None
        return Quality(
            statistics.fmean(distances) if distances else None, spread, statistics.fmean(hits) if hits else None
        )

    def distance(self, samples: Tensor) -> float:
        """The Frechet distance of samples (N, *D) to the reference; only where ``lacking`` has no
        'fd'.
        """
        return frechet_distance(FeatureStatistics.of(features_of(samples, self.features)), self._reference)

    def breadth(self, sample: Sample) -> Breadth:
        """The breadth of the first draw."""
        return self._breadth(sample(Key(self.seed, "evaluation", 0), self.samples, self.labels), self._shared)[0]

    def describe(self, sample: Sample, draws: int = 3) -> FullQuality:
        """``measure`` and ``breadth`` together; samples are drawn as often as by ``measure``
        alone.
        """
        first: list[Tensor] = []

        def kept(key: Key, rows: int, labels: Tensor | None) -> Tensor:
            samples = sample(key, rows, labels)
            if not first:
                first.append(samples)
            return samples

        quality = self.measure(kept, draws)
        breadth, lacking = self._breadth(first[0], self._shared)
        return FullQuality(quality, breadth, {**self.lacking(), **lacking})

    def why_no_halves(self) -> str:
        """Why the data's halves have no distance; nothing where they have."""
        if self.reference is not None:
            return "distances are to the teacher's samples"
        if self.data is None:
            return "there is no data"
        return (
            ""
            if all(len(half) >= 2 for half in self.data.stratified_halves())
            else f"two halves of {len(self.data)} samples of data do not have two each"
        )

    def halves(self) -> float:
        """The Frechet distance between two stratified halves of the data, of which each needs two
        samples (see ``why_no_halves``).
        """
        assert self.data is not None
        one, other = (
            FeatureStatistics.of(_features_of_data(half, self.features)) for half in self.data.stratified_halves()
        )
        return frechet_distance(one, other)

    @cached_property
    def _reference(self) -> FeatureStatistics:
        if self.reference is not None:
            return self.reference()
        assert self.data is not None
        # Once an evaluator: a quick measurement while training would else read all data again.
        return FeatureStatistics.of(_features_of_data(self.data, self.features))

    def _breadth(self, samples: Tensor, labels: Tensor | None) -> tuple[Breadth, dict[str, str]]:
        """The breadth, and what was found to lack only when it was measured."""
        lacking = self.lacking()
        if self.data is None or {*NEIGHBOURHOODS, "diversity"} <= set(lacking):
            return Breadth(None, None, None, None, None), {}
        order = _stratified(len(samples), labels)
        samples, labels = samples[order], None if labels is None else labels[order]
        own = self.data.subset(_stratified(len(self.data), self.data.labels))
        generated, real = features_of(samples, self.features), _features_of_data(own, self.features)
        scores = None if NEIGHBOURHOODS[0] in lacking else manifold_scores(real, generated, NEIGHBOURS)
        diversity, found = None, {}
        if "diversity" not in lacking:
            try:
                diversity = relative_diversity(generated, labels, real, own.labels)
            except UserError as error:
                found["diversity"] = str(error)
        if scores is None:
            return Breadth(None, None, None, None, diversity), found
        return Breadth(scores.precision, scores.recall, scores.density, scores.coverage, diversity), found

    @torch.no_grad()
    def _accuracy(self, samples: Tensor, labels: Tensor) -> float:
        assert self.classifier is not None
        return float((features_of(samples, self.classifier).argmax(1) == labels).double().mean())


@torch.no_grad()
def _features_of_data(data: Dataset, extract: Features) -> Tensor:
    """Features (N, d) of all samples of the data, a block at a time."""
    return torch.cat([extract(block) for block in data.blocks()])


def labels_of(data: Dataset | None, count: int, classes: int) -> Tensor | None:
    """``count`` labels, sorted, in the proportions of the data's labels, or in equal ones of
    ``classes`` conditions where there are no such; None without both.
    """
    if data is not None and data.labels is not None:
        return data.proportional_labels(count)
    return (torch.arange(count) % classes).sort().values if classes else None


def _twice(labels: Tensor | None, rows: int) -> set[int]:
    """The classes of which there are two samples or more; all are of one class where there are no
    labels.
    """
    if labels is None:
        return {0} if rows >= 2 else set()
    counts = torch.bincount(labels.clamp(min=0))
    return set(torch.nonzero(counts >= 2).flatten().tolist())


def _stratified(rows: int, labels: Tensor | None) -> Tensor:
    """The indices of at most ``BREADTH_ROWS`` samples, evenly spaced once sorted by class, so that
    the classes keep their proportions.
    """
    order = torch.arange(rows) if labels is None else torch.argsort(labels, stable=True)
    if rows > BREADTH_ROWS:
        order = order[torch.arange(BREADTH_ROWS) * rows // BREADTH_ROWS]
    return order
