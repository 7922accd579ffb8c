"""The samples that are least like data: those farthest from all of it in feature space (DisBack shows its own in App. H)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.manifold import BLOCK, distances


@dataclass(frozen=True, eq=False)
class Farthest:
    """``indices`` (count,) of samples, the farthest first, and their ``distances`` (count,) to the nearest sample of the data; ``usual``: the median distance of all samples."""

    indices: Tensor
    distances: Tensor
    usual: float


def farthest(real: Tensor, generated: Tensor, count: int) -> Farthest:
    """The ``count`` samples of features ``generated`` (M, d), all if there are fewer, whose nearest neighbour is farthest.

    Neighbours are those in ``real`` (N, d). Equal distances are in the order of the samples.

    Raises ``UserError`` without samples of either, and for values that are not finite.
    """
    if not len(real) or not len(generated) or count < 1:
        raise UserError(f"the farthest samples need at least one sample of data and one to look at, got {len(real)} and {len(generated)}.")
    if not bool(real.isfinite().all()) or not bool(generated.isfinite().all()):
        raise UserError("the farthest samples cannot be told: features hold values that are not finite numbers.")
    nearest = torch.cat([distances(part, real).min(dim=1).values for part in generated.split(BLOCK)])
    order = torch.argsort(nearest, descending=True, stable=True)[:count]
    return Farthest(order, nearest[order], float(nearest.median()))
