r"""Regression on what a teacher says.

*Of a solver's endpoint*: knowledge distillation (Luhman and Luhman 2021),

    E distance( student(x_t, t), x_0 ),    x_0 the end of the teacher's probability-flow ODE from
    x_t.

The pairs (x_t, x_0) are either stored, made once by many teacher steps, or made on the fly. The
same loss on stored pairs is DMD's regression term (Yin et al. 2024) and the distillation of a
rectified flow into one step (Liu et al. 2022, Sec. 2.2; InstaFlow, Liu et al. 2023).

*Of an estimate*, imitation: a student's estimate is regressed on a teacher's at the same state,

    E lambda(t) | student(x_t, t) - teacher(x_t, t) |^2.

It is how a network learns to emit another prediction (eps to v; Salimans and Ho 2022; DDIL, App.
A), and how guidance is distilled into one network that is told its scale (Meng et al. 2023, Eq. 1
and 2): the states' conditions then carry the scale w, and the teacher is ``Guided(teacher)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.objectives.distance import Distance, SquaredL2
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.score_matching import DenoisingWeight, denoising_loss
from fewstep.solvers import FlowMap
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True, eq=False)
class EndpointRegression(Objective):
    """Trains ``student`` to give x0 at the states' own times.

    x0 comes from ``endpoint``, a deterministic flow map, or, where none is given, from states that
    carry it. Raises ``UserError`` where there is neither.
    """

    student: nn.Module
    distance: Distance = field(default_factory=SquaredL2)
    endpoint: FlowMap | None = None

    def __call__(self, step: Step, state: State) -> Loss:
        wanted = self._wanted(state)
        x0 = step.run(self.student, state)
        total = self.distance(x0, wanted).mean()
        return Loss(total, {"regression": total.detach()})

    @torch.no_grad()
    def _wanted(self, state: State) -> Tensor:
        if self.endpoint is None:
            if state.x0 is None:
                raise UserError(
                    "regression on endpoints: these states carry no x0; give stored pairs, or a solver "
                    "that makes the endpoints on the fly."
                )
            return state.x0
        times = state.t.unique()
        if len(times) == 1:
            return self.endpoint(state.x, times[0], 0.0, state.condition)
        # Flow maps take one time for all.
        wanted = torch.empty_like(state.x)
        for time in times:
            rows = state.t == time
            wanted[rows] = self.endpoint(state.x[rows], time, 0.0, state.condition[rows])
        return wanted


@dataclass(frozen=True, eq=False)
class Imitation(Objective):
    """Trains ``student`` to estimate what ``teacher``'s denoiser does, at any states."""

    student: Denoiser
    teacher: Target
    weight: DenoisingWeight

    def __call__(self, step: Step, state: State) -> Loss:
        with torch.no_grad():
            wanted = self.teacher.denoiser(state.x, state.t, state.condition)
        estimate = self.student(state.x, state.t, state.condition)
        total = denoising_loss(estimate, wanted, self.weight.at(self.student.schedule, state.t))
        return Loss(total, {"imitation": total.detach()})
