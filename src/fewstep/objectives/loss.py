"""What an objective is, and what it gives."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.states import State, Step


@dataclass(frozen=True)
class Reduction(abc.ABC):
    """How a figure of the whole batch follows from those of its portions, which are equally
    large.
    """

    @abc.abstractmethod
    def of(self, values: Tensor) -> Tensor:
        """A scalar, of the portions' figures (N,)."""


@dataclass(frozen=True)
class Mean(Reduction):
    """Of a figure that is a mean over samples."""

    def of(self, values: Tensor) -> Tensor:
        return values.mean()


@dataclass(frozen=True)
class RootMeanSquare(Reduction):
    """Of a figure that is the root of a mean of squares over samples."""

    def of(self, values: Tensor) -> Tensor:
        return values.square().mean().sqrt()


@dataclass(frozen=True)
class Largest(Reduction):
    """Of a figure that is the largest of the samples' values."""

    def of(self, values: Tensor) -> Tensor:
        return values.max()


@dataclass(frozen=True, eq=False)
class Loss:
    """``total``: a scalar with a graph, to be minimised; ``terms``: named scalars without one, for
    the log.

    ``total`` is a mean over samples, as is each of ``terms`` unless ``reductions`` says by its name
    what it is.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    reductions: Mapping[str, Reduction] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Objective(abc.ABC):
    """A learning signal.

    Networks and targets are given when it is built; a call gives the loss at a step's states.

    A run asks for the loss by ``loss_of``, under the class' name: equal purposes of two classes are
    two draws.
    """

    @property
    def differentiates_twice(self) -> bool:
        """Whether its loss is made of gradients, so that the backward pass needs the networks'
        weights of the forward pass once more; no unless a class says so.
        """
        return False

    @property
    def full_precision(self) -> bool:
        """Whether it is computed in float32 also where a run computes in bfloat16; no unless a
        class says so.
        """
        return False

    @property
    def owned(self) -> Sequence[nn.Module]:
        """Modules of its own that are trained along with its phase's network: joined to the
        optimizer, clipped, saved and sharded like it. None unless a class has some, among its
        fields.
        """
        return ()

    @abc.abstractmethod
    def __call__(self, step: Step, state: State) -> Loss:
        """The loss of this process' samples, a mean over them."""


def loss_of(objective: Objective, step: Step, state: State) -> Loss:
    """An objective's loss in a run, or within another objective: its draws are named after its
    class, and its precision is the precision that it asks for. Gradients are as they stand.
    """
    named = step.named(type(objective).__name__)
    if not objective.full_precision:
        return objective(named, state)
    with torch.autocast(step.device.type, enabled=False):
        return objective(named, state)
