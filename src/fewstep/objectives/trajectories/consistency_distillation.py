r"""Consistency distillation: the student gives the same end for two neighbouring points of the
teacher's trajectory (Song et al. 2023, Alg. 2).

    E lambda(t) distance( f(x_t, t), f_avg(x_s, s) ),    x_s one solver step of the teacher from
    x_t,

s the next time down on a ``Ladder`` and f_avg the student's average, without gradient (the paper's
"target network"). With the condition f(x, t_min) = x (``Boundary``), the end of the trajectory is
the only thing that f can agree on. With a guided teacher, whose scale stands in the states'
condition, and ``skip`` > 1, this is LCM (Luo et al. 2023, Alg. 1).

With ``edges`` above 0 there is one consistency function for each interval: both sides go on from
their estimate of x_0 to the interval's lower edge e by DDIM (Heek et al. 2024),

    distance( DDIM(x_t, f(x_t, t), t -> e), DDIM(x_s, f_avg(x_s, s), s -> e) ),

where a point at the edge already stays as it is. At e = 0 that step gives f itself, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fewstep.denoisers import Denoiser
from fewstep.objectives.distance import Distance, SquaredL2
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.score_matching import DenoisingWeight
from fewstep.objectives.trajectories.ladder import Ladder
from fewstep.schedule import Schedule
from fewstep.solvers.rule import EULER, Rule
from fewstep.solvers.transition import ddim_between, teacher_step
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True)
class UnitWeight(DenoisingWeight):
    """1 at every time."""

    kind: Literal["unit"] = field(default="unit", kw_only=True)

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True, eq=False)
class ConsistencyDistillation(Objective):
    """Trains ``student`` on states at ``ladder.starts``; ``averaged`` is its average, or the
    student itself.

    ``rule`` is EULER or HEUN. Raises ``UserError`` for states at other times.
    """

    student: Denoiser
    averaged: Denoiser
    teacher: Target
    ladder: Ladder
    rule: Rule = EULER
    distance: Distance = field(default_factory=SquaredL2)
    weight: DenoisingWeight = field(default_factory=UnitWeight)

    def __call__(self, step: Step, state: State) -> Loss:
        target = self.target_end(state)
        apart = self.distance(self.end(state, step.run(self.student, state)), target)
        total = (self.weight.at(self.student.schedule, state.t).to(apart) * apart).mean()
        return Loss(total, {"consistency": total.detach()})

    def end(self, state: State, estimate: Tensor) -> Tensor:
        """Where the student's estimates (B, *D) at a state go: x (B, *D) at the lower edges of the
        states' intervals.
        """
        return ddim_between(self.student.schedule, state.x, estimate, state.t, self.ladder.below(state.t)[1])

    @torch.no_grad()
    def target_end(self, state: State) -> Tensor:
        """Where the average goes from a step of the teacher: x (B, *D) at these edges."""
        s, edge = self.ladder.below(state.t)
        x_s = teacher_step(self.rule, self.teacher.denoiser, state.x, state.t, s, state.condition)
        return ddim_between(self.student.schedule, x_s, self.averaged(x_s, s, state.condition), s, edge)
