r"""Regression on a solver's endpoint: knowledge distillation (Luhman and Luhman 2021),

    E distance( student(x_t, t), x_0 ),    x_0 the end of the teacher's probability-flow ODE from
    x_t.

The pairs (x_t, x_0) are either stored, made once by many teacher steps, or made on the fly. The
same loss on stored pairs is DMD's regression term (Yin et al. 2024) and the distillation of a
rectified flow into one step (Liu et al. 2022, Sec. 2.2; InstaFlow, Liu et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.objectives.distance import Distance, SquaredL2
from fewstep.objectives.loss import Loss, Objective
from fewstep.solvers import FlowMap
from fewstep.states import State, Step


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
