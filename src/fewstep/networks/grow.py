"""Networks that learn to listen to more than they did: the same weights, and branches that say
nothing yet.

A student that is conditioned on the guidance scale, or on the time at which its jump ends, starts
from a teacher that knows neither. The branch is added with a last layer of zeros, so that the grown
network computes what the old one did (as in ControlNet, Zhang et al. 2023), and training moves it
from there.
"""

from __future__ import annotations

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.networks.kinds.build import build, describe_network

BRANCHES = ("guidance", "end")


def grown(network: nn.Module, **changes: bool) -> nn.Module:
    """A trainable copy of ``network`` (made by ``build``) with ``guidance=True`` or ``end=True``
    added; every weight it had is kept.

    Raises ``UserError`` for another change, for a kind without that branch, and when a weight of
    the old network has no place of its shape in the new one.
    """
    other = sorted(set(changes) - set(BRANCHES))
    if other:
        raise UserError(
            f"grown: '{other[0]}' cannot be added to trained weights, since it would not start silent; only "
            f"{', '.join(BRANCHES)} can."
        )
    description = {**describe_network(network), **changes}
    with torch.random.fork_rng(devices=[]):
        fresh = build(description)
    sample = next(network.parameters())
    weights = fresh.to(sample.device, sample.dtype).state_dict()
    for name, value in network.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            raise UserError(
                f"grown: the weight '{name}' of shape {tuple(value.shape)} has no place in the network "
                f"{description}; a network can gain branches, not lose them."
            )
        weights[name] = value
    fresh.load_state_dict(weights)
    return fresh.train(network.training)
