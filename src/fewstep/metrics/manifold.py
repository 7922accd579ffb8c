r"""How much of the data a generator covers, and how much of what it generates is data:
neighbourhoods in feature space.

B_k(x; X) is the closed ball around x in X whose radius is the distance to its k-th nearest other
point of X. With N real points X_i and M generated Y_j,

    precision = 1/M sum_j 1[Y_j in some B_k(X_i; X)],       recall   = 1/N sum_i 1[X_i in some
    B_k(Y_j; Y)]            (Kynkaanniemi et al. 2019, Eqs. 1, 2)
    density   = 1/(k M) sum_j #{i: Y_j in B_k(X_i; X)},     coverage = 1/N sum_i 1[some Y_j in
    B_k(X_i; X)]            (Naeem et al. 2020, Eqs. 4, 5).

Precision and recall rest on unions of balls, which one outlier inflates; density counts the balls
instead and is not bounded by 1. What a perfect generator scores: distances from X_i to the N - 1
other real points and to M generated ones are exchangeable, so that X_i is missed if and only if the
k nearest are all real,

    E coverage = 1 - (N - 1) ... (N - k) / ((N + M - 1) ... (N + M - k)),       E density = 1,

whatever the distribution and the dimension. Precision and recall have no such value: they depend on
both.

Balls are closed, as in Kynkaanniemi's equation and unlike in Naeem's published code, which matters
only where distances tie: two identical sets have a density of (k + 1) / k. Distances are taken as
differences in float64, never by |a|^2 + |b|^2 - 2 a b, so that equal points are at distance 0; a
block of rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.features import vectors

BLOCK = 512


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M), float64, of vectors (N, d) and (M, d); exactly 0 between equal
    ones.
    """
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True, eq=False)
class Balls:
    """Closed balls around ``centres`` (N, d) with ``radii`` (N,), float64."""

    centres: Tensor
    radii: Tensor

    @classmethod
    def around(cls, features: Tensor, neighbours: int) -> Balls:
        """B_k of every vector of features (N, d), k = ``neighbours`` in [1, N - 1]; raises
        ``UserError`` otherwise, or where a value is not finite.
        """
        features = vectors(features, "neighbourhoods")
        if not 1 <= neighbours < len(features):
            raise UserError(
                f"neighbourhoods of {neighbours} need at least 1 neighbour and more vectors than that, got "
                f"{len(features)} vectors; give more samples."
            )
        # The nearest is the point itself, at distance 0.
        radii = [distances(part, features).kthvalue(neighbours + 1, dim=1).values for part in features.split(BLOCK)]
        return cls(features, torch.cat(radii))

    def meet(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """In how many balls each of ``points`` (P, d) lies, (P,) int64, and which balls hold any of
        them, (N,) bool.
        """
        points = vectors(points, "neighbourhoods")
        if points.shape[1] != self.centres.shape[1]:
            raise UserError(
                f"features of {self.centres.shape[1]} and of {points.shape[1]} dimensions cannot be "
                "compared; take both from one feature space."
            )
        held = torch.zeros(len(points), dtype=torch.int64)
        occupied = []
        for centres, radii in zip(self.centres.split(BLOCK), self.radii.split(BLOCK), strict=True):
            inside = distances(centres, points) <= radii[:, None]
            held += inside.sum(0)
            occupied.append(inside.any(1))
        return held, torch.cat(occupied)


@dataclass(frozen=True)
class ManifoldScores:
    """See the module's docstring: ``precision``, ``recall`` and ``coverage`` in [0, 1], ``density``
    >= 0 and 1 for equal distributions.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(real: Tensor, generated: Tensor, neighbours: int = 5) -> ManifoldScores:
    """All four scores of features (N, d) of data and (M, d) of samples, with one k for all, as
    Naeem et al. compare them; raises ``UserError`` unless both have more than k vectors.
    """
    held, occupied = Balls.around(real, neighbours).meet(generated)
    return ManifoldScores(
        _share(held > 0),
        recall(real, generated, neighbours),
        float(held.double().mean()) / neighbours,
        _share(occupied),
    )


def precision(real: Tensor, generated: Tensor, neighbours: int = 3) -> float:
    """The share of generated vectors (M, d) near a real one (N, d), in [0, 1]: fidelity. k = 3 is
    Kynkaanniemi et al.'s.
    """
    return _share(Balls.around(real, neighbours).meet(generated)[0] > 0)


def recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> float:
    """The share of real vectors (N, d) near a generated one (M, d), in [0, 1]: diversity. k = 3 is
    Kynkaanniemi et al.'s.
    """
    return _share(Balls.around(generated, neighbours).meet(real)[0] > 0)


def density(real: Tensor, generated: Tensor, neighbours: int = 5) -> float:
    """How many real neighbourhoods hold a generated vector, in units of what equal distributions
    give; k = 5 is Naeem et al.'s.
    """
    return float(Balls.around(real, neighbours).meet(generated)[0].double().mean()) / neighbours


def coverage(real: Tensor, generated: Tensor, neighbours: int = 5) -> float:
    """The share of real neighbourhoods that hold a generated vector, in [0, 1]; k = 5 is Naeem et
    al.'s.
    """
    return _share(Balls.around(real, neighbours).meet(generated)[1])


def expected_coverage(real: int, generated: int, neighbours: int = 5) -> float:
    """The coverage that ``generated`` samples of the data's own distribution have of ``real`` ones,
    in expectation (Naeem et al. 2020, Eq. 9).
    """
    missed = 1.0
    for rank in range(1, neighbours + 1):
        missed *= (real - rank) / (real + generated - rank)
    return 1.0 - missed


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())


@dataclass(frozen=True, eq=False)
class Farthest:
    """``indices`` (count,) of samples, the farthest first, and their ``distances`` (count,) to the
    nearest sample of the data; ``usual``: the median distance of all samples.
    """

    indices: Tensor
    distances: Tensor
    usual: float


def farthest(real: Tensor, generated: Tensor, count: int) -> Farthest:
    """The ``count`` samples of features ``generated`` (M, d), all if there are fewer, whose nearest
    neighbour is farthest.

    Neighbours are those in ``real`` (N, d). Equal distances are in the order of the samples.

    Raises ``UserError`` without samples of either, and for values that are not finite.
    """
    if not len(real) or not len(generated) or count < 1:
        raise UserError(
            f"the farthest samples need at least one sample of data and one to look at, got {len(real)} and "
            f"{len(generated)}."
        )
    if not bool(real.isfinite().all()) or not bool(generated.isfinite().all()):
        raise UserError("the farthest samples cannot be told: features hold values that are not finite numbers.")
    nearest = torch.cat([distances(part, real).min(dim=1).values for part in generated.split(BLOCK)])
    order = torch.argsort(nearest, descending=True, stable=True)[:count]
    return Farthest(order, nearest[order], float(nearest.median()))
