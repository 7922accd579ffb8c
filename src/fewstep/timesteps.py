"""Grids of a discrete schedule's own timesteps 0 to N - 1, timestep i being t = (i + 1) / N.

- ``TimestepsGrid``: a list, such as DMD2's 999, 749, 499, 249.
- ``TrailingGrid``: evenly spaced from the first timestep down (Lin et al. 2024, Tab. 2).
- ``LeadingGrid``: evenly spaced from the last timestep up (the same table).
- ``LCMGrid``: every so many of evenly spaced timesteps, as ``LCMScheduler`` does.

Each is what diffusers' schedulers make under that name (``timestep_spacing``); halfway between two
timesteps the even one is taken, where diffusers lets rounding errors decide. All but
``LeadingGrid`` nest: the timesteps of N / 2 steps are every second one of those of N, beginning
with the first. A list of n timesteps has n / k steps, every k-th timestep of the list, and k n
steps, k - 1 timesteps evenly between each two of the list; other numbers of steps are refused.

Between any two times, as a teacher takes several steps within one of a student's, the points are
evenly spaced timesteps; of a list, evenly in the places between its timesteps, so that a teacher of
two steps stands where the list of twice as many has its timestep.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal

import annotated_types as bounds
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.schedule import Schedule
from fewstep.times import Grid
from fewstep.values import Contradiction, Few, name_of

MOST_TIMESTEPS = 10_000
Timestep = Annotated[int, bounds.Interval(ge=0, lt=100_000)]


@dataclass(frozen=True)
class DiscreteGrid(Grid, abc.ABC):
    """See the module's docstring; raises ``UserError`` for schedules without timesteps."""

    @abc.abstractmethod
    def timesteps(self, known: int, steps: int, first: int | None = None) -> Sequence[int]:
        """``steps`` falling timesteps of a schedule that has ``known``; from ``first``, where the
        grid itself begins unless given.

        Raises ``UserError`` where the grid has no such steps.
        """

    @property
    def named(self) -> tuple[int, ...]:
        """The timesteps that it names; none where it has a rule."""
        return ()

    def knots(self, known: int) -> tuple[int, ...]:
        """Falling counts, timesteps + 1, between which points are evenly spaced; the last is 0."""
        return (known, 0)

    def between(self, schedule: Schedule, first: float, last: float, points: int) -> Tensor:
        knots = self.knots(self._known(schedule))
        start, end = (_place(knots, _count(schedule, time)) for time in (first, last))
        steps = max(1, points - 1)
        inner = [round(_at(knots, start + (end - start) * Fraction(k, steps))) for k in range(1, steps)]
        counts = [_count(schedule, first), *map(Fraction, inner), _count(schedule, last)][:points]
        if any(a <= b for a, b in pairwise(counts)):
            raise UserError(
                f"a grid of '{name_of(self)}' has no {points} timesteps from t = {first:g} to {last:g}; take fewer "
                "steps there."
            )
        times = [first, *(schedule.time_at_timestep(count - 1) for count in inner), last][:points]
        return torch.tensor(times, dtype=torch.float64)

    def times(self, schedule: Schedule, steps: int, first: float | None = None) -> Tensor:
        if steps < 1:
            raise UserError(f"a time grid needs at least 1 step, got {steps}.")
        if first is not None:
            return self.between(schedule, first, 0.0, steps + 1)
        found = self.timesteps(self._known(schedule), steps)
        return torch.tensor([*map(schedule.time_at_timestep, found), 0.0], dtype=torch.float64)

    def starts(self, schedule: Schedule, first: float, steps: int) -> Tensor:
        known, count = self._known(schedule), _count(schedule, first)
        nearest = round(count) - 1
        if abs(count - (nearest + 1)) > 1e-6:
            raise UserError(
                f"a grid of '{name_of(self)}' begins at a timestep, and t = {first:.6g} lies between two; begin at "
                f"timestep {nearest}."
            )
        found = self.timesteps(known, steps, nearest)
        return torch.tensor([first, *map(schedule.time_at_timestep, found[1:])], dtype=torch.float64)

    def _known(self, schedule: Schedule) -> int:
        if not schedule.timesteps:
            raise UserError(
                f"a grid of '{name_of(self)}' is of a discrete schedule's timesteps, which a '{name_of(schedule)}' "
                "schedule has not; use another grid, such as 'uniform'."
            )
        return schedule.timesteps

    def _refused(self, steps: int, why: str) -> UserError:
        return UserError(f"a grid of '{name_of(self)}' has no {steps} steps: {why}.")


@dataclass(frozen=True)
class TimestepsGrid(DiscreteGrid):
    """The timesteps ``at``, falling."""

    kind: Literal["timesteps"] = field(default="timesteps", kw_only=True)
    at: Annotated[tuple[Timestep, ...], bounds.Len(1, MOST_TIMESTEPS)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(a <= b for a, b in pairwise(self.at)):
            raise Contradiction(f"TimestepsGrid: 'at' must fall, got {_listed(self.at)}.")

    @property
    def named(self) -> tuple[int, ...]:
        return self.at

    def knots(self, known: int) -> tuple[int, ...]:
        listed = tuple(timestep + 1 for timestep in self.at)
        return (*(() if listed[0] >= known else (known,)), *listed, 0)

    def timesteps(self, known: int, steps: int, first: int | None = None) -> Sequence[int]:
        n = len(self.at)
        if self.at[0] >= known:
            raise self._refused(steps, f"it lists timestep {self.at[0]}, and the schedule's are 0 to {known - 1}")
        if first is not None and first != self.at[0]:
            raise self._refused(
                steps, f"it begins at timestep {self.at[0]}, and the samples at {first}; let both begin at one"
            )
        if n % steps and steps % n:
            raise self._refused(
                steps,
                f"it lists {n}, of which a divisor of {n} takes every so many and a multiple has others evenly "
                f"between; take one of these, such as {n}",
            )
        knots = (*(timestep + 1 for timestep in self.at), 0)
        found = [round(_at(knots, Fraction(index * n, steps))) - 1 for index in range(steps)]
        if any(a <= b for a, b in pairwise((*found, -1))):
            raise self._refused(steps, "there are too few timesteps between those that it lists; take fewer")
        return found


@dataclass(frozen=True)
class TrailingGrid(DiscreteGrid):
    """From the first timestep down, the last as far from clean data as from the one before."""

    kind: Literal["trailing"] = field(default="trailing", kw_only=True)

    def timesteps(self, known: int, steps: int, first: int | None = None) -> Sequence[int]:
        count = known if first is None else first + 1
        if steps > count:
            raise self._refused(steps, f"there are {count} timesteps; take no more steps than these")
        return [round(Fraction(count * (steps - index), steps)) - 1 for index in range(steps)]


@dataclass(frozen=True)
class LeadingGrid(DiscreteGrid):
    """From timestep ``offset`` up, whole numbers apart; it begins elsewhere for each number of
    steps, so that it does not nest. ``offset``: diffusers' ``steps_offset``, 1 in Stable Diffusion.
    """

    kind: Literal["leading"] = field(default="leading", kw_only=True)
    offset: Annotated[int, bounds.Interval(ge=0, le=1000)] = 0

    def timesteps(self, known: int, steps: int, first: int | None = None) -> Sequence[int]:
        found = [(steps - 1 - index) * (known // steps) + self.offset for index in range(steps)]
        if steps > known or found[0] >= known:
            raise self._refused(steps, f"there are {known} timesteps, from {self.offset} on; take fewer steps")
        if first is not None and first != found[0]:
            raise self._refused(
                steps, f"these begin at timestep {found[0]}, and the samples at {first}; let both begin at one"
            )
        return found


@dataclass(frozen=True)
class LCMGrid(DiscreteGrid):
    """Of ``points`` evenly spaced timesteps, the last of all among them, every so many: 999, 759,
    499, 259 for four steps. ``points``: diffusers' ``original_inference_steps``, on which an LCM is
    trained.
    """

    kind: Literal["lcm"] = field(default="lcm", kw_only=True)
    points: Few = 50

    def timesteps(self, known: int, steps: int, first: int | None = None) -> Sequence[int]:
        apart = known // self.points
        ladder = [index * apart - 1 for index in range(self.points, 0, -1)]
        if not apart:
            raise self._refused(steps, f"there are {known} timesteps, and it has {self.points} points; take fewer")
        if first is not None and first not in ladder:
            raise self._refused(
                steps,
                f"the samples begin at timestep {first}, which is none of its {self.points} points "
                f"{_listed(ladder)}; begin at one of these",
            )
        ladder = ladder[0 if first is None else ladder.index(first) :]
        if steps > len(ladder):
            raise self._refused(
                steps, f"it has {len(ladder)} points from timestep {ladder[0]} on; take no more steps than these"
            )
        return [ladder[index] for index in self.stops(len(ladder), steps)]

    def stops(self, points: int, steps: int) -> list[int]:
        return [index * points // steps for index in range(steps)]


def _count(schedule: Schedule, time: float) -> Fraction:
    """t N, exact for a timestep's time, of which t is the nearest double."""
    count = Fraction(time) * schedule.timesteps
    whole = round(count)
    return Fraction(whole) if whole / schedule.timesteps == time else count


def _place(knots: Sequence[int], count: Fraction) -> Fraction:
    """Where a count lies among falling knots, as an index and what is beyond it."""
    index = next(i for i, end in enumerate(knots[1:]) if count >= end)
    return index + (knots[index] - count) / (knots[index] - knots[index + 1])


def _at(knots: Sequence[int], place: Fraction) -> Fraction:
    """The count at a place: the inverse of ``_place``."""
    index = min(int(place), len(knots) - 2)
    return knots[index] + (knots[index + 1] - knots[index]) * (place - index)


def _listed(timesteps: Sequence[int]) -> str:
    shown = [str(each) for each in timesteps]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])
