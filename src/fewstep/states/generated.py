r"""A few-step student's own samples: what a fake score learns, and what a critic calls generated.

Backward simulation (Yin et al. 2024b, DMD2, Sec. 4.4): the student is run along all of its times,
down to t = 0, from noise, as at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from fewstep.errors import UserError
from fewstep.solvers import FlowMap
from fewstep.states.rollout import check_trajectory
from fewstep.states.state import State, States
from fewstep.states.step import Step


@dataclass(frozen=True)
class Generated(States):
    """``prior``'s noise carried along all of ``times`` to 0 by ``flow_map`` (bound to the step's
    place): State(x = x0, t = 0, the prior's condition, x0).

    These states are clean: noise them before a network sees them. Raises ``UserError`` for times
    that do not decrease from the prior's time to 0.
    """

    flow_map: FlowMap
    prior: States
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        check_trajectory("generated samples", self.prior, self.times)
        if self.times[-1] != 0 or len(self.times) == 1:
            raise UserError(
                f"generated samples: the times must end at 0, got {self.times}; use Rollout for states on the way."
            )

    @torch.no_grad()
    def draw(self, step: Step) -> State:
        begin = step.state(self.prior)
        flow_map = self.flow_map.at(step.key, step.start)
        x = begin.x
        for t, s in pairwise(self.times):
            x = flow_map(x, t, s, begin.condition)
        return State(x, torch.zeros_like(begin.t), begin.condition, x0=x)
