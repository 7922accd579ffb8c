r"""The kernel distance between two sets of features (Binkowski et al. 2018, "KID" in Inception's
features): the squared maximum mean discrepancy with the kernel

    k(x, y) = (x . y / d + 1)^3,

    MMD^2 = 1 / (m (m - 1)) sum_{i != j} k(x_i, x_j) + 1 / (n (n - 1)) sum_{i != j} k(y_i, y_j) - 2
    / (m n) sum_{i, j} k(x_i, y_j)        (Eq. 4),

unbiased, and therefore negative now and then where the sets are alike. k compares moments of degree
1 to 3: in expectation, with M_p the tensor of p-th moments,

    MMD^2 = 3 / d |M_1 - M_1'|^2 + 3 / d^2 |M_2 - M_2'|^2 + 1 / d^3 |M_3 - M_3'|^2.

As the field reports it, the mean over random subsets of a given size, drawn without replacement,
with their standard deviation. Unlike the Frechet distance it has no bias from finite sets, so that
it can be read at a few thousand samples.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from torch import Tensor

from fewstep.errors import UserError
from fewstep.random import Key


@dataclass(frozen=True)
class KernelDistance:
    """``mean`` of MMD^2 over the subsets, and their standard deviation ``spread`` (that of the
    population, as published codes have it; 0 for one subset).
    """

    mean: float
    spread: float


def squared_discrepancy(first: Tensor, second: Tensor) -> float:
    """The unbiased MMD^2 of features (m, d) and (n, d), in float64; raises ``UserError`` unless
    both have 2 vectors of equal dimension.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1:] != second.shape[1:] or min(len(first), len(second)) < 2:
        raise UserError(
            "a kernel distance needs at least 2 vectors of the same dimension in each set, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    first, second = first.double(), second.double()
    return _among(first) + _among(second) - 2 * float(_kernel(first, second).mean())


def kernel_distance(
    real: Tensor, generated: Tensor, subsets: int = 100, size: int = 1000, key: Key | None = None
) -> KernelDistance:
    """Of features (N, d) of data and (M, d) of samples; subset s is drawn at step s of ``key``. 100
    subsets of 1,000 are the field's.

    Raises ``UserError`` for no subsets, or where a set has fewer than ``size`` vectors.
    """
    if subsets < 1 or not 2 <= size <= min(len(real), len(generated)):
        raise UserError(
            f"a kernel distance over {subsets} subsets of {size} needs at least one subset and that many "
            f"vectors, got {len(real)} and {len(generated)}; take smaller subsets."
        )
    key = key or Key(0, "kernel-distance")
    found = []
    for step in range(subsets):
        chosen = key.at(step)
        ours, theirs = (
            real[chosen.permutation("real", len(real))[:size]],
            generated[chosen.permutation("generated", len(generated))[:size]],
        )
        found.append(squared_discrepancy(ours, theirs))
    return KernelDistance(statistics.fmean(found), statistics.pstdev(found))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _among(vectors: Tensor) -> float:
    """The mean of k over pairs of different vectors."""
    kernel = _kernel(vectors, vectors)
    return float(kernel.sum() - kernel.diagonal().sum()) / (len(vectors) * (len(vectors) - 1))
