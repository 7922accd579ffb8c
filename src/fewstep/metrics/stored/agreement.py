r"""Whether a few samples may be of the distribution whose moments are known from many: with a bound
that follows from their own sampling error.

Features x_1 .. x_n have the mean m_n and the covariance C_n, the reference's N have m_N and C_N. If
all are independent draws of one distribution with covariance C, then by the central limit theorem

    m_n - m_N ~ N(0, f C),        f = 1 / n + 1 / N,

and the same holds for the covariances, which are means as well: of v_i = vec((x_i - m)(x_i -
m)^T), with the covariance G of v in the place of C. A Gaussian g ~ N(0, f C) has (Laurent and
Massart 2000, Lemma 1, for the weights of its squares, which are the eigenvalues of C)

    P(|g|^2 >= f (tr C + 2 sqrt(x tr C^2) + 2 x |C|)) <= exp(-x),

so that with x = ln(1 / chance) each gap is above its bound by that chance at most. The eigenvalues
of C and G are taken from the n samples themselves, as those of the Gram matrix of what is averaged,
over n - 1: the n x n matrix of (x_i . x_j), and that of (x_i . x_j)^2, both centred. Their sum is
estimated without bias; that of their squares is too large by some (tr C)^2 / n, which widens the
bound. Where the samples' conditions are in fixed proportions, or they are themselves among the N,
the gaps are smaller than this says: the bound holds all the more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.frechet import FeatureStatistics

CHANCE = 1e-4
"""Of a gap that is above its bound where nothing is wrong."""


@dataclass(frozen=True)
class SquaredGap:
    """``squared``: the squared distance between two means, or two covariances (Frobenius);
    ``bound``: what it exceeds by chance alone with the chance that was asked for.
    """

    squared: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the gap may be chance."""
        return self.squared <= self.bound


@dataclass(frozen=True)
class Agreement:
    """The gaps between the drawn samples' ``mean`` and ``covariance`` and the reference's."""

    mean: SquaredGap
    covariance: SquaredGap

    @property
    def holds(self) -> bool:
        """Whether both gaps may be chance."""
        return self.mean.holds and self.covariance.holds


def agreement(features: Tensor, reference: FeatureStatistics, chance: float = CHANCE) -> Agreement:
    """Features (n, d) of samples, n >= 2, against the statistics of others; see the module's
    docstring.

    ``chance`` in (0, 1): of each gap being above its bound where both are of one distribution.
    Raises ``UserError`` for features of another dimension, and for a reference that does not say
    how many samples it is of.
    """
    own = FeatureStatistics.of(features)
    if own.mean.shape != reference.mean.shape:
        raise UserError(
            f"moments of {len(reference.mean)} features cannot be checked with samples of {len(own.mean)}; take both "
            "from one feature space."
        )
    if reference.count is None:
        raise UserError("moments of an unknown number of samples have no known sampling error; give that number.")
    shrinks = 1 / len(features) + 1 / reference.count
    centred = features.double() - own.mean
    gram = centred @ centred.T
    return Agreement(
        SquaredGap(_square(own.mean - reference.mean), shrinks * _largest(gram, chance)),
        SquaredGap(_square(own.covariance - reference.covariance), shrinks * _largest(gram.square(), chance)),
    )


def _square(gap: Tensor) -> float:
    return float(gap.square().sum())


def _largest(gram: Tensor, chance: float) -> float:
    """What the squared length of a Gaussian exceeds with that chance at most, whose covariance is
    that of vectors with the scalar products ``gram`` (n, n).
    """
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    weights = torch.linalg.eigvalsh(centred).clamp(min=0) / (len(gram) - 1)
    x = -math.log(chance)
    return float(weights.sum() + 2 * (x * weights.square().sum()).sqrt() + 2 * x * weights.max())
