"""Fixed noisy inputs on which the models along a path are compared with one another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, device_of
from fewstep.random import Key
from fewstep.resumable import untouched
from fewstep.states import States, Step
from fewstep.times import TimeDistribution


@dataclass(frozen=True, eq=False)
class Probes:
    """``rows`` samples of ``student`` as it is when they are first asked for, noised at ``times``
    of the schedule of ``teacher``.

    A call with a model gives its estimates (rows, *D).
    """

    student: nn.Module
    states: States
    times: TimeDistribution
    teacher: Denoiser
    rows: int = 64

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor, Condition]:
        """(x_t, t, condition)."""
        step, schedule = Step(Key(0, "record-probe"), self.rows, device=device_of(self.teacher)), self.teacher.schedule
        # Not a batch of the run: a collection must not grow by it.
        with untouched(self.states):
            state = step.state(self.states)
        x0 = step.sample(self.student, state)
        t = self.times.draw(schedule, step.key, "probe-time", step.rows)
        return schedule.add_noise(x0, t, step.noise_like("probe-noise", x0)), t, state.condition

    @torch.no_grad()
    def __call__(self, model: Denoiser) -> Tensor:
        estimates: Tensor = model(*self.inputs)
        return estimates
