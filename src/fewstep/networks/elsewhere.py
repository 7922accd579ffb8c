"""Networks on a device of their own, which callers on another one need not know.

A run may give the networks of each of its roles a device (``training.placement``). What calls a
network then stands at a door (``Door``): what it is given goes to the network's device, and what
the network emits comes back to where x came from. Gradients go the same ways back. Where everything
is on one device nothing moves, and no bit is another.

On GPUs a call is queued and not waited for. What it emits stays where it is made until the caller
goes on (see ``calls``), so that calls of several networks are at work at once.
"""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Movable(Protocol):
    """A tensor, or what holds tensors."""

    def to(self, device: torch.device) -> Self:
        """The same on a device; itself where it is there."""


Given = TypeVar("Given", bound=Movable)


class Door:
    """A module that calls a network which may be on another device than its callers.

    ``place``: that device; None where callers must be where the network is.
    """

    place: torch.device | None = None

    def brought(self, given: Given) -> Given:
        """What a caller gives, where the network is."""
        return given if self.place is None else given.to(self.place)


def placed_on(model: Model, device: torch.device) -> Model:
    """The model, in place, on a device to which callers elsewhere may come."""
    for module in model.modules():
        if isinstance(module, Door):
            module.place = device
    return model.to(device)


def given_place(model: nn.Module) -> torch.device | None:
    """The device that a model was placed on; None for a model that was not."""
    return next((module.place for module in model.modules() if isinstance(module, Door)), None)
