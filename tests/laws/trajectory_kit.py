"""Exact solutions against which trajectory objectives are tested: the flow of one Gaussian, and
teachers and students that know it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, GaussianMixture, TimestepInputs, TrajectoryDenoiser
from fewstep.prediction import X0
from fewstep.schedule import Schedule, as_time
from fewstep.solvers import x0_of_transition
from fewstep.states import State


def carried(gaussian: GaussianMixture, x: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
    """The exact flow of one Gaussian for times (B,) or (): x_s = a_s m + S_s S_t^-1 (x - a_t m),
    S^2 = a^2 C + s^2 I.
    """
    schedule, mean = gaussian.schedule, gaussian.means[0]
    t, s = as_time(t).expand(len(x))[:, None], as_time(s).expand(len(x))[:, None]
    spread = [schedule.alpha(time) ** 2 * gaussian.variances[0] + schedule.sigma(time) ** 2 for time in (s, t)]
    turned = (x - schedule.alpha(t) * mean) @ gaussian.vectors[0] * torch.sqrt(spread[0] / spread[1])
    return schedule.alpha(s) * mean + turned @ gaussian.vectors[0].T


class FromFunction(Denoiser):
    """A denoiser of points in the plane from any function of (x, t (B,), condition); ``seen`` lists
    the times of its calls.
    """

    def __init__(self, schedule: Schedule, function: Callable[[Tensor, Tensor, Condition | Tensor | None], Tensor]):
        super().__init__()
        self._schedule = schedule
        self.function = function
        self.seen: list[Tensor] = []

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def classes(self) -> int:
        return 0

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        t = as_time(t).expand(len(x))
        self.seen.append(t)
        return self.function(x, t, condition)


def exact_step(gaussian: GaussianMixture, target: Callable[[Tensor], Tensor]) -> FromFunction:
    """Not the denoiser, but the estimate whose DDIM step from t to ``target(t)`` is the exact
    flow.
    """
    return FromFunction(
        gaussian.schedule,
        lambda x, t, _: x0_of_transition(gaussian.schedule, x, carried(gaussian, x, t, target(t)), t, target(t)),
    )


def rung_below(times: tuple[float, ...], skip: int = 1, least: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The time ``skip`` rungs below each t, at least the last one and ``least``; the last stays.

    From what is nearest, so that rounding does not matter.
    """
    grid = torch.tensor(times, dtype=torch.float64)

    def below(t: Tensor) -> Tensor:
        index = (t[:, None] - grid).abs().argmin(1)
        return grid[(index + skip).clamp(max=len(times) - 1)].clamp(min=least)

    return below


class ExactJump(nn.Module):
    """A network of (x, t, condition, s) whose trajectory model, with ``X0`` and labels that are the
    times themselves, is the exact flow.
    """

    def __init__(self, gaussian: GaussianMixture):
        super().__init__()
        self.gaussian = gaussian

    def forward(self, x: Tensor, t: Tensor, condition: Condition, s: Tensor) -> Tensor:
        same = s == t
        elsewhere = torch.where(same, 0.5 * t, s)
        jumped = x0_of_transition(self.gaussian.schedule, x, carried(self.gaussian, x, t, elsewhere), t, elsewhere)
        return torch.where(same[:, None], self.gaussian(x, t), jumped)


def trajectory(network: nn.Module, schedule: Schedule) -> TrajectoryDenoiser:
    """A trajectory model of points in the plane around a network that emits x0 and is fed x and the
    times as they are.
    """
    return TrajectoryDenoiser(network, schedule, X0(), TimestepInputs(1.0, 0.0), (2,))


class TinyJump(nn.Module):
    """A random network of (x, t, condition, s)."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(4, 16, generator=generator, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(16, 2, generator=generator, dtype=torch.float64))
        self.labels: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, condition: Condition, s: Tensor) -> Tensor:
        self.labels.append((t, s))
        fed = torch.cat([x, t[:, None], s[:, None]], dim=1)
        return torch.tanh(fed @ self.first.to(x)) @ self.last.to(x)


def noisy(gaussian: GaussianMixture, t: Tensor, seed: int = 0) -> State:
    """States of the plane at times (B,) under a Gaussian's schedule, of about the right size, with
    no data behind them.
    """
    noise = torch.randn(len(t), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    schedule = gaussian.schedule
    return State(
        schedule.alpha(t)[:, None] * gaussian.means[0]
        + torch.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)[:, None] * noise,
        t,
    )
