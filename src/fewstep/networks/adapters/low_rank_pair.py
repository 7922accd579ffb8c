"""One layer's low-rank weights as files hold them, whatever the file's form, and their sum with the
layer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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

    def product(self) -> Tensor:
        """(alpha / rank) up down, of the shape of the layer's weight, in float32 at least."""
        wide = torch.promote_types(self.down.dtype, torch.float32)
        down, up = self.down.to(wide), self.up.to(wide)
        return (self.scale * (up.flatten(1) @ down.flatten(1))).view(len(up), *down.shape[1:])


@torch.no_grad()
def add_to_weights(network: nn.Module, pairs: Mapping[str, LowRankPair], weight: float = 1.0) -> None:
    """Adds ``weight`` times each pair's product to the weight of the layer at its path, in place.

    The sum is computed in float32 at least, and rounded once to the type that the layer has.
    """
    for path, pair in pairs.items():
        held = network.get_parameter(f"{path}.weight")
        wide = torch.promote_types(held.dtype, torch.float32)
        held.copy_(held.to(wide) + weight * pair.product().to(held.device, wide))
