"""Several roles of one base in one batch, a contiguous portion of the samples for each.

At a batch of few samples a network's time is that of starting its layers and of reading its
weights, so that one call of three samples takes less than three of one sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.adapters.adapted import AdaptedNetwork
from fewstep.networks.adapters.low_rank import Adapter, Layer


@dataclass(frozen=True, eq=False)
class Portions:
    """What a base computes with: for each portion of so many samples (``counts``) an adapter, None
    for the base itself.
    """

    adapters: Sequence[Adapter | None]
    counts: Sequence[int]

    def added(self, path: str, emitted: Tensor, layer: Layer, x: Tensor) -> Tensor:
        """What the layer at ``path`` emitted on x (B, ...), and to each portion its adapter's part.

        Raises ``UserError`` for a layer whose batch is not that of the samples.
        """
        if not any(adapter is not None and path in adapter.layers for adapter in self.adapters):
            return emitted
        if len(emitted) != sum(self.counts) or len(x) != len(emitted):
            raise UserError(
                f"the layer '{path}' computes {len(emitted)} rows for {sum(self.counts)} samples, so that two adapters "
                "on it cannot share a batch; set 'method.passes: separate'."
            )
        portions = zip(self.adapters, emitted.split(self.counts), x.split(self.counts), strict=True)
        return torch.cat([own if each is None else each.added(path, own, layer, of) for each, own, of in portions])


def shared_by(network: nn.Module) -> nn.Module:
    """What is computed when a network is called: a role's base, or the network itself."""
    return network.base.network if isinstance(network, AdaptedNetwork) else network


@contextlib.contextmanager
def beside(networks: Sequence[nn.Module], counts: Sequence[int]) -> Iterator[nn.Module]:
    """Inside, what the networks share, called on a batch whose portions of ``counts`` samples are
    theirs in this order, computes each portion as its network does.
    """
    adapters = [each.adapter if isinstance(each, AdaptedNetwork) else None for each in networks]
    base = next((each.base for each in networks if isinstance(each, AdaptedNetwork)), None)
    shared = shared_by(networks[0])
    if base is None:
        yield shared
        return
    with base.selected(Portions(adapters, counts)):
        yield shared
