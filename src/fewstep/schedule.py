r"""The forward process x_t = alpha(t) x_0 + sigma(t) eps, eps ~ N(0, I), for t in [0, 1].

alpha(0) = 1 and sigma(0) = 0 exactly: t = 0 is clean data. Networks are called only for t in
[t_min, t_max]. The signal-to-noise ratio is written as log_snr = log(alpha^2 / sigma^2) (Kingma et
al. 2021), which falls strictly with t, and rho = sigma / alpha is the noise level of the same
process seen as variance exploding.

- ``KarrasVE``: alpha(t) 1; sigma(t) sigma_max t (Karras et al. 2022).
- ``DiscreteVP``: alpha(t) sqrt of the running product of 1 - beta; sigma(t) sqrt(1 - alpha^2) (Ho
  et al. 2020); index i is t = (i + 1) / N.
- ``ZeroSNRVP``: the same with alpha rescaled so that alpha(1) = 0 (Lin et al. 2024).
- ``RectifiedFlow``: alpha(t) 1 - t; sigma(t) t (Liu et al. 2022).
- ``ShiftedFlow``: the same line with sigma(t) = s t / (1 + (s - 1) t) (Esser et al. 2024, Eq. 23).

Every function takes t as a tensor of any shape (or a number) and answers in float64 of the same
shape; ``add_noise`` broadcasts t (B,) against x (B, *D) and answers in x's type.
"""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import annotated_types as at
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.values import Contradiction, Positive, Value, name_of


def as_time(t: Tensor | float) -> Tensor:
    """A time as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64)


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Gives a per-sample value (B,) or a scalar () the dimensions and the type of ``like`` (B,
    *D).
    """
    return value.to(like.device, like.dtype).reshape(value.shape + (1,) * (like.ndim - value.ndim))


@dataclass(frozen=True)
class Schedule(Value, abc.ABC):
    """See the module's docstring; final classes below."""

    @property
    @abc.abstractmethod
    def t_min(self) -> float:
        """The smallest time at which networks are called."""

    @property
    def t_max(self) -> float:
        """The largest time at which networks are called."""
        return 1.0

    @abc.abstractmethod
    def alpha(self, t: Tensor | float) -> Tensor:
        """The signal's factor, in [0, 1]."""

    @abc.abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """The noise's factor, >= 0."""

    @abc.abstractmethod
    def alpha_rate(self, t: Tensor | float) -> Tensor:
        """d alpha / d t."""

    @abc.abstractmethod
    def sigma_rate(self, t: Tensor | float) -> Tensor:
        """d sigma / d t."""

    @abc.abstractmethod
    def time_of(self, log_snr: Tensor | float) -> Tensor:
        """The inverse of ``log_snr``."""

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(alpha^2 / sigma^2): plus infinity at t = 0, minus infinity where alpha = 0."""
        return 2.0 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def rho(self, t: Tensor | float) -> Tensor:
        """sigma / alpha."""
        return self.sigma(t) / self.alpha(t)

    def time_at_sigma(self, sigma: Tensor | float) -> Tensor:
        """The time at which rho = sigma / alpha equals ``sigma`` (for KarrasVE, the noise level
        itself).
        """
        return self.time_of(-2.0 * torch.log(as_time(sigma)))

    @property
    def prior_scale(self) -> float:
        """The standard deviation of the noise from which sampling starts at t_max, for data of unit
        order.
        """
        return float(self.sigma(self.t_max))

    @property
    def timesteps(self) -> int:
        """N, of a schedule whose times are published as timesteps 0 to N - 1; 0 for another."""
        return 0

    def time_at_timestep(self, timestep: int) -> float:
        """(timestep + 1) / N; raises ``UserError`` for what is no timestep of the schedule."""
        if not self.timesteps:
            raise UserError(f"a '{name_of(self)}' schedule has no timesteps; name a noise level instead.")
        if not 0 <= timestep < self.timesteps:
            raise UserError(
                f"timestep {timestep} is none of the '{name_of(self)}' schedule's, which are 0 to "
                f"{self.timesteps - 1}; name one of these."
            )
        return (timestep + 1) / self.timesteps

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """alpha(t) x0 + sigma(t) noise; x0 and noise (B, *D), t (B,) or ()."""
        t = as_time(t)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise


@dataclass(frozen=True)
class KarrasVE(Schedule):
    """Variance exploding: sigma = sigma_max t, trained for sigma in [sigma_min, sigma_max] (Karras
    et al. 2022, Tab. 1).
    """

    kind: Literal["karras-ve"] = field(default="karras-ve", kw_only=True)
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_min < self.sigma_max:
            raise Contradiction(
                f"KarrasVE: 'sigma_min' must be below 'sigma_max', got {self.sigma_min} and {self.sigma_max}."
            )

    @property
    def t_min(self) -> float:
        return self.sigma_min / self.sigma_max

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_max * as_time(t)

    def alpha_rate(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma_rate(self, t: Tensor | float) -> Tensor:
        return torch.full_like(as_time(t), self.sigma_max)

    def time_of(self, log_snr: Tensor | float) -> Tensor:
        return torch.exp(-0.5 * as_time(log_snr)) / self.sigma_max


@dataclass(frozen=True)
class DiscreteVP(Schedule):
    """Variance preserving, from N discrete betas.

    log alpha is piecewise linear between the knots t = (i + 1) / N (beta is constant between them),
    so that the published indices are met exactly and every time in between is defined. ``betas``:
    ``linear`` (Ho et al. 2020), ``scaled_linear`` (Stable Diffusion: linear in the square root),
    ``cosine`` (Nichol and Dhariwal 2021, Eq. 17, betas capped at 0.999; beta_start and beta_end are
    not used).
    """

    kind: Literal["discrete-vp"] = field(default="discrete-vp", kw_only=True)
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: Annotated[int, at.Interval(ge=2, le=100_000)] = 1000
    beta_start: Positive = 1e-4
    beta_end: Positive = 2e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta_start <= self.beta_end < 1:
            raise Contradiction(
                f"DiscreteVP: need beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}."
            )

    @property
    def t_min(self) -> float:
        return 1.0 / self.steps

    @property
    def timesteps(self) -> int:
        return self.steps

    @property
    def prior_scale(self) -> float:
        return 1.0

    @functools.cached_property
    def _log_alphas(self) -> Tensor:
        """log alpha at t = 0, 1/N, ..., 1; (N + 1,), float64."""
        betas = _BETAS[self.betas](self)
        return torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * torch.cumsum(torch.log1p(-betas), 0)])

    def _cell(self, t: Tensor) -> Tensor:
        return (t * self.steps).floor().long().clamp(0, self.steps - 1)

    def _log_alpha(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        knots = self._log_alphas.to(t.device)
        cell = self._cell(t)
        return torch.lerp(knots[cell], knots[cell + 1], t * self.steps - cell)

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sqrt(-torch.expm1(2.0 * self._log_alpha(t)))

    def alpha_rate(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        cell = self._cell(t)
        knots = self._log_alphas.to(t.device)
        return self.alpha(t) * (knots[cell + 1] - knots[cell]) * self.steps

    def sigma_rate(self, t: Tensor | float) -> Tensor:
        # alpha^2 + sigma^2 = 1, so sigma sigma' = -alpha alpha'.
        return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t)

    def time_of(self, log_snr: Tensor | float) -> Tensor:
        # alpha^2 = sigmoid(log_snr)
        return self._time_at(-0.5 * torch.nn.functional.softplus(-as_time(log_snr)))

    def _time_at(self, log_alpha: Tensor) -> Tensor:
        """The inverse of ``_log_alpha``, a decreasing piecewise linear function."""
        knots = self._log_alphas.to(log_alpha.device)
        cell = (torch.searchsorted(-knots, -log_alpha.contiguous()) - 1).clamp(0, self.steps - 1)
        return (cell + (log_alpha - knots[cell]) / (knots[cell + 1] - knots[cell])) / self.steps


@dataclass(frozen=True)
class ZeroSNRVP(DiscreteVP):
    """``DiscreteVP`` whose last step has no signal: from t = 1 / N on, alpha is moved and scaled so
    that it keeps its first value and ends at 0 (Lin et al. 2024, Alg. 1).

    Below t = 1 / N, where there is no published index, it is ``DiscreteVP``'s.
    """

    kind: Literal["zero-snr-vp"] = field(default="zero-snr-vp", kw_only=True)  # type: ignore[assignment]

    def alpha(self, t: Tensor | float) -> Tensor:
        lost, first, _ = self._lost(t)
        return torch.where(lost > 0, torch.exp(first) * (1.0 - lost), super().alpha(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        lost, first, _ = self._lost(t)
        # 1 - alpha^2 = (1 - alpha) (1 + alpha), with no difference of near numbers.
        square = (torch.exp(first) * lost - torch.expm1(first)) * (1.0 + self.alpha(t))
        return torch.where(lost > 0, torch.sqrt(square), super().sigma(t))

    def alpha_rate(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        lost, _, whole = self._lost(t)
        knots, cell = self._log_alphas.to(t.device), self._cell(t)
        rate = super().alpha(t) * (knots[cell + 1] - knots[cell]) * self.steps
        return torch.where(lost > 0, rate / whole, rate)

    def _lost(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """The share that t has lost of the signal of t = 1 / N; log alpha of t = 1 / N; and the
        share that ``DiscreteVP`` has lost at t = 1.
        """
        log_alpha = self._log_alpha(t)
        knots = self._log_alphas.to(log_alpha.device)
        whole = -torch.expm1(knots[-1] - knots[1])
        return -torch.expm1(log_alpha - knots[1]) / whole, knots[1], whole

    def _time_at(self, log_alpha: Tensor) -> Tensor:
        _, first, whole = self._lost(1.0)
        first, whole = first.to(log_alpha.device), whole.to(log_alpha.device)
        plain = first + torch.log1p(torch.expm1(log_alpha - first) * whole)
        return super()._time_at(torch.where(log_alpha < first, plain, log_alpha))


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight interpolation x_t = (1 - t) x_0 + t eps (Liu et al. 2022); alpha(1) = 0."""

    kind: Literal["rectified-flow"] = field(default="rectified-flow", kw_only=True)
    epsilon: Annotated[float, at.Interval(gt=0, lt=1)] = 1e-3

    @property
    def t_min(self) -> float:
        return self.epsilon

    def alpha(self, t: Tensor | float) -> Tensor:
        return 1.0 - as_time(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        return as_time(t).clone()

    def alpha_rate(self, t: Tensor | float) -> Tensor:
        return -torch.ones_like(as_time(t))

    def sigma_rate(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(as_time(t))

    def time_of(self, log_snr: Tensor | float) -> Tensor:
        # log((1 - t)^2 / t^2) = log_snr
        return torch.sigmoid(-0.5 * as_time(log_snr))


@dataclass(frozen=True)
class ShiftedFlow(Schedule):
    """The straight interpolation x_t = (1 - sigma) x_0 + sigma eps, of which equal times go more
    slowly where there is more noise: sigma(t) = s t / (1 + (s - 1) t) with s = ``shift`` (Esser et
    al. 2024, Eq. 23).

    So whatever is said in times is shifted: an even grid, a draw of times between two bounds, a
    student's steps. s = 1 is ``RectifiedFlow``. Flux and others let s = e^mu grow with the number
    of tokens.
    """

    kind: Literal["shifted-flow"] = field(default="shifted-flow", kw_only=True)
    shift: Annotated[float, at.Interval(ge=1e-3, le=1e3)] = 3.0
    epsilon: Annotated[float, at.Interval(gt=0, lt=1)] = 1e-3

    @property
    def t_min(self) -> float:
        return self.epsilon

    def _stretch(self, t: Tensor) -> Tensor:
        return 1.0 + (self.shift - 1.0) * t

    def alpha(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return (1.0 - t) / self._stretch(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return self.shift * t / self._stretch(t)

    def alpha_rate(self, t: Tensor | float) -> Tensor:
        return -self.sigma_rate(t)

    def sigma_rate(self, t: Tensor | float) -> Tensor:
        return self.shift / self._stretch(as_time(t)) ** 2

    def time_of(self, log_snr: Tensor | float) -> Tensor:
        # alpha / sigma = (1 - t) / (s t)
        return torch.sigmoid(-0.5 * as_time(log_snr) - math.log(self.shift))


def _linear(vp: DiscreteVP) -> Tensor:
    return torch.linspace(vp.beta_start, vp.beta_end, vp.steps, dtype=torch.float64)


def _scaled_linear(vp: DiscreteVP) -> Tensor:
    return torch.linspace(vp.beta_start**0.5, vp.beta_end**0.5, vp.steps, dtype=torch.float64) ** 2


def _cosine(vp: DiscreteVP) -> Tensor:
    knots = torch.arange(vp.steps + 1, dtype=torch.float64) / vp.steps
    products = torch.cos((knots + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - products[1:] / products[:-1]).clamp(max=0.999)


_BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "cosine": _cosine}
