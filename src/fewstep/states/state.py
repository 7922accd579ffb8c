"""What a state is: a batch of noisy inputs with all that is known of them."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.condition import Condition

if TYPE_CHECKING:
    from fewstep.states.step import Step

_CONTEXT = "context."
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class State:
    """``x`` (B, *D) at times ``t`` (B,), never carrying a gradient; ``x0`` and ``noise`` (B, *D)
    where x was made of them.

    ``origin`` (B,) int64: the index of the source in a mixture of states; None elsewhere. ``t`` and
    ``origin`` are on the CPU, all else is on the step's device.
    """

    x: Tensor
    t: Tensor
    condition: Condition = field(default_factory=Condition)
    x0: Tensor | None = None
    noise: Tensor | None = None
    origin: Tensor | None = None

    def to(self, device: torch.device) -> State:
        """The same state with its samples and conditions on a device; ``t`` and ``origin``, which
        schedules and masks are made of, stay on the CPU.
        """
        x0, noise = (None if value is None else value.to(device) for value in (self.x0, self.noise))
        return State(self.x.to(device), self.t, self.condition.to(device), x0, noise, self.origin)

    def tensors(self) -> dict[str, Tensor]:
        """What there is of it, by name: x, t, labels, guidance, x0, noise, origin, and each context
        as ``context.NAME``; first dimensions B.
        """
        named = {
            "x": self.x,
            "t": self.t,
            "labels": self.condition.labels,
            "guidance": self.condition.guidance,
            "x0": self.x0,
            "noise": self.noise,
            "origin": self.origin,
            **{_CONTEXT + name: value for name, value in self.condition.context.items()},
        }
        return {name: value for name, value in named.items() if value is not None}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> State:
        """The state that ``tensors`` gave."""
        context = {name.removeprefix(_CONTEXT): value for name, value in tensors.items() if name.startswith(_CONTEXT)}
        condition = Condition(tensors.get("labels"), context, tensors.get("guidance"))
        return State(
            tensors["x"], tensors["t"], condition, tensors.get("x0"), tensors.get("noise"), tensors.get("origin")
        )


@dataclass(frozen=True, eq=False)
class States(abc.ABC):
    """A source of states; draws are a function of the step's place (and, for a source that
    remembers, of its state).
    """

    @property
    def ahead(self) -> bool:
        """Whether a draw may be made before its step, in another thread: it runs no network and
        depends on nothing that is remembered. No, unless a class says so.
        """
        return False

    @abc.abstractmethod
    def draw(self, step: Step) -> State:
        """The states of this step: ``step.rows`` samples of the global batch, from ``step.start``
        on.
        """

    def trajectories(self, step: Step) -> State:
        """All states of ``step.rows`` trajectories, trajectory after trajectory.

        A source without trajectories has one state of each sample: its draw.
        """
        return step.state(self)


def select(mask: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """The samples of ``these`` (B, *D) where ``mask`` (B,) is true, else those of ``others`` (B,
    *D).
    """
    return torch.where(mask.to(these.device).reshape(mask.shape + (1,) * (these.ndim - 1)), these, others)
