r"""Mean and covariance of more features than fit in memory: partial sums about each part's own
mean, merged exactly.

With n vectors of mean m and scatter S = sum (f - m)(f - m)^T in each part, two parts make (Chan,
Golub and LeVeque 1979, Eqs. 2.1)

    n = n_a + n_b,    m = m_a + (m_b - m_a) n_b / n,    S = S_a + S_b + (m_b - m_a)(m_b - m_a)^T n_a
    n_b / n,

in float64. Sums of f f^T would be merged by adding alone, but lose the covariance's digits where a
mean is large against its spread. The sum depends on how it is split only by rounding; merged in the
order of fixed blocks, it is the same bit for bit whoever computed the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.features import vectors
from fewstep.metrics.frechet import FeatureStatistics


@dataclass(frozen=True, eq=False)
class Moments:
    """``count`` vectors, their ``mean`` (d,) and ``scatter`` (d, d) about it, float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (N, d), N >= 1; raises ``UserError`` for another shape, or where a value is
        not finite.
        """
        features = vectors(features, "moments")
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    @classmethod
    def of_batches(cls, batches: Iterable[Tensor]) -> Moments:
        """Of all batches (n, d) together, one in memory at a time; raises ``UserError`` if there is
        none.
        """
        total: Moments | None = None
        for batch in batches:
            part = cls.of(batch)
            total = part if total is None else total.merged(part)
        if total is None:
            raise UserError("moments need at least one batch of features; the data is empty.")
        return total

    def merged(self, other: Moments) -> Moments:
        """Of both parts together; see the module's docstring.

        Raises ``UserError`` where the dimensions differ.
        """
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"moments of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged; take "
                "both from one feature space."
            )
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        return Moments(
            count, mean, self.scatter + other.scatter + torch.outer(apart, apart) * (self.count * other.count / count)
        )

    def statistics(self) -> FeatureStatistics:
        """Mean and unbiased covariance; raises ``UserError`` for fewer than 2 vectors."""
        if self.count < 2:
            raise UserError(f"feature statistics need at least 2 vectors, got {self.count}.")
        return FeatureStatistics(self.mean, self.scatter / (self.count - 1), self.count)
