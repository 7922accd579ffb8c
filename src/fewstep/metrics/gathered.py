"""What is kept of many samples once they are gone: sums that merge, and a bounded number of their
features.

The samples of a measurement are an index range [0, N). Means, covariances, class scores and hits
are sums over all of them. Kernel and neighbourhood scores need features themselves, so those of at
most ``KEPT`` samples stay: evenly spaced indices, which keep the class proportions of samples that
are sorted by class. Parts over blocks merge in the order of their indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.inception_score import ClassScores, random_splits
from fewstep.metrics.stored.moments import Moments
from fewstep.random import Key

KEPT = 10_000


def spaced(count: int, most: int) -> Tensor:
    """At most ``most`` evenly spaced indices of [0, count), ascending."""
    return torch.arange(count) if count <= most else torch.arange(most) * count // most


@dataclass(frozen=True, eq=False)
class Gathered:
    """``moments`` of all features; ``kept`` features (n, d), float32, and their ``labels`` (n,), -1
    for none; where known, class ``scores`` and ``hits``, samples of the class asked for.
    """

    moments: Moments
    kept: Tensor
    labels: Tensor
    scores: ClassScores | None = None
    hits: int | None = None

    def merged(self, other: Gathered) -> Gathered:
        """This part and the one of the indices after it."""
        scores = None if self.scores is None or other.scores is None else self.scores.merged(other.scores)
        hits = None if self.hits is None or other.hits is None else self.hits + other.hits
        return Gathered(
            self.moments.merged(other.moments),
            torch.cat([self.kept, other.kept]),
            torch.cat([self.labels, other.labels]),
            scores,
            hits,
        )

    @property
    def kept_labels(self) -> Tensor | None:
        """``labels``, or None where there are none."""
        return None if bool((self.labels < 0).any()) else self.labels


@dataclass(frozen=True, eq=False)
class Gatherer:
    """Gathers blocks of ``count`` samples in a feature space; class scores over ``splits`` random
    splits, drawn for all samples from ``seed``.
    """

    space: FeatureSpace
    count: int
    splits: int = 10
    seed: int = 0

    @torch.no_grad()
    def __call__(self, start: int, samples: Tensor, labels: Tensor | None) -> Gathered:
        """Of samples (n, *D) with the indices [start, start + n), in that order, and their labels
        (n,) or None.
        """
        features = self.space.extract(samples)
        rows = len(samples)
        chosen = spaced(self.count, KEPT)
        chosen = chosen[(chosen >= start) & (chosen < start + rows)] - start
        kept_labels = torch.full((len(chosen),), -1) if labels is None else labels[chosen]
        scores = hits = None
        if self.space.head is not None:
            logits = self.space.head(features)
            split = random_splits(self.count, self.splits, Key(self.seed, "inception-score"))[start : start + rows]
            scores = ClassScores.of(logits.double().softmax(1), split, self.splits)
            if self.space.labelled and labels is not None:
                hits = int((logits.argmax(1) == labels).sum())
        return Gathered(Moments.of(features), features[chosen].float(), kept_labels, scores, hits)
