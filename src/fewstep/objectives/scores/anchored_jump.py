r"""A first jump that follows the teacher to an anchor (DP-DMD, Wu et al. 2026, arXiv:2602.03139).

From x_t, the noise that samples start from, the teacher's probability-flow ODE is at x_s at the
anchor s. The student's estimate should reach the same x_s in one DDIM step, so that

    L = E mean | student(x_t, t) - x0* |^2,    x0* = (x_s - r x_t) / (alpha_s - r alpha_t),    r =
    sigma_s / sigma_t.

Of a flow, x0* is x_t - t v with v = (x_t - x_s) / (t - s), the mean velocity between both, so that
L is t^2 times the regression of velocities. All states have one time, at which t^2 is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.solvers import FlowMap
from fewstep.solvers.transition import x0_of_transition
from fewstep.states import State, Step


@dataclass(frozen=True, eq=False)
class AnchoredJump(Objective):
    """See the module's docstring. ``teacher``: a deterministic flow map; ``anchor``: s, a time
    above 0. Raises ``UserError`` for states of several times, and of a time that is not above s.
    """

    student: Denoiser
    teacher: FlowMap
    anchor: float

    def __call__(self, step: Step, state: State) -> Loss:
        wanted = self.wanted(state)
        total = (step.run(self.student, state) - wanted).square().mean()
        return Loss(total, {"anchor": total.detach()})

    @torch.no_grad()
    def wanted(self, state: State) -> Tensor:
        """x0* (B, *D), without gradient."""
        first = float(state.t.max())
        if float(state.t.min()) != first or not 0 < self.anchor < first:
            raise UserError(
                f"a jump to an anchor at time {self.anchor:.4g} needs states of one time above it, and got times from "
                f"{float(state.t.min()):.4g} to {first:.4g}; give pure noise at the student's first time."
            )
        reached = self.teacher(state.x, first, self.anchor, state.condition)
        return x0_of_transition(self.student.schedule, state.x, reached, state.t, torch.full_like(state.t, self.anchor))
