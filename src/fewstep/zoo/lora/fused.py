"""An adapter added to the weights that it adapts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from fewstep.errors import UserError
from fewstep.networks.adapters.low_rank_pair import LowRankPair, add_to_weights
from fewstep.zoo.lora.lora_layers import LoraLayers

N = TypeVar("N", bound=nn.Module)


def fused(network: N, pairs: Mapping[str, LowRankPair], weight: float = 1.0) -> N:
    """A copy of ``network`` with ``weight`` (alpha / rank) up down added to the layers' weights,
    by their paths. The sum is computed in float32 at least, and rounded once.

    Raises ``UserError`` for a layer that the network does not have, and for weights of another
    shape.
    """
    plain = copy.deepcopy(network)
    add_to_weights(plain, fitting(LoraLayers.of(plain), pairs, "the adapter"), weight)
    return plain


def fitting(layers: LoraLayers, pairs: Mapping[str, LowRankPair], says: str) -> dict[str, LowRankPair]:
    """The pairs in the shapes of their layers, in the network's order.

    ``says``: what sentences begin with. Raises ``UserError`` where there are none, and for those
    that do not fit.
    """
    strange = sorted(set(pairs) - set(layers.layers))
    if strange or not pairs:
        has = f"has weights for layer '{strange[0]}', which this network does not have" if strange else "has no layers"
        raise UserError(f"{says} {has}; give that network's own.")
    return {path: layers.check(path, pairs[path], f"{says}: layer '{path}'") for path in layers.layers if path in pairs}
