r"""The Frechet distance between two Gaussians fitted to features (Heusel et al. 2017):

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2}),

in float64 with symmetric square roots by ``eigh``, so that it needs no complex arithmetic and is
never negative beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError


@dataclass(frozen=True)
class FeatureStatistics:
    """``mean`` (d,) and unbiased ``covariance`` (d, d) of ``count`` feature vectors (None where a
    published file does not say), float64.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Statistics of features (N, d), N >= 2."""
        if features.ndim != 2 or len(features) < 2:
            raise UserError(
                f"feature statistics need at least 2 vectors, got a tensor of shape {tuple(features.shape)}."
            )
        features = features.double()
        return cls(features.mean(0), torch.cov(features.T).reshape(features.shape[1], features.shape[1]), len(features))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """See the module's docstring; the squared distance, as the field reports it.

    Raises ``UserError`` for statistics of different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"statistics of {len(a.mean)} and of {len(b.mean)} features cannot be compared; take both from "
            "one feature space."
        )
    root = _sqrt(a.covariance)
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + torch.trace(a.covariance) + torch.trace(b.covariance) - 2 * cross)


def _sqrt(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@torch.no_grad()
def features_of(samples: Tensor, extract: Callable[[Tensor], Tensor], batch: int = 1000) -> Tensor:
    """Features (N, d) of samples (N, *D), a batch at a time.

    Raises ``UserError`` for samples that are not finite, of which nothing can be said.
    """
    parts: Iterable[Tensor] = (extract(part) for part in samples.split(batch))
    features = torch.cat(list(parts))
    if not bool(features.isfinite().all()):
        raise UserError(
            "the samples to be measured are not finite numbers: the model has diverged; lower the learning "
            "rate or change the weighting, and start anew."
        )
    return features
