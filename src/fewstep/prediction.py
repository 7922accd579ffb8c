r"""What a raw network emits, as two numbers: x0 = skip(t) x_t + out(t) F.

With a = alpha(t), s = sigma(t), x_t = a x0 + s eps, and sd the data's standard deviation:

- x0: skip 0; out 1.
- eps: skip 1 / a; out -s / a.
- score = -eps / s: skip 1 / a; out s^2 / a.
- s score = -eps: skip 1 / a; out s / a.
- v = a eps - s x0: skip a / (a^2 + s^2); out -s / (a^2 + s^2).
- velocity u = a' x0 + s' eps: skip -s' / (s a' - a s'); out s / (s a' - a s').
- flow eps - x0: skip 1 / (a + s); out -s / (a + s).
- F of EDM: skip sd^2 a / (s^2 + sd^2 a^2); out s sd / sqrt(s^2 + sd^2 a^2).
- F of consistency models: skip sd^2 / (a ((r - r_min)^2 + sd^2)); out (r - r_min) sd / sqrt(r^2 +
  sd^2).

In the last row r = s / a. There are no pairwise converters: any emission gives x0, and ``target``
inverts the same two numbers into what the network should have emitted. eps and score say nothing of
x0 where a = 0 and are refused there. Sources: Salimans and Ho 2022 (v), Liu et al. 2022 (velocity),
Karras et al. 2022, Eq. 7 (F, here for any alpha).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.schedule import Schedule, expand
from fewstep.values import Positive, Value, kind_of


@dataclass(frozen=True)
class Prediction(Value, abc.ABC):
    """See the module's docstring; final classes below."""

    @abc.abstractmethod
    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(skip, out), each of t's shape, float64."""

    def to_x0(self, schedule: Schedule, emitted: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x0 (B, *D) from what the network emitted (B, *D) at x (B, *D) and t (B,)."""
        skip, out = self.coefficients(schedule, t)
        return expand(skip, x) * x + expand(out, x) * emitted

    def target(self, schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """What the network should emit at x (B, *D) and t (B,) so that ``to_x0`` gives x0; the
        inverse in ``emitted``.
        """
        skip, out = self.coefficients(schedule, t)
        return (x0 - expand(skip, x) * x) / expand(out, x)

    def check(self, schedule: Schedule) -> None:
        """Raises ``UserError`` when this prediction cannot be used on the whole of the schedule's
        range; most can.
        """
        return


class _NeedsSignal(Prediction):
    """Predictions from which x0 cannot be told where alpha = 0."""

    def check(self, schedule: Schedule) -> None:
        if float(schedule.alpha(schedule.t_max)) == 0.0:
            raise UserError(
                f"{kind_of(type(self))} prediction cannot be used with {type(schedule).__name__}, whose "
                "alpha is 0 at t = "
                f"{schedule.t_max}: x0 cannot be told from it there; use v, velocity or x0 prediction."
            )


@dataclass(frozen=True)
class X0(Prediction):
    """The network emits the clean sample."""

    kind: Literal["x0"] = field(default="x0", kw_only=True)

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha = schedule.alpha(t)
        return torch.zeros_like(alpha), torch.ones_like(alpha)


@dataclass(frozen=True)
class Epsilon(_NeedsSignal):
    """The network emits the noise (Ho et al. 2020)."""

    kind: Literal["eps"] = field(default="eps", kw_only=True)

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha = schedule.alpha(t)
        return 1 / alpha, -schedule.sigma(t) / alpha


@dataclass(frozen=True)
class Score(_NeedsSignal):
    """The network emits the gradient of the log density of x_t (Song et al. 2021)."""

    kind: Literal["score"] = field(default="score", kw_only=True)

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha = schedule.alpha(t)
        return 1 / alpha, schedule.sigma(t) ** 2 / alpha


@dataclass(frozen=True)
class ScaledScore(_NeedsSignal):
    """The network emits sigma times the score, the noise with its sign turned, as NCSN++ does (Song
    et al. 2021; Karras et al. 2022, Tab. 1, VE).
    """

    kind: Literal["scaled-score"] = field(default="scaled-score", kw_only=True)

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha = schedule.alpha(t)
        return 1 / alpha, schedule.sigma(t) / alpha


@dataclass(frozen=True)
class V(Prediction):
    """The network emits alpha eps - sigma x0 (Salimans and Ho 2022)."""

    kind: Literal["v"] = field(default="v", kw_only=True)

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        total = alpha**2 + sigma**2
        return alpha / total, -sigma / total


@dataclass(frozen=True)
class Velocity(Prediction):
    """The network emits d x_t / d t = alpha' x0 + sigma' eps (Liu et al. 2022)."""

    kind: Literal["velocity"] = field(default="velocity", kw_only=True)

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        sigma, sigma_rate = schedule.sigma(t), schedule.sigma_rate(t)
        wronskian = sigma * schedule.alpha_rate(t) - schedule.alpha(t) * sigma_rate
        return -sigma_rate / wronskian, sigma / wronskian


@dataclass(frozen=True)
class Flow(Prediction):
    """The network emits eps - x0: the velocity along the straight line from x0 to eps, whatever the
    times are called (Lipman et al. 2023). Under ``RectifiedFlow`` it is ``Velocity``.
    """

    kind: Literal["flow"] = field(default="flow", kw_only=True)

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        sigma = schedule.sigma(t)
        total = schedule.alpha(t) + sigma
        return 1 / total, -sigma / total


@dataclass(frozen=True)
class EDM(Prediction):
    """The network emits EDM's F, of unit variance at every level (Karras et al. 2022, Tab. 1);
    ``sigma_data`` > 0.
    """

    kind: Literal["edm"] = field(default="edm", kw_only=True)
    sigma_data: Positive = 0.5

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        total = sigma**2 + (self.sigma_data * alpha) ** 2
        return self.sigma_data**2 * alpha / total, sigma * self.sigma_data / torch.sqrt(total)


@dataclass(frozen=True)
class Consistency(_NeedsSignal):
    """The network emits F of a consistency model (Song et al. 2023, App.

    C): x0 is x / alpha itself at sigma / alpha = ``sigma_min``, where ``target`` is therefore not
    defined.
    """

    kind: Literal["consistency"] = field(default="consistency", kw_only=True)
    sigma_data: Positive = 0.5
    sigma_min: Positive = 0.002

    def coefficients(self, schedule: Schedule, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, rho = schedule.alpha(t), schedule.rho(t)
        above = rho - self.sigma_min
        return self.sigma_data**2 / (alpha * (above**2 + self.sigma_data**2)), above * self.sigma_data / torch.sqrt(
            rho**2 + self.sigma_data**2
        )


def score_of(schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The score at x (B, *D) of a denoiser's estimate x0 (B, *D) by Tweedie's formula: (alpha x0 -
    x) / sigma^2.
    """
    return (expand(schedule.alpha(t), x) * x0 - x) / expand(schedule.sigma(t) ** 2, x)
