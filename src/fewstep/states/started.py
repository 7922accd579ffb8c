"""Forward diffusion that begins where samples do.

A few-step student starts from pure noise at its first level. Data noised to that level is the same only where nothing of the data is left: at sigma = 80 it is, at 2.5 it still shows the
digit, and a student that is trained on it there is asked something else when it samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fewstep.states.prior import Prior
from fewstep.states.state import State, States, select
from fewstep.states.step import Step


@dataclass(frozen=True)
class Started(States):
    """The states of ``source``, but at the time of ``prior`` the prior's noise in the place of their x, with their conditions. x0 and noise are None, since they no longer belong to all."""

    source: States
    prior: Prior

    @property
    def ahead(self) -> bool:
        return self.source.ahead

    def draw(self, step: Step) -> State:
        state = step.state(self.source)
        start = self.prior.at(step.place, "started", step.rows, state.condition.labels, step.start).to(step.device)
        return replace(state, x=select(state.t == self.prior.time, start.x, state.x), x0=None, noise=None)
