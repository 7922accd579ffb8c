"""What an objective is, and what it gives."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fewstep.states import State, Step


@dataclass(frozen=True, eq=False)
class Loss:
    """``total``: a scalar with a graph, to be minimised; ``terms``: named scalars without one, for the log."""

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Objective(abc.ABC):
    """A learning signal. Networks and targets are given when it is built; a call gives the loss at a step's states."""

    @property
    def differentiates_twice(self) -> bool:
        """Whether its loss is made of gradients, so that the backward pass needs the networks' weights of the forward pass once more; no unless a class says so."""
        return False

    @abc.abstractmethod
    def __call__(self, step: Step, state: State) -> Loss:
        """The loss of this process' samples, a mean over them."""
