"""Pure noise: where a one-step student starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.states.state import State, States
from fewstep.states.step import Step


@dataclass(frozen=True)
class Prior(States):
    """x = scale z, z ~ N(0, I), labelled ``time``; classes uniform in [0, classes), none for 0.

    ``scale`` defaults to sigma(time) for variance exploding and to 1 otherwise (EDM students: sigma
    z; SDXL students: unit noise labelled t = 0.4).
    """

    schedule: Schedule
    shape: tuple[int, ...]
    time: float
    scale: float | None = None
    classes: int = 0

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
        labels = step.key.integers("prior-class", step.rows, self.classes, step.start) if self.classes else None
        return self.at(step.key, "prior", step.rows, labels, step.start).to(step.device)

    def at(self, key: Key, purpose: str, rows: int, labels: Tensor | None, start: int = 0) -> State:
        """States with the given classes (rows,) or None, from the noise of a place and purpose, on
        the CPU.
        """
        noise = key.normal(purpose, (rows, *self.shape), start)
        times = torch.full((rows,), float(self.time), dtype=torch.float64)
        return State(self.std * noise, times, Condition(labels=labels), noise=noise)
