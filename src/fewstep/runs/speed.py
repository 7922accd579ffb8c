"""How many times sooner a run reaches a fixed distance than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fewstep.recipes import DistillRecipe, Recipe

MULTIPLES = (1.0, 1.1, 1.25, 1.5, 2.0)
"""Of the slower run's own level, where no levels are given."""


class Convergence(Protocol):
    """What is asked of a run: where it ends, and when it reaches a level."""

    @property
    def level(self) -> float:
        """The distance at which the run ends."""

    def reaches(self, level: float) -> tuple[int, int] | None:
        """(steps, evaluations), None for never."""


@dataclass(frozen=True)
class SpeedUp:
    """At a distance ``level``: the other run's ``steps`` over this run's, and its network
    ``evaluations``; None where either never reaches it, or does before its first step.
    """

    level: float
    steps: float | None
    evaluations: float | None


def speed_ups(one: Convergence, other: Convergence, levels: Sequence[float] = ()) -> list[SpeedUp]:
    """Of ``one`` over ``other``, at the levels given, or at ``MULTIPLES`` of the other's own
    level.
    """
    return [_at(one, other, level) for level in levels or [multiple * other.level for multiple in MULTIPLES]]


def _at(one: Convergence, other: Convergence, level: float) -> SpeedUp:
    ours, theirs = one.reaches(level), other.reaches(level)
    if ours is None or theirs is None:
        return SpeedUp(level, None, None)
    steps, evaluations = (there / here if here and there else None for here, there in zip(ours, theirs, strict=True))
    return SpeedUp(level, steps, evaluations)


DISBACK_SPEED_UPS: Mapping[str, float] = {"cifar10": 5.67, "ffhq64": 1.97, "imagenet64": 1.79}
"""How many times faster DisBack converges than without its path (DisBack, Sec. 5.2 and Fig. 1), by
the first part of the published networks' names; in the paper's iterations.
"""


def published_speed_up(one: Recipe, other: Recipe) -> float | None:
    """The paper's factor of the first over the second: None unless they are DisBack and the same
    without its path, from a teacher of which the paper speaks, with a student of its shape.
    """
    if (
        not (isinstance(one, DistillRecipe) and isinstance(other, DistillRecipe))
        or one.teacher != other.teacher
        or one.teacher.edm_network is None
    ):
        return None
    if (one.target.kind, other.target.kind) != ("backtracked", "fixed") or any(
        each.method.kind != "distribution-matching" or each.student.kind != "copy" for each in (one, other)
    ):
        return None
    return DISBACK_SPEED_UPS.get(one.teacher.edm_network.partition("-")[0])
