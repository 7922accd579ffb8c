"""Jumps from one time to another: what sampling, rollouts and evaluation take."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import Schedule, as_time
from fewstep.solvers.rule import EULER, Rule, solve
from fewstep.solvers.transition import ancestral
from fewstep.times import Grid, RhoGrid


@dataclass(frozen=True, eq=False)
class FlowMap(abc.ABC):
    """Called as ``flow_map(x (B, *D) at t, t, s, condition) -> x at s``, for scalar times."""

    @abc.abstractmethod
    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        """See the class's docstring."""

    def at(self, key: Key, start: int = 0) -> FlowMap:
        """The same map with what it draws bound to a place, for samples ``start`` ... of the global
        batch; itself, for a map that draws nothing.
        """
        return self


@dataclass(frozen=True, eq=False)
class Solver(FlowMap):
    """A solver rule bound to a denoiser: ``steps`` steps on a grid between the two times; to s = 0
    the grid ends at t_min before the last step.
    """

    denoiser: Denoiser
    steps: int
    rule: Rule = EULER
    grid: Grid = field(default_factory=RhoGrid)

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        times = self._times(self.denoiser.schedule, float(t), float(s))
        return solve(self.rule, self.denoiser, x, times, condition)

    def _times(self, schedule: Schedule, first: float, last: float) -> Tensor:
        if last > 0:
            return self.grid.between(schedule, first, last, self.steps + 1)
        return self.grid.times(schedule, self.steps, first)


@dataclass(frozen=True, eq=False)
class Renoise(FlowMap):
    """A few-step student: jumps to its estimate of x_0 and noises it to s (multistep sampling of
    consistency models, Song et al. 2023, Alg. 1).

    The noise of the jump to s is a function of ``key`` and of s, from sample ``start`` on.
    """

    model: nn.Module
    schedule: Schedule
    key: Key
    start: int = 0

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        x0 = self.model(x, as_time(t).expand(len(x)), condition)
        if float(s) == 0:
            return x0
        noise = self.key.normal(f"renoise-{float(s):.12g}", x0.shape, self.start).to(x0)
        return self.noised(x, x0, t, s, noise)

    def noised(self, x: Tensor, x0: Tensor, t: Tensor | float, s: Tensor | float, noise: Tensor) -> Tensor:
        """x_s (B, *D) of the estimate x0 (B, *D) at x (B, *D) and t, by ``noise`` (B, *D)."""
        return self.schedule.add_noise(x0, torch.full((len(x0),), float(s), dtype=torch.float64), noise)

    def at(self, key: Key, start: int = 0) -> Self:
        return replace(self, key=key, start=start)


@dataclass(frozen=True, eq=False)
class Ancestral(Renoise):
    """A few-step student that jumps by the forward process' posterior: to x_s given its estimate of
    x_0 and the x_t that it was asked at (``transition.ancestral``), with the noise of ``Renoise``.
    """

    def noised(self, x: Tensor, x0: Tensor, t: Tensor | float, s: Tensor | float, noise: Tensor) -> Tensor:
        return ancestral(self.schedule, x, x0, t, s, noise)


@dataclass(frozen=True, eq=False)
class Rescaled(FlowMap):
    """A flow map of one schedule as that of another, where both start from pure noise: what couples
    a flow's noise with a teacher's samples.

    Takes unit noise at t = 1 to t = 0 by taking ``scale`` times it through ``flow_map`` from
    ``time`` (KarrasVE: sigma_max, 1). Raises ``UserError`` for any other jump.
    """

    flow_map: FlowMap
    scale: float
    time: float

    def at(self, key: Key, start: int = 0) -> Rescaled:
        """The same, its map bound to a place."""
        return replace(self, flow_map=self.flow_map.at(key, start))

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        if float(t) != 1 or float(s) != 0:
            raise UserError(
                f"a rescaled flow map goes from t = 1 to t = 0 only, not from {float(t):g} to {float(s):g}."
            )
        return self.flow_map(self.scale * x, self.time, 0.0, condition)
