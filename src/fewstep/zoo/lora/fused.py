"""An adapter added to the weights that it adapts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.low_rank_pair import LowRankPair
from fewstep.zoo.lora.lora_layers import LoraLayers

N = TypeVar("N", bound=nn.Module)


def fused(network: N, pairs: Mapping[str, LowRankPair], weight: float = 1.0) -> N:
    """A copy of ``network`` with ``weight`` (alpha / rank) up down added to the layers' weights,
    by their paths. The sum is computed in float32 at least, and rounded once.

    Raises ``UserError`` for a layer that the network does not have, and for weights of another
    shape.
    """
    plain = copy.deepcopy(network)
    layers = LoraLayers.of(plain)
    for path, pair in fitting(layers, pairs).items():
        held = layers.layers[path].weight
        wide = torch.promote_types(held.dtype, torch.float32)
        with torch.no_grad():
            held.copy_(held.to(wide) + weight * product(pair).to(held.device, wide))
    return plain


def product(pair: LowRankPair) -> Tensor:
    """(alpha / rank) up down, of the shape of the layer's weight, in float32 at least."""
    wide = torch.promote_types(pair.down.dtype, torch.float32)
    down, up = pair.down.to(wide), pair.up.to(wide)
    return pair.scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def fitting(layers: LoraLayers, pairs: Mapping[str, LowRankPair]) -> dict[str, LowRankPair]:
    """The pairs in the shapes of their layers, in the network's order.

    Raises ``UserError`` where there are none, and for those that do not fit.
    """
    strange = sorted(set(pairs) - set(layers.layers))
    if strange or not pairs:
        has = f"has weights for layer '{strange[0]}', which this network does not have" if strange else "has no layers"
        raise UserError(f"the adapter {has}; give that network's own.")
    return {
        path: layers.check(path, pairs[path], f"the adapter's layer '{path}'")
        for path in layers.layers
        if path in pairs
    }
