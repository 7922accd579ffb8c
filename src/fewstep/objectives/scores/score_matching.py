r"""Denoising score matching: E lambda(t) | D(x_t, t) - x_0 |^2, x_t = alpha x_0 + sigma eps.

Since score = (alpha D - x_t) / sigma^2, DisBack's Eq. 5 and 7, E | s(x_t, t) - (x_0 - x_t) /
sigma^2 |^2 at alpha = 1, are this loss with lambda = alpha^2 / sigma^4 (``ScoreWeight``). EDM's
weight makes the loss of its network's raw output uniform over noise levels (``EDMWeight``; Karras
et al. 2022, Tab. 1).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.condition import LABELS, Condition, Conditions
from fewstep.denoisers import Denoiser, Guided
from fewstep.objectives.loss import Loss, Objective
from fewstep.schedule import Schedule, expand
from fewstep.states import State, Step
from fewstep.times import TimeDistribution
from fewstep.values import Positive, Value


@dataclass(frozen=True)
class DenoisingWeight(Value, abc.ABC):
    """lambda(t) on the squared error of x0."""

    @abc.abstractmethod
    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        """lambda(t), (B,), float64."""


@dataclass(frozen=True)
class EDMWeight(DenoisingWeight):
    """(sigma^2 + sigma_data^2 alpha^2) / (sigma sigma_data)^2."""

    kind: Literal["edm"] = field(default="edm", kw_only=True)
    sigma_data: Positive = 0.5

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        sigma = schedule.sigma(t)
        return (sigma**2 + (self.sigma_data * schedule.alpha(t)) ** 2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class ScoreWeight(DenoisingWeight):
    """alpha^2 / sigma^4: the squared error of the score, as Eq. 5 and 7 are printed."""

    kind: Literal["score"] = field(default="score", kw_only=True)

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.alpha(t) ** 2 / schedule.sigma(t) ** 4


@dataclass(frozen=True)
class NoiseWeight(DenoisingWeight):
    """alpha^2 / sigma^2: the squared error of the noise (Ho et al. 2020, Eq. 14)."""

    kind: Literal["eps"] = field(default="eps", kw_only=True)

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        return (schedule.alpha(t) / schedule.sigma(t)) ** 2


def denoising_loss(estimate: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    """The mean over samples and dimensions of weight (B,) times the squared error."""
    return (expand(weight, x0) * (estimate - x0).square()).mean()


@dataclass(frozen=True, eq=False)
class Denoising(Objective):
    """Trains ``denoiser`` on states made of data, at their own times: ordinary diffusion
    training.
    """

    denoiser: Denoiser
    weight: DenoisingWeight

    def __call__(self, step: Step, state: State) -> Loss:
        assert state.x0 is not None, "denoising needs states that carry x0"
        estimate = self.denoiser(state.x, state.t, state.condition)
        total = denoising_loss(estimate, state.x0, self.weight.at(self.denoiser.schedule, state.t))
        return Loss(total, {"denoising": total.detach()})


@dataclass(frozen=True, eq=False)
class ScoreMatching(Objective):
    """Trains ``fake``, the score of the student's distribution, on the samples that ``student``
    makes of the states (DisBack, Eq. 5 and 7).

    The samples are noised to times of their own; no gradient reaches the student. ``dropout`` in
    [0, 1]: the share of samples at which ``fake`` is not told the condition that the student was
    asked for, but the unconditional one of ``conditions``, so that it learns the unconditional
    estimate as well, which guidance needs. ``guidance`` >= 0: the scale at which its estimate is
    guided while it is trained (SiD-LSG, Zhou et al. 2024, kappa_1); 1 is no guidance.
    """

    fake: Denoiser
    student: nn.Module
    times: TimeDistribution
    weight: DenoisingWeight
    dropout: float = 0.0
    conditions: Conditions = LABELS
    guidance: float = 1.0

    def __call__(self, step: Step, state: State) -> Loss:
        total = self.error(step, step.sample(self.student, state), state)
        return Loss(total, {"denoising": total.detach()})

    def error(self, step: Step, x0: Tensor, state: State) -> Tensor:
        """The loss on clean samples (B, *D) that were made of a state, with the times and noise of
        the step's place.
        """
        schedule = self.fake.schedule
        t = self.times.draw(schedule, step.key, "fake-time", step.rows, step.start)
        x_t = schedule.add_noise(x0, t, step.noise_like("fake-noise", x0))
        trained = self.fake if self.guidance == 1 else Guided(self.fake, self.guidance, self.conditions)
        return denoising_loss(trained(x_t, t, self._told(step, state.condition)), x0, self.weight.at(schedule, t))

    def _told(self, step: Step, condition: Condition) -> Condition:
        if not self.dropout:
            return condition
        dropped = step.key.uniform("condition-dropout", step.rows, step.start) < self.dropout
        return self.conditions.dropped(condition, dropped)

    @torch.no_grad()
    def lag(self, step: Step, state: State) -> Tensor:
        """The loss on samples that the student makes now, without gradient: what a monitor compares
        with the training loss.
        """
        return self.error(step, self.student(state.x, state.t, state.condition), state)
