r"""Piecewise rectified flow (PeRFlow, Yan et al. 2024, arXiv:2405.07510): reflow inside windows of
time.

The time of a flow is cut into windows [e, k]. A state stands at a window's start k, which is data
with noise, and the teacher's solver carries it to the window's lower edge e. On the line between
both,

    z_t = z_e + (t - e) v,    v = (z_k - z_e) / (k - e),    t uniform in the window,

the student's velocity is regressed on v. A denoiser D of the flow is the velocity (z_t - D) / t, so
that the loss is denoising towards z_t - t v with lambda = 1 / t^2. With the one window [0, 1] a
state is pure noise and its end a sample: that is reflow (``VelocityRegression``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.score_matching import denoising_loss
from fewstep.objectives.trajectories.ladder import check_decreasing, index_among
from fewstep.schedule import RectifiedFlow, expand
from fewstep.solvers.rule import HEUN, Rule
from fewstep.solvers.transition import teacher_step
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True, eq=False)
class PiecewiseVelocity(Objective):
    """Trains ``student``, a denoiser under ``RectifiedFlow``, on states at ``edges[:-1]``, which
    fall to 0; the ``teacher`` under the same schedule takes ``steps`` equal steps of ``rule``
    (EULER or HEUN) through a window.

    Raises ``UserError`` for another schedule, for edges that do not fall to 0, for fewer than one
    step, and for states at other times.
    """

    student: Denoiser
    teacher: Target
    edges: tuple[float, ...]
    steps: int = 4
    rule: Rule = HEUN

    def __post_init__(self) -> None:
        check_decreasing(self.edges, "piecewise velocity's windows")
        if not isinstance(self.student.schedule, RectifiedFlow):
            raise UserError(
                "piecewise velocity: needs a denoiser under RectifiedFlow, got one under "
                f"{type(self.student.schedule).__name__}; wrap it in Rescheduled."
            )
        if self.edges[-1] != 0 or self.steps < 1:
            raise UserError(
                "piecewise velocity: its windows must end at 0 and take at least 1 step of the teacher, got "
                f"{self.edges[-1]:g} and {self.steps}."
            )

    def __call__(self, step: Step, state: State) -> Loss:
        start, edge = self.window(state.t)
        end = self.landed(state)
        velocity = (state.x - end) / expand(start - edge, end)
        low = edge.clamp(min=self.student.schedule.t_min)
        t = low + (start - low) * step.key.uniform("velocity-time", len(start), step.start)
        x_t = end + expand(t - edge, end) * velocity
        wanted = x_t - expand(t, end) * velocity
        total = denoising_loss(self.student(x_t, t, state.condition), wanted, t**-2)
        return Loss(total, {"velocity": total.detach()})

    def window(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(starts, lower edges) of the windows that begin at times t (B,), each (B,), float64."""
        index = index_among(self.edges, t, "piecewise velocity")
        edges = torch.tensor(self.edges, dtype=torch.float64)
        return edges[index], edges[index + 1]

    @torch.no_grad()
    def landed(self, state: State) -> Tensor:
        """Where the teacher's solver arrives at the lower edges, (B, *D)."""
        start, edge = self.window(state.t)
        x = state.x
        # Each sample through its own window, so that all processes call the teacher equally often.
        for index in range(self.steps):
            t, s = (torch.lerp(start, edge, (index + more) / self.steps) for more in (0, 1))
            x = teacher_step(self.rule, self.teacher.denoiser, x, t, s, state.condition)
        return x
