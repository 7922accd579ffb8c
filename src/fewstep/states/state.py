"""What a state is: a batch of noisy inputs with all that is known of them."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from fewstep.condition import Condition

if TYPE_CHECKING:
    from fewstep.states.step import Step


@dataclass(frozen=True, eq=False)
class State:
    """``x`` (B, *D) at times ``t`` (B,), never carrying a gradient; ``x0`` and ``noise`` (B, *D) where x was made of them."""

    x: Tensor
    t: Tensor
    condition: Condition = field(default_factory=Condition)
    x0: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class States(abc.ABC):
    """A source of states; draws are a function of the step's place."""

    @abc.abstractmethod
    def draw(self, step: Step) -> State:
        """The states of this step: ``step.rows`` samples of the global batch, from ``step.start`` on."""
