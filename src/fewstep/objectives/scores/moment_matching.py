r"""Moment matching along the sampler (Salimans et al. 2024, arXiv:2406.04103, Alg. 2: alternating).

A student of several steps goes from x_t to x_s by the forward process' posterior given its sample x
= G(x_t, t),

    x_s ~ q(x_s given x_t, x),    s < t    (``solvers.transition.ancestral``).

Its samples are those of the data where, among other things, the conditional mean of x at each such
x_s is the teacher's estimate, E[x given x_s] = D_teacher(x_s, s). An auxiliary denoiser D_aux is
trained on the samples and held near the teacher,

    E lambda(s) ( |x - D_aux(x_s, s)|^2 + rho |D_teacher(x_s, s) - D_aux(x_s, s)|^2 ),

whose least is D_aux = (E[x given x_s] + rho D_teacher) / (1 + rho), and the student follows

    E w(s) <x, sg( D_aux(x_s, s) - D_teacher(x_s, s) )>,

where the difference is then (E[x given x_s] - D_teacher) / (1 + rho). rho = 1 is the paper's.

From pure noise of a schedule whose signal vanishes there, x_s is x noised to s, and this is
distribution matching at s, bit for bit: the paper's one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.fakes import FakeScore
from fewstep.objectives.scores.matching import Difference, MatchingWeight
from fewstep.objectives.scores.passes import PASSES, Passes
from fewstep.objectives.scores.score_matching import ScoreMatching, denoising_loss
from fewstep.objectives.trajectories.ladder import check_decreasing
from fewstep.schedule import Schedule
from fewstep.solvers.transition import ancestral
from fewstep.states import State, Step
from fewstep.targets import Target

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Descent:
    """Where the sampler's transitions land: from a time t at one of the next ``reach`` of ``times``
    below it, at the last of them where fewer are left.

    ``times`` decrease and end above 0. Raises ``UserError`` for others, and for a reach below 1.
    """

    times: tuple[float, ...]
    reach: int = 8

    def __post_init__(self) -> None:
        check_decreasing(self.times, "moment matching's times")
        if self.times[-1] == 0 or self.reach < 1:
            raise UserError(
                "moment matching: its times must end above 0, where networks are called, and 'reach' be at least 1, "
                f"got a last time of {self.times[-1]:g} and {self.reach}."
            )

    def below(self, t: Tensor, share: Tensor) -> Tensor:
        """s (B,), float64, of times t (B,), picked by ``share`` (B,) in [0, 1)."""
        times = torch.tensor(self.times, dtype=torch.float64)
        first = (times > t[:, None] - _TOLERANCE).sum(1)
        left = (len(times) - first).clamp(1, self.reach)
        return torch.minimum(times[(first + (share * left).long()).clamp(max=len(times) - 1)], t)

    def landed(self, step: Step, schedule: Schedule, x0: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """(x_s (B, *D), s (B,)) of the samples x0 (B, *D) that were made of a state."""
        s = self.below(state.t, step.key.uniform("moment-time", len(x0), step.start))
        return ancestral(schedule, state.x, x0, state.t, s, step.noise_like("matching-noise", x0)), s


@dataclass(frozen=True, eq=False)
class MomentMatching(Objective):
    """See the module's docstring: what trains the student.

    ``fake``: the auxiliary denoiser, ``target`` the teacher in force, ``passes`` how the estimates
    of both are made.
    """

    student: nn.Module
    fake: Denoiser | FakeScore
    target: Target
    descent: Descent
    weight: MatchingWeight
    passes: Passes = PASSES["separate"]

    def __call__(self, step: Step, state: State) -> Loss:
        x0 = step.run(self.student, state)
        x_s, s = self.descent.landed(step, self.target.denoiser.schedule, x0.detach(), state)
        difference = Difference(self.fake, self.target, self.weight, self.passes)
        return difference.loss(step, x0, x_s, s, state.condition)


@dataclass(frozen=True, eq=False)
class AuxiliaryMoment(ScoreMatching):
    """See the module's docstring: what trains the auxiliary denoiser, ``fake``.

    ``towards`` >= 0: rho. ``times``, ``dropout`` and ``guidance`` of ``ScoreMatching`` do not count
    here. Raises ``UserError`` for a negative rho.
    """

    teacher: Target = field(kw_only=True)
    descent: Descent = field(kw_only=True)
    towards: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.towards >= 0:
            raise UserError(f"moment matching: 'towards' must be at least 0, got {self.towards}.")

    def error(self, step: Step, x0: Tensor, state: State) -> Tensor:
        """The loss on clean samples (B, *D) that were made of a state."""
        schedule = self.fake.schedule
        x_s, s = self.descent.landed(step, schedule, x0, state)
        weight, estimate = self.weight.at(schedule, s), self.fake(x_s, s, state.condition)
        total = denoising_loss(estimate, x0, weight)
        if self.towards == 0:
            return total
        with torch.no_grad():
            held = self.teacher.denoiser(x_s, s, state.condition)
        return total + self.towards * denoising_loss(estimate, held, weight)
