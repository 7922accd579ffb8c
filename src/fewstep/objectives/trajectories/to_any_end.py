r"""Trajectory consistency: the student gives the same point at any time s for two neighbouring
points of the teacher's trajectory (TCD, Zheng et al. 2024, arXiv:2402.19159).

    E distance( G(x_t, t, s), G_avg(x_u, u, s) ),    x_u one solver step of the teacher from x_t,

u the next time down on a ``Ladder`` and s <= u. G is a trajectory model's jump, a DDIM step with
g(x, t, s) in the place of the estimate, which is the first-order exponential integrator; G_avg is
the model's average, without gradient. At s = u the target is the teacher's point; at s = 0 the loss
is consistency distillation of g(x, t, 0), bit for bit.

Both sides are compared at s itself. Soft consistency (``SoftConsistency``) carries both on to clean
samples, and lets the teacher take several steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.denoisers import TrajectoryDenoiser
from fewstep.errors import UserError
from fewstep.objectives.distance import Distance, SquaredL2
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.trajectories.ladder import Ladder
from fewstep.solvers.rule import HEUN, Rule
from fewstep.solvers.transition import teacher_step
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True, eq=False)
class TrajectoryConsistency(Objective):
    """Trains ``student`` on states at ``ladder.starts``; ``averaged`` is its average, or the
    student itself. ``rule`` is EULER or HEUN.

    ``end`` in [0, 1]: the share of states with s = 0; the others' s is uniform among the ladder's
    times from u down, whose last, t_min, stands for 0. Raises ``UserError`` for another share, for
    a ladder with edges, and for states at other times.
    """

    student: TrajectoryDenoiser
    averaged: TrajectoryDenoiser
    teacher: Target
    ladder: Ladder
    rule: Rule = HEUN
    distance: Distance = field(default_factory=SquaredL2)
    end: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.end <= 1 or len(self.ladder.edges) > 1:
            raise UserError(
                "trajectory consistency: 'end' must be a share in [0, 1] and its ladder one piece, got "
                f"{self.end} and {len(self.ladder.edges)} intervals."
            )

    def __call__(self, step: Step, state: State) -> Loss:
        u = self.ladder.below(state.t)[0]
        s = self.until(step, u)
        with torch.no_grad():
            x_u = teacher_step(self.rule, self.teacher.denoiser, state.x, state.t, u, state.condition)
            target = self.averaged.jump(x_u, u, s, state.condition)
        total = self.distance(self.student.jump(state.x, state.t, s, state.condition), target).mean()
        return Loss(total, {"trajectory_consistency": total.detach()})

    def until(self, step: Step, u: Tensor) -> Tensor:
        """s (B,), float64, for the times u (B,) at which the teacher's steps of a step's states
        end.
        """
        ends = torch.tensor([*self.ladder.times[:-1], 0.0], dtype=torch.float64)
        first = (torch.tensor(self.ladder.times, dtype=torch.float64) > u[:, None]).sum(1)
        kind, share = (
            step.key.uniform(f"trajectory-consistency-{name}", len(u), step.start) for name in ("kind", "end")
        )
        drawn = ends[first + (share * (len(ends) - first)).long()]
        return torch.where(kind < self.end, 0.0, drawn)
