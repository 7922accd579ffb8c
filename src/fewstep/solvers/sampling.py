"""How a few-step student makes samples: by which jump, along which times.

A value, so that a student's file can carry it, and with it the times of the steps that the student
was made for. Other numbers of steps are the grid's (``times.nested_times``), or refused by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from fewstep.solvers.flow_map import Ancestral, FlowMap, Renoise, Solver
from fewstep.solvers.rule import RULES, solve
from fewstep.solvers.stochastic import Gamma, Strategic
from fewstep.times import Grid, RhoGrid, UniformGrid, nested_times
from fewstep.timesteps import MOST_TIMESTEPS
from fewstep.values import name_of

MOST_STEPS = MOST_TIMESTEPS


def grids_by_name() -> dict[str, Grid]:
    """The grids that need no more than their name."""
    return {
        kind: cls()
        for kind, cls in Grid.family().items()
        if all(each.default is not dataclasses.MISSING for each in dataclasses.fields(cls))
    }


def grid_said(grid: Grid) -> str | dict[str, Any]:
    """A grid as recipes and files say it: by its name where that is all, else by its
    description.
    """
    return name_of(grid) if grids_by_name().get(name_of(grid)) == grid else grid.describe()


def grid_from(said: Any) -> Grid:
    """The grid of ``grid_said``; raises ``UserError`` for what names none."""
    if isinstance(said, Mapping):
        return Grid.from_description(said)
    known = grids_by_name()
    if not isinstance(said, str) or said not in known:
        raise UserError(f"grid: must be one of {', '.join(known)}, or a mapping with its kind, got {said!r:.80}.")
    return known[said]


@dataclass(frozen=True)
class Sampling:
    """``jump``: ``renoise`` (to the estimate of x_0, and noised again: consistency models, DMD2),
    ``ancestral`` (likewise, but by the posterior given the last point as well: moment matching),
    ``ddim`` (deterministic: progressive distillation, flows), ``gamma`` or ``strategic``
    (trajectory models, as CTM and as TCD sample them; ``gamma`` in [0, 1]). ``grid``: of the nested
    times; ``steps``: how many unless told otherwise; ``guidance``: the scale given to a student
    that was conditioned on it. ``rule``: the solver of whole samples for ``ddim``, ``euler`` (DDIM
    itself) or ``dpm2m``, as DDIL samples its students (App. A). ``held``: the times of these
    ``steps``, falling and above 0, as a student's file holds them; empty where it does not (files
    of earlier versions), and they are the grid's.
    """

    jump: str = "renoise"
    grid: Grid = field(default_factory=RhoGrid)
    steps: int = 1
    gamma: float = 0.0
    guidance: float | None = None
    rule: str = "euler"
    held: tuple[float, ...] = ()

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
        if self.jump not in _JUMPS or self.steps < 1 or not 0 <= self.gamma <= 1:
            raise UserError(
                f"sampling: 'jump' must be one of {', '.join(_JUMPS)}, 'steps' at least 1 and 'gamma' in [0, 1], "
                f"got {self.jump}, {self.steps} and {self.gamma}."
            )
        if self.held and (
            len(self.held) != self.steps
            or not all(type(time) in (int, float) and 0 < time <= 1 for time in self.held)
            or any(t <= s for t, s in pairwise(self.held))
        ):
            raise UserError(
                f"sampling: its times must be {self.steps} falling numbers in (0, 1], one for each of its steps, "
                f"got {self.held!r:.80}."
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
        """Decreasing times (steps + 1,) from ``first`` to 0: those that it holds, for as many
        steps, else its grid's, of which the grid of N / 2 steps is every second point of the grid
        of N.

        Raises ``UserError`` where the grid has no such steps from there.
        """
        count = self.steps if steps is None else steps
        if len(self.held) == count and self.held[0] == first:
            return torch.tensor([*self.held, 0.0], dtype=torch.float64)
        return nested_times(self.grid, schedule, first, count)

    def holding(self, schedule: Schedule, first: float) -> Sampling:
        """The same, with the times of its own steps from ``first`` on."""
        return replace(self, held=tuple(self.times(schedule, first)[:-1].tolist()))

    def condition(self, condition: Condition, x: Tensor) -> Condition:
        """The condition of the samples x (B, *D) with the guidance scale, for a student that was
        conditioned on one.
        """
        if self.guidance is None:
            return condition
        return dataclasses.replace(condition, guidance=torch.full((len(x),), self.guidance, device=x.device))

    def describe(self) -> dict[str, Any]:
        """Plain values from which ``from_description`` rebuilds it."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        times = own.pop("held")
        return {**own, "grid": grid_said(self.grid), **({"times": list(times)} if times else {})}

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Sampling:
        """What ``describe`` gave.

        Raises ``UserError`` for values that are none, and ``TypeError`` for unknown ones.
        """
        own = dict(values)
        times = own.pop("times", ())
        if not isinstance(times, (list, tuple)):
            raise UserError(f"sampling: its times must be a list, got {times!r:.80}.")
        return cls(**{**own, "grid": grid_from(own.get("grid", "rho")), "held": tuple(times)})


_JUMPS: Mapping[str, Callable[[Any, Schedule, Sampling], FlowMap]] = {
    "renoise": lambda model, schedule, _: Renoise(model, schedule, Key(0)),
    "ancestral": lambda model, schedule, _: Ancestral(model, schedule, Key(0)),
    # A single step has no inner points, so that any grid does; the uniform one exists everywhere.
    "ddim": lambda model, _, __: Solver(model, 1, grid=UniformGrid()),
    "gamma": lambda model, _, sampling: Gamma(model, sampling.gamma),
    "strategic": lambda model, _, sampling: Strategic(model, sampling.gamma),
}
