"""Which times: decreasing grids for solvers, and distributions for training.

A grid of N steps is N + 1 decreasing times; its last is 0, where x is the clean sample, or any
lower bound given. A distribution maps uniform numbers to times by its inverse cumulative function,
so that a draw is one uniform number a sample (see ``random``).

The grids of few-step students are nested: N + 1 points from the first time to t_min, the last of
them replaced by 0 (``nested_times``). A grid that is uniform in a warped time then has the grid of
N / 2 steps as its every second point, as progressive distillation needs: one step of its student is
two of its teacher's (Salimans and Ho 2022, Alg. 2). Grids of a discrete schedule's own timesteps
are in ``timesteps``.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import Schedule
from fewstep.values import Fraction, Positive, Value


@dataclass(frozen=True)
class Grid(Value, abc.ABC):
    """A rule that places N times between two ends."""

    @abc.abstractmethod
    def between(self, schedule: Schedule, first: float, last: float, points: int) -> Tensor:
        """``points`` decreasing times from ``first`` to ``last`` > 0, both included (only ``first``
        when points = 1); float64.
        """

    def times(self, schedule: Schedule, steps: int, first: float | None = None) -> Tensor:
        """A sampling grid: ``steps`` times from ``first`` (t_max unless given) down to t_min, then
        0; (steps + 1,), float64.
        """
        if steps < 1:
            raise UserError(f"a time grid needs at least 1 step, got {steps}.")
        start = schedule.t_max if first is None else first
        inner = self.between(schedule, start, schedule.t_min, steps)
        return torch.cat([inner, inner.new_zeros(1)])

    def starts(self, schedule: Schedule, first: float, steps: int) -> Tensor:
        """The times from which the ``steps`` steps of a few-step student go, of which ``first`` is
        the first; (steps,), float64. See ``nested_times``.
        """
        # A single step has no inner times, so that any grid does, also one that has no first time.
        if steps == 1:
            return torch.tensor([first], dtype=torch.float64)
        return self.between(schedule, first, schedule.t_min, steps + 1)[:-1]

    def stops(self, points: int, steps: int) -> list[int]:
        """The indices, among ``points`` starts, of those at which a trajectory of ``steps`` steps
        stands: the nearest to its own.
        """
        return [round(index * points / steps) for index in range(steps)]


@dataclass(frozen=True)
class RhoGrid(Grid):
    """Uniform in rho^(1/exponent), rho = sigma / alpha (Karras et al. 2022, Eq. 5, exponent 7).

    Not for alpha(first) = 0.
    """

    kind: Literal["rho"] = field(default="rho", kw_only=True)
    exponent: Positive = 7.0

    def between(self, schedule: Schedule, first: float, last: float, points: int) -> Tensor:
        rho = schedule.rho(torch.tensor([first, last], dtype=torch.float64))
        if not torch.isfinite(rho).all():
            raise UserError(f"a rho grid cannot start where alpha is 0 (t = {first}); use the uniform time grid.")
        ends = rho ** (1 / self.exponent)
        levels = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, points, dtype=torch.float64)) ** self.exponent
        return _with_exact_ends(schedule.time_at_sigma(levels), first, last)


@dataclass(frozen=True)
class LogSNRGrid(Grid):
    """Uniform in log_snr (Lu et al. 2022). Not for alpha(first) = 0."""

    kind: Literal["log-snr"] = field(default="log-snr", kw_only=True)

    def between(self, schedule: Schedule, first: float, last: float, points: int) -> Tensor:
        ends = schedule.log_snr(torch.tensor([first, last], dtype=torch.float64))
        if not torch.isfinite(ends).all():
            raise UserError(f"a log-SNR grid cannot start where alpha is 0 (t = {first}); use the uniform time grid.")
        levels = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, points, dtype=torch.float64))
        return _with_exact_ends(schedule.time_of(levels), first, last)


@dataclass(frozen=True)
class UniformGrid(Grid):
    """Uniform in t."""

    kind: Literal["uniform"] = field(default="uniform", kw_only=True)

    def between(self, schedule: Schedule, first: float, last: float, points: int) -> Tensor:
        return torch.linspace(first, last, points, dtype=torch.float64)


def nested_times(grid: Grid, schedule: Schedule, first: float, steps: int) -> Tensor:
    """A few-step student's grid: ``grid.starts(schedule, first, steps)``, then 0; (steps + 1,),
    float64.

    The grid of ``steps`` is every second point of the grid of 2 ``steps``, unlike ``Grid.times``,
    which ends ..., t_min, 0. Raises ``UserError`` for fewer than 1 step, and where the grid has no
    such steps.
    """
    if steps < 1:
        raise UserError(f"a nested time grid needs at least 1 step, got {steps}.")
    inner = grid.starts(schedule, first, steps)
    return torch.cat([inner, inner.new_zeros(1)])


def _with_exact_ends(times: Tensor, first: float, last: float) -> Tensor:
    times[0] = first
    if len(times) > 1:
        times[-1] = last
    return times


@dataclass(frozen=True)
class TimeDistribution(Value, abc.ABC):
    """A distribution of training times, given by its inverse cumulative function."""

    @abc.abstractmethod
    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Times (B,), float64, in [t_min, t_max], from uniform numbers (B,)."""

    def draw(self, schedule: Schedule, key: Key, purpose: str, rows: int, start: int = 0) -> Tensor:
        """Times (rows,) for the samples ``start`` ... of the global batch."""
        return self.quantile(schedule, key.uniform(purpose, rows, start))


@dataclass(frozen=True)
class UniformTimes(TimeDistribution):
    """Uniform in t between two times (the trained range unless given): DMD's, with low = 0.02 and
    high = 0.98.
    """

    kind: Literal["uniform"] = field(default="uniform", kw_only=True)
    low: Fraction | None = None
    high: Fraction | None = None

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        low = schedule.t_min if self.low is None else max(self.low, schedule.t_min)
        high = schedule.t_max if self.high is None else min(self.high, schedule.t_max)
        return low + (high - low) * u


@dataclass(frozen=True)
class LogNormalTimes(TimeDistribution):
    """log rho ~ N(mean, std^2), clipped to the trained range: EDM's, with mean -1.2 and std 1.2
    (Karras et al. 2022, Tab. 1).
    """

    kind: Literal["log-normal"] = field(default="log-normal", kw_only=True)
    mean: float = -1.2
    std: Positive = 1.2

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        # ndtri is infinite at 0, which a 53-bit uniform number can be.
        log_rho = self.mean + self.std * torch.special.ndtri(u.clamp(min=2.0**-54))
        return schedule.time_of(-2.0 * log_rho).clamp(schedule.t_min, schedule.t_max)


@dataclass(frozen=True)
class RhoTimes(TimeDistribution):
    """Uniform in rho^(1/exponent) between two noise levels (the trained range unless given):
    Karras' grid as a distribution.
    """

    kind: Literal["rho"] = field(default="rho", kw_only=True)
    exponent: Positive = 7.0
    low: Positive | None = None
    high: Positive | None = None

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        ends = schedule.rho(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
        low = ends[0] if self.low is None else torch.tensor(self.low, dtype=torch.float64)
        high = ends[1] if self.high is None else torch.tensor(self.high, dtype=torch.float64)
        if not bool(torch.isfinite(high)):
            raise UserError(
                f"rho times cannot reach where alpha is 0 (t = {schedule.t_max}); give an upper noise "
                "level, or use uniform times."
            )
        root = 1 / self.exponent
        level = torch.lerp(low**root, high**root, u) ** self.exponent
        return schedule.time_at_sigma(level).clamp(schedule.t_min, schedule.t_max)


@dataclass(frozen=True)
class GridTimes(TimeDistribution):
    """Uniform over some times, given decreasing and > 0: the inner points of a few-step student's
    grid. Raises ``UserError`` for others, and for times outside the trained range.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.times or self.times[-1] <= 0 or any(s >= t for t, s in pairwise(self.times)):
            raise UserError(
                "GridTimes: needs one or more decreasing times above 0 (a network is not called at 0), got "
                f"{self.times}."
            )

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        if self.times[-1] < schedule.t_min or self.times[0] > schedule.t_max:
            raise UserError(
                f"GridTimes: times must be in the schedule's trained range [{schedule.t_min:g}, "
                f"{schedule.t_max:g}], got {self.times}."
            )
        rising = torch.tensor(self.times[::-1], dtype=torch.float64, device=u.device)
        return rising[(u * len(rising)).long().clamp(max=len(rising) - 1)]


@dataclass(frozen=True)
class LateTimes(TimeDistribution):
    """The part of ``source`` at ``low`` in [0, 1] and above: its draws given that they lie there.

    Raises ``UserError`` where ``source`` has nothing there.
    """

    source: TimeDistribution
    low: float

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        share = self.low_share(schedule)
        return self.source.quantile(schedule, share + (1 - share) * u).clamp(min=self.low)

    def low_share(self, schedule: Schedule) -> float:
        """The share of the source below ``low``, in [0, 1)."""
        below, above = 0.0, 1.0
        # Draws are 53-bit numbers.
        for _ in range(53):
            middle = (below + above) / 2
            late = float(self.source.quantile(schedule, torch.tensor([middle], dtype=torch.float64))) >= self.low
            below, above = (below, middle) if late else (middle, above)
        if above == 1.0:
            raise UserError(f"times of training: none of them lie at t = {self.low:.4g} or above; choose later ones.")
        return above
