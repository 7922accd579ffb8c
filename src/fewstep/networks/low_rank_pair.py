"""One layer's low-rank weights as files hold them, whatever the file's form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRankPair:
    """What is added to a layer's weight: (alpha / rank) up down, as a matrix.

    Of a linear layer ``down`` is (rank, inputs) and ``up`` (outputs, rank); of a convolution
    ``down`` is (rank, inputs, height, width) and ``up`` (outputs, rank, 1, 1). Ranks may differ by
    layer.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The number of rows of ``down``."""
        return len(self.down)

    @property
    def scale(self) -> float:
        """alpha / rank (Hu et al. 2021, Sec. 4.1)."""
        return self.alpha / self.rank
