r"""Progressive distillation: one step of the student is two DDIM steps of the teacher (Salimans and
Ho 2022, Alg. 2).

From x_t the teacher goes to t' with the estimate D_1 = D(x_t, t), and from x_t' to s with D_2 =
D(x_t', t'). The student's estimate should reach the same x_s in one DDIM step; with r = sigma_s /
sigma_t,

    target = (x_s - r x_t) / (alpha_s - r alpha_t)                              (Salimans and Ho
    2022, App. G; Garrepalli et al. 2024, Eq. 3)
           = (1 - w) D_1 + w D_2,    w = (alpha_s - r' alpha_t') / (alpha_s - r alpha_t),    r' =
           sigma_s / sigma_t'.

The second line, the first with both steps put in, is what is computed: on fine grids the first is a
difference of nearly equal numbers. At s = 0, w = 1 and the target is D_2. The loss is

    E lambda(t) mean | student(x_t, t) - target |^2,    lambda one of ``TruncatedSNR`` max(1,
    alpha^2 / sigma^2) and ``SNRPlusOne`` 1 + alpha^2 / sigma^2 (ibid., Sec. 4).

The student's grid has every second time of the teacher's (``nested_times``). Repeating this with
the last student as teacher halves the steps each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.score_matching import DenoisingWeight, denoising_loss
from fewstep.objectives.trajectories.ladder import check_decreasing, index_among
from fewstep.schedule import Schedule, expand
from fewstep.solvers.transition import ddim_between
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True)
class TruncatedSNR(DenoisingWeight):
    """max(1, alpha^2 / sigma^2)."""

    kind: Literal["truncated-snr"] = field(default="truncated-snr", kw_only=True)

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        return ((schedule.alpha(t) / schedule.sigma(t)) ** 2).clamp(min=1.0)


@dataclass(frozen=True)
class SNRPlusOne(DenoisingWeight):
    """1 + alpha^2 / sigma^2."""

    kind: Literal["snr+1"] = field(default="snr+1", kw_only=True)

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        return 1.0 + (schedule.alpha(t) / schedule.sigma(t)) ** 2


@dataclass(frozen=True, eq=False)
class ProgressiveDistillation(Objective):
    """Trains ``student`` on states at ``times[:-1]``; ``teacher`` takes the steps of ``fine``.

    ``times`` (N + 1) falls to 0, ``fine`` (2 N + 1) has a time between each two of them. Conditions
    are passed on unchanged: for a student that is conditioned on the guidance scale the teacher is
    ``Guided(teacher, None)`` (Meng et al. 2023). Raises ``UserError`` for grids that do not nest,
    and for states at other times than the student's.
    """

    student: Denoiser
    teacher: Target
    times: Sequence[float]
    fine: Sequence[float]
    weight: DenoisingWeight = field(default_factory=TruncatedSNR)

    def __post_init__(self) -> None:
        check_decreasing(self.times, "progressive distillation's times")
        check_decreasing(self.fine, "progressive distillation's fine times")
        nested = len(self.fine) == 2 * len(self.times) - 1 and all(
            abs(a - b) <= 1e-9 for a, b in zip(self.fine[::2], self.times, strict=True)
        )
        if not nested or self.times[-1] != 0:
            raise UserError(
                f"progressive distillation: the student's {len(self.times) - 1} steps down to 0 must each "
                f"be two of the teacher's {len(self.fine) - 1}; make both grids with nested_times."
            )

    def __call__(self, step: Step, state: State) -> Loss:
        target = self.target(state)
        estimate = step.run(self.student, state)
        total = denoising_loss(estimate, target, self.weight.at(self.student.schedule, state.t))
        return Loss(total, {"progressive": total.detach()})

    @torch.no_grad()
    def target(self, state: State) -> Tensor:
        """What the student should estimate at a state, (B, *D), without gradient."""
        index = index_among(self.times, state.t, "progressive distillation")
        fine = torch.tensor(self.fine, dtype=torch.float64)
        t, between, s = fine[2 * index], fine[2 * index + 1], fine[2 * index + 2]
        teacher = self.teacher.denoiser
        schedule = teacher.schedule
        first = teacher(state.x, t, state.condition)
        second = teacher(ddim_between(schedule, state.x, first, t, between), between, state.condition)
        part, whole = (
            schedule.alpha(s) - schedule.sigma(s) / schedule.sigma(since) * schedule.alpha(since)
            for since in (between, t)
        )
        return torch.lerp(first, second, expand(part / whole, first).expand_as(first))
