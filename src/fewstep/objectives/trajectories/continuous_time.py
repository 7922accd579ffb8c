r"""Consistency in continuous time: sCM, distilled (Lu and Song 2024, arXiv:2410.11081, Alg. 1), on
any schedule.

The paper's TrigFlow has x~ = cos(u) x_0 + sin(u) sd eps at the angle u in [0, pi / 2], and the
consistency function f = cos(u) x~ - sin(u) sd F. A denoiser of any schedule is such a function:
with s = sqrt(sd^2 alpha^2 + sigma^2),

    cos u = sd alpha / s,    sin u = sigma / s,    x~ = sd x_t / s,    F = (cos(u) x~ - D(x_t, t)) /
    (sd sin(u)),

so that f is D itself. Along the teacher's trajectory, with eps = (x_t - alpha D_teacher) / sigma,

    d t / d u = s^2 / (sd (sigma' alpha - sigma alpha')),    d x_t / d u = (alpha' D_teacher +
    sigma' eps) d t / d u,
    d x~ / d u = cos(u) sd eps - sin(u) D_teacher,

and d f / d u is the derivative of D along (d x_t, d t): one pass of forward-mode differentiation.
The tangent is

    g = cos(u) d f / d u = -cos(u)^2 (sd F - d x~ / d u) - r cos(u) sin(u) (x~ + sd d F / d u)

with r rising from 0 to 1 over the first ``warmup`` steps (at r = 1 both are equal); it is
normalised to g / (|g| + c), and

    L = E [ exp(w(u)) mean |F - sg(F) - g|^2 - w(u) ],

whose gradient is that of -2 exp(w) <g, F>. w is the learned logarithm of a weight; where it is
best, exp(-w) is the mean square at u. Without it, w = 0: the plain square of the normalised
tangent, as rCM has it (Zheng et al. 2025, arXiv:2510.08431). |g| is a root mean square over
dimensions, so that c = 0.1 means the same for samples of every size (the paper writes a norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.networks.embedding import NoiseEmbedding, start_at_zero
from fewstep.objectives.loss import Loss, Objective
from fewstep.schedule import Schedule, expand
from fewstep.states import State, Step
from fewstep.targets import Target


class LogWeight(nn.Module):
    """The angles u (B,) of a step -> w (B,): a linear function of sines and cosines, 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = NoiseEmbedding(32)
        self.last = nn.Linear(32, 1)
        start_at_zero(self.last)

    def forward(self, angle: Tensor) -> Tensor:
        return self.last(self.waves(angle)).sum(1)


def along_trajectory(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor, rate: Tensor) -> Tensor:
    """d x_t (B, *D) for each unit of a variable of which t's derivative is ``rate`` (B,), on the
    trajectory through x (B, *D) at t (B,) whose clean sample is x0 (B, *D): a teacher's estimate,
    or the sample that x was made of.
    """
    noise = (x - expand(schedule.alpha(t), x) * x0) / expand(schedule.sigma(t), x)
    return expand(schedule.alpha_rate(t) * rate, x) * x0 + expand(schedule.sigma_rate(t) * rate, x) * noise


@dataclass(frozen=True)
class TrigFlow:
    """TrigFlow's coordinates on a schedule; see the module's docstring.

    ``sigma_data`` is sd, the data's standard deviation.
    """

    schedule: Schedule
    sigma_data: float

    def turn(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(cos u, sin u) at times t (B,), float64."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        size = torch.sqrt((self.sigma_data * alpha) ** 2 + sigma**2)
        return self.sigma_data * alpha / size, sigma / size

    def angle(self, t: Tensor) -> Tensor:
        """u (B,), float64."""
        cos, sin = self.turn(t)
        return torch.atan2(sin, cos)

    def position(self, x: Tensor, t: Tensor) -> Tensor:
        """x~ (B, *D) of x (B, *D) at t (B,)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return expand(self.sigma_data / torch.sqrt((self.sigma_data * alpha) ** 2 + sigma**2), x) * x

    def raw(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """F (B, *D) of an estimate x0 (B, *D) at x (B, *D) and t (B,)."""
        cos, sin = self.turn(t)
        return (expand(cos, x) * self.position(x, t) - x0) / expand(self.sigma_data * sin, x)

    def tangents(self, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d x_t / d u (B, *D), d t / d u (B,)) along the trajectory of a teacher whose estimate is
        x0 (B, *D).
        """
        schedule = self.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        alpha_rate, sigma_rate = schedule.alpha_rate(t), schedule.sigma_rate(t)
        rate = ((self.sigma_data * alpha) ** 2 + sigma**2) / (
            self.sigma_data * (sigma_rate * alpha - sigma * alpha_rate)
        )
        return along_trajectory(schedule, x, x0, t, rate), rate

    def drift(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """d x~ / d u (B, *D) along that trajectory."""
        cos, sin = self.turn(t)
        noise = (x - expand(self.schedule.alpha(t), x) * x0) / expand(self.schedule.sigma(t), x)
        return expand(self.sigma_data * cos, x) * noise - expand(sin, x) * x0


@dataclass(frozen=True, eq=False)
class ContinuousConsistency(Objective):
    """See the module's docstring.

    ``warmup`` >= 0 steps of the stage; ``constant``: c, above 0; ``log_weight``: w, owned here, or
    None for w = 0.

    Raises ``UserError`` where the student's estimate at t = 0 is not x itself, by its prediction,
    since F is not finite there.
    """

    student: Denoiser
    teacher: Target
    log_weight: LogWeight | None
    sigma_data: float = 0.5
    warmup: int = 0
    constant: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup < 0 or not self.constant > 0:
            raise UserError(
                "continuous consistency: 'warmup' must be at least 0 and 'constant' above 0, got "
                f"{self.warmup} and {self.constant}."
            )

    @property
    def full_precision(self) -> bool:
        return True

    @property
    def owned(self) -> Sequence[nn.Module]:
        return () if self.log_weight is None else (self.log_weight,)

    def __call__(self, step: Step, state: State) -> Loss:
        flow = TrigFlow(self.student.schedule, self.sigma_data)
        with torch.no_grad():
            target_x0 = self.teacher.denoiser(state.x, state.t, state.condition)
        along = flow.tangents(state.x, target_x0, state.t)
        x0, slope = step.jvp(self.student, state.x, state.t, state.condition, along)
        raw = flow.raw(state.x, x0, state.t)
        tangent = self.tangent(flow, state, raw.detach(), slope, target_x0, step.key.step)
        size = tangent.square().flatten(1).mean(1).sqrt()
        tangent = tangent / expand(size + self.constant, tangent)
        apart = (raw - raw.detach() - tangent).square().flatten(1).mean(1)
        if self.log_weight is not None:
            log_weight = self.log_weight(flow.angle(state.t).to(state.x.device, state.x.dtype))
            apart = log_weight.exp() * apart - log_weight
        total = apart.mean()
        return Loss(total, {"continuous": total.detach(), "tangent": size.mean()})

    def tangent(self, flow: TrigFlow, state: State, raw: Tensor, slope: Tensor, target_x0: Tensor, step: int) -> Tensor:
        """g (B, *D) at a step of the stage, not normalised, from F and d f / d u (B, *D)."""
        cos, _ = flow.turn(state.t)
        stable = -expand(cos**2, raw) * (self.sigma_data * raw - flow.drift(state.x, target_x0, state.t))
        share = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return stable + share * (expand(cos, raw) * slope - stable)
