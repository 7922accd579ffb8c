"""What a denoiser is, and how models are copied, frozen, and frozen for a while."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.networks.adapters.selection import held_still
from fewstep.networks.calls import Asking
from fewstep.networks.precision import long_copy
from fewstep.schedule import Schedule

Model = TypeVar("Model", bound=nn.Module)


class Denoiser(nn.Module, abc.ABC):
    """E[x_0 given x_t]: called as ``denoiser(x (B, *D), t (B,) or (), condition) -> x0 (B, *D)``.

    The condition is a ``Condition``, a bare label tensor, or None. A denoiser never turns gradients
    off: score identity and adversarial losses differentiate through frozen networks; the caller
    decides.
    """

    @property
    @abc.abstractmethod
    def schedule(self) -> Schedule:
        """The forward process whose x_t it takes."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape *D of one sample."""

    @property
    @abc.abstractmethod
    def classes(self) -> int:
        """How many classes it can be conditioned on; 0 for none."""

    @abc.abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """See the class's docstring."""

    def asked(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Asking:
        """The same estimate, whose network calls wait to be made (see ``networks.calls``).

        A class that does not say its calls makes them itself.
        """
        yield from ()
        return self(x, t, condition)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are, and so where it wants its inputs; the CPU for one that has
    none.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def copy_of(model: Model) -> Model:
    """An independent trainable copy with equal weights, in float32 at least."""
    return long_copy(model).requires_grad_(True)


def freeze(model: Model) -> Model:
    """The same model, in evaluation mode and with gradients to its parameters turned off."""
    return model.requires_grad_(False).eval()


class HasParameters(Protocol):
    """A module, or what wraps one."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""


@contextlib.contextmanager
def frozen(*models: HasParameters) -> Iterator[None]:
    """Inside, what these models compute carries a gradient to their inputs and none to their
    parameters; on leaving, each parameter is as it was.

    What was computed inside stays so: its backward, later, reaches no parameter.
    """
    with held_still([value for model in models for value in model.parameters()]):
        yield
