r"""Distribution matching: the gradient of KL(student || target), averaged over noise levels.

With x = G(z), x_t = alpha x + sigma eps, s = (alpha D(x_t, t) - x_t) / sigma^2 for both denoisers,
DisBack's Eq. 6 (after Luo et al. 2023) is

    grad_theta = E_{t, z, eps} [ w(t) (s_fake(x_t, t) - s_target(x_t, t)) d x_t / d theta ]
               = E [ w(t) alpha^2 / sigma^2 (D_fake - D_target) d x / d theta ].

Only the difference of the two estimates of x0 enters, so a weighting is one factor a sample on
D_fake - D_target:

- ``PlainWeight``: alpha^2 / sigma^2, Eq. 6 as printed (w = 1), the gradient of the KL divergence
  itself;
- ``DiffInstructWeight``: 1, what the published code of Diff-Instruct uses for EDM teachers (its w
  is sigma^2 / alpha^2);
- ``DMDWeight``: 1 / mean |x - D_target|, which evens out the gradient's size over levels and
  samples (Yin et al. 2024, Eq. 8, whose sigma^2 / alpha cancels against the score's);
- ``SDSWeight``: alpha sigma, with a ``Delta`` as fake score: SDS (Poole et al. 2022, Eq. 3), E [
  w(t) (eps_target - eps) d x / d theta ] with their w = sigma^2, since x_t = alpha x + sigma eps =
  alpha D_target + sigma eps_target makes eps_target - eps = alpha / sigma (x - D_target);
- ``ExponentialWeight``: 2 alpha, with a ``Delta``: ADD's distillation loss E c(t) |x -
  sg(D_target)|^2 (Sauer et al. 2023) with c = alpha, whose gradient is 2 c (x - D_target) d x / d
  theta. Equal gradients make SDS the same loss with c = alpha / (2 sigma) w(t).

``fake`` is exchangeable (``fakes``): a learned denoiser, a delta, a stable target field of samples.
The gap between scores that a step reports means convergence only for the first.

The gradient is handed to autograd as the scalar mean_b <g_b, x_b> with g held constant: the student
runs forward and backward once, both denoisers forward once without gradient.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.objectives.loss import Loss, Objective, RootMeanSquare
from fewstep.objectives.scores.fakes import FakeScore, as_fake
from fewstep.objectives.scores.passes import PASSES, Passes
from fewstep.schedule import Schedule, expand
from fewstep.states import State, Step
from fewstep.targets import Target
from fewstep.times import TimeDistribution
from fewstep.values import Value


@dataclass(frozen=True, eq=False)
class Compared:
    """What a step compares: the student's samples ``x0`` (B, *D), noised to ``x_t`` (B, *D) at the
    times ``t`` (B,) of ``schedule``, and the estimates ``target_x0`` and ``fake_x0`` (B, *D) of the
    target and of the fake score there. Without gradients.
    """

    schedule: Schedule
    t: Tensor
    x_t: Tensor
    x0: Tensor
    target_x0: Tensor
    fake_x0: Tensor
    condition: Condition


@dataclass(frozen=True)
class MatchingWeight(Value, abc.ABC):
    """The factor on D_fake - D_target."""

    @abc.abstractmethod
    def at(self, compared: Compared) -> Tensor:
        """(B,), without gradient."""


@dataclass(frozen=True)
class PlainWeight(MatchingWeight):
    """alpha^2 / sigma^2."""

    kind: Literal["plain"] = field(default="plain", kw_only=True)

    def at(self, compared: Compared) -> Tensor:
        return (compared.schedule.alpha(compared.t) / compared.schedule.sigma(compared.t)) ** 2


@dataclass(frozen=True)
class DiffInstructWeight(MatchingWeight):
    """1."""

    kind: Literal["diff-instruct"] = field(default="diff-instruct", kw_only=True)

    def at(self, compared: Compared) -> Tensor:
        return torch.ones_like(compared.t)


@dataclass(frozen=True)
class DMDWeight(MatchingWeight):
    """1 / mean over dimensions of |x - D_target|."""

    kind: Literal["dmd"] = field(default="dmd", kw_only=True)

    def at(self, compared: Compared) -> Tensor:
        return 1 / (compared.x0 - compared.target_x0).abs().flatten(1).mean(1).clamp(min=1e-6)


@dataclass(frozen=True)
class SDSWeight(MatchingWeight):
    """alpha sigma."""

    kind: Literal["sds"] = field(default="sds", kw_only=True)

    def at(self, compared: Compared) -> Tensor:
        return compared.schedule.alpha(compared.t) * compared.schedule.sigma(compared.t)


@dataclass(frozen=True)
class ExponentialWeight(MatchingWeight):
    """2 alpha: more noise counts less in variance preserving and flow; in variance exploding it is
    2 throughout.
    """

    kind: Literal["exponential"] = field(default="exponential", kw_only=True)

    def at(self, compared: Compared) -> Tensor:
        return 2 * compared.schedule.alpha(compared.t)


@dataclass(frozen=True, eq=False)
class Difference:
    """What a student follows: the difference of the ``fake`` score's and the ``target``'s estimates
    at its samples, noised in whatever way.
    """

    fake: Denoiser | FakeScore
    target: Target
    weight: MatchingWeight
    passes: Passes = PASSES["separate"]

    def loss(self, step: Step, x0: Tensor, x_t: Tensor, t: Tensor, condition: Condition) -> Loss:
        """The scalar whose gradient by the samples x0 (B, *D) is the weighted difference at x_t (B,
        *D) and t (B,), which is held constant.
        """
        gradient, gap = self._gradient(step, x0.detach(), x_t, t, condition)
        total = (gradient * x0).sum() / len(x0)
        return Loss(total, {"gap": gap, "gradient": gradient.square().mean().sqrt()}, {"gradient": RootMeanSquare()})

    @torch.no_grad()
    def _gradient(self, step: Step, x0: Tensor, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        target = self.target.denoiser
        schedule = target.schedule
        fake_x0, target_x0 = self.passes.estimates(
            partial(as_fake(self.fake).asked, step, schedule, x_t, t, x0, condition),
            partial(target.asked, x_t, t, condition),
        )
        difference = fake_x0 - target_x0
        gap = relative_gap(schedule, t, difference)
        self.target.observe(schedule.log_snr(t), gap)
        compared = Compared(schedule, t, x_t, x0, target_x0, fake_x0, condition)
        return expand(self.weight.at(compared), x0) * difference, gap.mean()


@dataclass(frozen=True, eq=False)
class DistributionMatching(Objective):
    """See the module's docstring.

    ``fake`` is the score of the student's distribution (a bare denoiser is a ``Learned`` one),
    ``target`` the teacher in force, ``passes`` how the estimates of both are made.
    """

    student: nn.Module
    fake: Denoiser | FakeScore
    target: Target
    times: TimeDistribution
    weight: MatchingWeight
    passes: Passes = PASSES["separate"]

    def __call__(self, step: Step, state: State) -> Loss:
        x0 = step.run(self.student, state)
        schedule = self.target.denoiser.schedule
        t = self.times.draw(schedule, step.key, "matching-time", step.rows, step.start)
        x_t = schedule.add_noise(x0.detach(), t, step.noise_like("matching-noise", x0))
        difference = Difference(self.fake, self.target, self.weight, self.passes)
        return difference.loss(step, x0, x_t, t, state.condition)


def relative_gap(schedule: Schedule, t: Tensor, difference: Tensor) -> Tensor:
    """How far two estimates of x0 are apart, (B,): their mean squared difference times 1 + alpha^2
    / sigma^2.

    The factor makes levels comparable: at small noise, estimates can differ only by the order of
    sigma; at large noise, by the order of the data.
    """
    rho_squared = (schedule.sigma(t) / schedule.alpha(t)) ** 2
    apart = difference.square().flatten(1).mean(1).double()
    return apart * (1 + 1 / rho_squared).to(apart)
