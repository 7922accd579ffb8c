r"""Soft consistency of a trajectory model: a jump from t to s agrees with the teacher to u and a jump from there (Kim et al. 2024, Eq. 9).

For t >= u >= s, all on one grid,

    E distance( G_avg(G(x_t, t, s), s, 0),  G_avg(G_avg(x_u, u, s), s, 0) ),    x_u the teacher's solver from x_t,

compared at clean samples, where distances mean something; G_avg, the model's average, is frozen, and the gradient passes through its outer jump to the student's. The nearer u is
to t, the more is learned from the student's own jump (u the next time down is consistency distillation when s is t_min); u = s is the teacher alone.

For each state, s is uniform among the times below t, then u among those below t and not below s, at most ``max_steps`` of the grid away. The whole loss of the paper adds denoising
of g(x, t, t), which is ``Denoising`` on the same model, and an adversarial term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep import distributed
from fewstep.denoisers import TrajectoryDenoiser
from fewstep.errors import UserError
from fewstep.objectives.distance import Distance, SquaredL2
from fewstep.objectives.ladder import check_decreasing, index_among
from fewstep.objectives.loss import Loss, Objective
from fewstep.solvers.rule import HEUN, Rule
from fewstep.solvers.transition import teacher_step
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True, eq=False)
class SoftConsistency(Objective):
    """Trains ``student`` on states at ``times[:-1]``; ``times`` falls to t_min, ``rule`` is EULER or HEUN, ``max_steps`` >= 1.

    Raises ``UserError`` for an average that is not frozen, for times that do not fall or end at 0, and for states at other times.
    """

    student: TrajectoryDenoiser
    averaged: TrajectoryDenoiser
    teacher: Target
    times: Sequence[float]
    rule: Rule = HEUN
    max_steps: int = 3
    distance: Distance = field(default_factory=SquaredL2)

    def __post_init__(self) -> None:
        check_decreasing(self.times, "soft consistency's times")
        if self.times[-1] == 0 or self.max_steps < 1:
            raise UserError(f"soft consistency: its times must end at t_min, not at 0, and max_steps must be at least 1, got {self.times[-1]:g} and {self.max_steps}.")
        if any(parameter.requires_grad for parameter in self.averaged.parameters()):
            raise UserError("soft consistency: the averaged model must be frozen, since gradients pass through it; give an average of the student, or a frozen copy.")

    def __call__(self, step: Step, state: State) -> Loss:
        now, between, end = self.indices(step, state)
        times = torch.tensor(self.times, dtype=torch.float64)
        t, s = times[now], times[end]
        target = self._target(state, now, between, end)
        apart = self.distance(self.averaged.jump(self.student.jump(state.x, t, s, state.condition), s, 0.0, state.condition), target)
        total = apart.mean()
        return Loss(total, {"soft_consistency": total.detach()})

    def indices(self, step: Step, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The indices in ``times`` of t, u and s, each (B,): t < u <= s, as indices."""
        now = index_among(self.times, state.t, "soft consistency")
        u_end, u_between = (step.place.uniform(purpose, len(now), step.start) for purpose in ("soft-consistency-end", "soft-consistency-between"))
        below = len(self.times) - 1 - now
        end = now + 1 + (u_end * below).long()
        between = now + 1 + (u_between * (end - now).clamp(max=self.max_steps)).long()
        return now, between, end

    @torch.no_grad()
    def _target(self, state: State, now: Tensor, between: Tensor, end: Tensor) -> Tensor:
        times = torch.tensor(self.times, dtype=torch.float64)
        x, at = state.x.clone(), now.clone()
        # As many steps as the sample that goes farthest needs, whichever process it is in: sharded networks must be called equally often by all.
        for _ in range(distributed.largest(int((between - now).max()))):
            # Only those on their way, the others cost nothing; where none is left, one is taken through and not kept.
            rows = (at < between).nonzero()[:, 0]
            if not len(rows):
                teacher_step(self.rule, self.teacher.denoiser, x[:1], times[at[:1] - 1], times[at[:1]], state.condition[torch.tensor([0])])
                continue
            x[rows] = teacher_step(self.rule, self.teacher.denoiser, x[rows], times[at[rows]], times[at[rows] + 1], state.condition[rows])
            at[rows] += 1
        landed = self.averaged.jump(x, times[between], times[end], state.condition)
        return self.averaged.jump(landed, times[end], 0.0, state.condition)
