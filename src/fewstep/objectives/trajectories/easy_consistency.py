r"""Consistency from data alone, from denoising on: easy consistency tuning (ECT, Geng et al. 2024,
arXiv:2406.14548).

Two noise levels of one sample with the same noise stand for two points of a trajectory,

    E lambda(t) | f(x_t, t) - sg f(x_r, r) |^2,    x_t = alpha_t x_0 + sigma_t eps,    x_r = alpha_r
    x_0 + sigma_r eps,

and f(x_0, 0) is x_0. At r = 0 this is denoising, bit for bit; a pretrained denoiser begins there,
and r rises towards t over the run. With rho = sigma / alpha, at stage a = 0, 1, ...,

    rho_r = rho_t max(0, 1 - q^-(a + 1) (1 + k / (1 + exp(b rho_t)))).

No teacher is asked: given x_t, the mean of x_r over the samples it may be made of is one DDIM step
of the exact denoiser.

With another model, ``nearer``, in the place of f at the nearer point, whose estimates below a time
t' are those of a model that was trained before (``Truncated``), this is truncated consistency
(TCM, Lee et al. 2024, arXiv:2410.14895). f is then trained at t >= t' alone, and at t = t' the
nearer point always lies below, which keeps f from being the same everywhere.

A sample's square error, its mean over dimensions, is divided by (itself + c)^p without gradient: p
= 1 / 2 is the gradient of a pseudo-Huber distance up to a factor of 2, p = 0 the plain square.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.score_matching import DenoisingWeight, EDMWeight, denoising_loss
from fewstep.schedule import Schedule
from fewstep.states import State, Step


@dataclass(frozen=True)
class GapCurriculum:
    """r of t at a step of the stage; see the module's docstring.

    ``factor``: q > 1; ``stage``: steps >= 1 in each a; ``widening``: k >= 0, ``falling``: b >= 0;
    ``begun``: the steps >= 0 that it has gone through before, in another stage of a run. Raises
    ``UserError`` for other values.
    """

    factor: float = 2.0
    stage: int = 400
    widening: float = 8.0
    falling: float = 1.0
    begun: int = 0

    def __post_init__(self) -> None:
        rest = (self.widening, self.falling, self.begun)
        if not (self.factor > 1 and self.stage >= 1 and all(value >= 0 for value in rest)):
            raise UserError(
                "gap curriculum: 'factor' must be above 1, 'stage' at least 1, 'widening', 'falling' and 'begun' at "
                f"least 0, got {self.factor}, {self.stage}, {self.widening}, {self.falling} and {self.begun}."
            )

    def below(self, schedule: Schedule, t: Tensor, number: int) -> Tensor:
        """r (B,), float64, for times t (B,) at the step ``number`` >= 0; 0 also where r would lie
        below t_min, where networks are not called.
        """
        rho = schedule.rho(t)
        shrunk = self.factor ** -float((self.begun + number) // self.stage + 1)
        share = 1 - shrunk * (1 + self.widening * torch.sigmoid(-self.falling * rho))
        level = torch.where(share > 0, rho * share, rho)
        r = torch.minimum(schedule.time_at_sigma(level), t)
        return torch.where((share > 0) & (r >= schedule.t_min), r, 0.0)


@dataclass(frozen=True, eq=False)
class EasyConsistency(Objective):
    """Trains ``student`` on states that carry x0 and noise; ``power`` p >= 0, ``constant`` c > 0;
    ``nearer``: what is asked at the nearer point, the student itself unless given.

    Raises ``UserError`` for other values, and for states without x0 and noise.
    """

    student: Denoiser
    curriculum: GapCurriculum
    weight: DenoisingWeight = field(default_factory=EDMWeight)
    power: float = 0.5
    constant: float = 1e-3
    nearer: Denoiser | None = None

    def __post_init__(self) -> None:
        if not (self.power >= 0 and self.constant > 0):
            raise UserError(
                "easy consistency: 'power' must be at least 0 and 'constant' above 0, got "
                f"{self.power} and {self.constant}."
            )

    def __call__(self, step: Step, state: State) -> Loss:
        schedule = self.student.schedule
        target = self.target(state, self.curriculum.below(schedule, state.t, step.key.step))
        estimate = step.run(self.student, state)
        square = (estimate.detach() - target).square().flatten(1).mean(1)
        # Where the samples are, so that the host does not wait for them.
        scale = (square.double() + self.constant) ** -self.power
        total = denoising_loss(estimate, target, self.weight.at(schedule, state.t).to(scale) * scale)
        return Loss(total, {"easy_consistency": square.mean()})

    @torch.no_grad()
    def target(self, state: State, r: Tensor) -> Tensor:
        """f at x_r and r (B,), (B, *D), without gradient; x0 where r = 0."""
        if state.x0 is None or state.noise is None:
            raise UserError(
                "easy consistency: these states carry no clean sample and noise, of which the nearer point is made; "
                "give states made of data, such as ForwardDiffusion."
            )
        schedule = self.student.schedule
        # The network is called for all samples, however many need it: processes must agree.
        called = r.clamp(min=schedule.t_min)
        model = self.student if self.nearer is None else self.nearer
        near = model(schedule.add_noise(state.x0, called, state.noise), called, state.condition)
        inside = (r > 0).to(near.device).view(-1, *[1] * (near.dim() - 1))
        return torch.where(inside, near, state.x0)
