"""Pure noise: where a one-step student starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.condition import LABELS, Condition, Conditions
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.states.state import State, States
from fewstep.states.step import Step


@dataclass(frozen=True)
class Prior(States):
    """x = scale z, z ~ N(0, I), labelled ``time``; its conditions are uniform over ``conditions``.

    ``scale`` defaults to sigma(time) for variance exploding and to 1 otherwise (EDM students: sigma
    z; SDXL students: unit noise labelled t = 0.4).
    """

    schedule: Schedule
    shape: tuple[int, ...]
    time: float
    scale: float | None = None
    conditions: Conditions = LABELS

    @property
    def std(self) -> float:
        """The standard deviation of x."""
        if self.scale is not None:
            return self.scale
        return float(self.schedule.sigma(self.time)) if isinstance(self.schedule, KarrasVE) else 1.0

    @property
    def ahead(self) -> bool:
        return True

    def draw(self, step: Step) -> State:
        condition = self.conditions.draw(step.key, step.rows, step.start)
        return self._with(condition, step.key, "prior", step.rows, step.start).to(step.device)

    def at(self, key: Key, purpose: str, rows: int, numbers: Tensor | None, start: int = 0) -> State:
        """States with the conditions of the given ``numbers`` (rows,) or None, from the noise of a
        place and purpose, on the CPU.
        """
        return self._with(self.conditions.of(numbers), key, purpose, rows, start)

    def _with(self, condition: Condition, key: Key, purpose: str, rows: int, start: int) -> State:
        noise = key.normal(purpose, (rows, *self.shape), start)
        times = torch.full((rows,), float(self.time), dtype=torch.float64)
        return State(self.std * noise, times, condition, noise=noise)
