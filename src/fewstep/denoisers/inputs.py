r"""What a network is fed: a factor on x and a noise label, as values.

The conventions of published networks, with r = sigma / alpha the noise level of x_t / alpha:

- ``EDMInputs``: factor on x_t 1 / sqrt(sigma^2 + (sd alpha)^2); label factor log(r) / 4; source
  Karras et al. 2022, Tab. 1.
- ``TimestepInputs``: factor on x_t 1; label count t - offset; source Ho et al. 2020.
- ``FlowInputs``: factor on x_t 1 / (alpha + sigma); label count sigma / (alpha + sigma); source
  Esser et al. 2024.
- ``VPInputs``: factor on x_t 1 / sqrt(sigma^2 + alpha^2); label (steps - 1) u, where r(u) = r;
  source Song et al. 2021; Karras et al. 2022, Tab. 1.
- ``VEInputs``: factor on x_t 1 / alpha; label log(r / 2); source Song et al. 2021; Karras et al.
  2022, Tab. 1.
- ``IDDPMInputs``: factor on x_t 1 / sqrt(sigma^2 + alpha^2); label the index whose level is nearest
  to r; source Nichol and Dhariwal 2021; Karras et al. 2022.

Those by r need a finite one, so alpha > 0.
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
from fewstep.schedule import Schedule
from fewstep.values import Positive, Value

_Steps = Annotated[int, at.Interval(ge=2, le=100_000)]


@dataclass(frozen=True)
class Inputs(Value, abc.ABC):
    """What a network is fed."""

    def check(self, schedule: Schedule) -> None:
        """Raises ``UserError`` when these inputs are not finite on the whole of the schedule's
        range; most are.
        """
        return

    @abc.abstractmethod
    def scale_and_label(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """(the factor on x, the noise label), each (B,), float64."""


class _NeedsSignal(Inputs):
    """Inputs whose label is a function of sigma / alpha."""

    def check(self, schedule: Schedule) -> None:
        if float(schedule.alpha(schedule.t_max)) == 0.0:
            name = type(self).__name__.removesuffix("Inputs")
            raise UserError(
                f"{name}'s inputs cannot be used with {type(schedule).__name__}: sigma / alpha is infinite "
                "where alpha is 0; use TimestepInputs."
            )


@dataclass(frozen=True)
class EDMInputs(_NeedsSignal):
    """x of unit variance, and label_factor log(sigma / alpha) / 4; ``label_factor`` is 1 in EDM,
    and 1000 in consistency models (Song et al. 2023, App. C).
    """

    kind: Literal["edm"] = field(default="edm", kw_only=True)
    sigma_data: Positive = 0.5
    label_factor: Positive = 1.0

    def scale_and_label(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 1 / torch.sqrt(sigma**2 + (self.sigma_data * alpha) ** 2), torch.log(
            sigma / alpha
        ) / 4 * self.label_factor


@dataclass(frozen=True)
class TimestepInputs(Inputs):
    """x as it is, and the discrete index count t - 1 (Ho et al. 2020); for flows, count t with
    ``offset`` 0.
    """

    kind: Literal["timestep"] = field(default="timestep", kw_only=True)
    count: Positive = 1000.0
    offset: float = 1.0

    def scale_and_label(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.count * t - self.offset


@dataclass(frozen=True)
class FlowInputs(Inputs):
    """x as it is on the straight line from x0 to eps, and count sigma / (alpha + sigma): where on
    that line x is, which is what flow transformers are told, whatever shift their times have.
    """

    kind: Literal["flow"] = field(default="flow", kw_only=True)
    count: Positive = 1000.0

    def scale_and_label(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = schedule.sigma(t)
        total = schedule.alpha(t) + sigma
        return 1 / total, self.count * sigma / total


@dataclass(frozen=True)
class VPInputs(_NeedsSignal):
    """x of unit variance (for data of unit variance), and (steps - 1) u, u being the time at which
    the process of rate beta_min + beta_d u has the same sigma / alpha.
    """

    kind: Literal["vp"] = field(default="vp", kw_only=True)
    beta_d: Positive = 19.9
    beta_min: Positive = 0.1
    steps: _Steps = 1000

    def scale_and_label(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        # log(1 + r^2) = beta_d u^2 / 2 + beta_min u, solved for u.
        time = (
            torch.sqrt(self.beta_min**2 + 2 * self.beta_d * torch.log1p((sigma / alpha) ** 2)) - self.beta_min
        ) / self.beta_d
        return 1 / torch.sqrt(sigma**2 + alpha**2), (self.steps - 1) * time

    def level(self, time: float) -> float:
        """sigma / alpha of that process at ``time``."""
        return math.sqrt(math.expm1(self.beta_d * time**2 / 2 + self.beta_min * time))


@dataclass(frozen=True)
class VEInputs(_NeedsSignal):
    """x / alpha as it is, and log(sigma / (2 alpha))."""

    kind: Literal["ve"] = field(default="ve", kw_only=True)

    def scale_and_label(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 1 / alpha, torch.log(0.5 * sigma / alpha)


@dataclass(frozen=True)
class IDDPMInputs(_NeedsSignal):
    """x of unit variance (for data of unit variance), and the index i in [0, steps) of the level
    nearest to sigma / alpha, counted from the lowest.

    The levels are those of the cosine schedule with offset ``c2``, each step's ratio of alpha bars
    not below ``c1`` (Karras et al. 2022, App. C.3.1).
    """

    kind: Literal["iddpm"] = field(default="iddpm", kw_only=True)
    c1: Positive = 0.001
    c2: Positive = 0.008
    steps: _Steps = 1000

    @functools.cached_property
    def levels(self) -> Tensor:
        """(steps + 1,) float64, falling from the highest to 0."""
        bars = (
            torch.sin(0.5 * math.pi * torch.arange(self.steps + 1, dtype=torch.float64) / self.steps / (self.c2 + 1))
            ** 2
        )
        ratios = (bars[:-1] / bars[1:]).clamp(min=self.c1)
        # 1 + u_{j-1}^2 = (1 + u_j^2) / ratio_j and u_steps = 0, so the logarithms add up from the
        # end.
        logs = torch.cumsum(-torch.log(ratios).flip(0), 0).flip(0)
        return torch.cat([torch.sqrt(torch.expm1(logs)), torch.zeros(1, dtype=torch.float64)])

    def scale_and_label(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        nearest = ((sigma / alpha)[:, None] - self.levels.to(t.device)).abs().argmin(dim=1)
        return 1 / torch.sqrt(sigma**2 + alpha**2), (self.steps - 1 - nearest).to(torch.float64)
