"""How a few-step student makes samples: by which jump, along which times.

Plain values, so that a student's file can carry them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import Schedule
from fewstep.solvers.flow_map import FlowMap, Renoise, Solver
from fewstep.solvers.gamma import Gamma
from fewstep.solvers.rule import RULES, solve
from fewstep.times import Grid, UniformGrid, nested_times

GRIDS: Mapping[str, Grid] = {kind: cls() for kind, cls in Grid.family().items()}


MOST_STEPS = 10_000


@dataclass(frozen=True)
class Sampling:
    """``jump``: ``renoise`` (to the estimate of x_0, and noised again: consistency models, DMD2),
    ``ddim`` (deterministic: progressive distillation, flows) or ``gamma`` (trajectory models;
    ``gamma`` in [0, 1]). ``grid``: of the nested times; ``steps``: how many unless told otherwise;
    ``guidance``: the scale given to a student that was conditioned on it. ``rule``: the solver of
    whole samples for ``ddim``, ``euler`` (DDIM itself) or ``dpm2m``, as DDIL samples its students
    (App. A).
    """

    jump: str = "renoise"
    grid: str = "rho"
    steps: int = 1
    gamma: float = 0.0
    guidance: float | None = None
    rule: str = "euler"

    def __post_init__(self) -> None:
        if (
            type(self.steps) is not int
            or self.steps > MOST_STEPS
            or not all(type(value) in (int, float, NoneType) for value in (self.gamma, self.guidance))
        ):
            raise UserError(
                f"sampling: 'steps' must be a whole number up to {MOST_STEPS:,}, 'gamma' and 'guidance' "
                f"numbers, got {self.steps!r:.40}, {self.gamma!r:.40} and {self.guidance!r:.40}."
            )
        if self.rule not in ("euler", "dpm2m") or (self.rule != "euler" and self.jump != "ddim"):
            raise UserError(
                f"sampling: 'rule' must be 'euler', or 'dpm2m' with the jump 'ddim', got '{self.rule}' with "
                f"'{self.jump}'."
            )
        if self.jump not in _JUMPS or self.grid not in GRIDS or self.steps < 1 or not 0 <= self.gamma <= 1:
            raise UserError(
                f"sampling: 'jump' must be one of {', '.join(_JUMPS)}, 'grid' one of {', '.join(GRIDS)}, "
                "'steps' at least 1 and 'gamma' in [0, 1], "
                f"got {self.jump}, {self.grid}, {self.steps} and {self.gamma}."
            )

    def flow_map(self, model: nn.Module, schedule: Schedule) -> FlowMap:
        """The student as a flow map."""
        return _JUMPS[self.jump](model, schedule, self)

    def sample(
        self, model: nn.Module, key: Key, start: int, state: tuple[Tensor, Condition], schedule: Schedule, times: Tensor
    ) -> Tensor:
        """x_0 (B, *D), not clamped, from a start (x, condition) at ``times[0]``; noise is a
        function of the place, from sample ``start`` of it on.
        """
        x, condition = state
        if self.rule != "euler":
            assert isinstance(model, Denoiser)
            return solve(RULES[self.rule], model, x, times, condition)
        flow_map = self.flow_map(model, schedule).at(key, start)
        for t, s in pairwise(times):
            x = flow_map(x, t, s, condition)
        return x

    def times(self, schedule: Schedule, first: float, steps: int | None = None) -> Tensor:
        """Decreasing times (steps + 1,) from ``first`` to 0; the grid of N / 2 steps is every
        second point of the grid of N.
        """
        return nested_times(GRIDS[self.grid], schedule, first, self.steps if steps is None else steps)

    def condition(self, condition: Condition, x: Tensor) -> Condition:
        """The condition of the samples x (B, *D) with the guidance scale, for a student that was
        conditioned on one.
        """
        if self.guidance is None:
            return condition
        return dataclasses.replace(condition, guidance=torch.full((len(x),), self.guidance, device=x.device))

    def describe(self) -> dict[str, Any]:
        """Plain values from which ``Sampling(**values)`` rebuilds it."""
        return dataclasses.asdict(self)


_JUMPS: Mapping[str, Callable[[Any, Schedule, Sampling], FlowMap]] = {
    "renoise": lambda model, schedule, _: Renoise(model, schedule, Key(0)),
    # A single step has no inner points, so that any grid does; the uniform one exists everywhere.
    "ddim": lambda model, _, __: Solver(model, 1, grid=UniformGrid()),
    "gamma": lambda model, _, sampling: Gamma(model, sampling.gamma),
}
