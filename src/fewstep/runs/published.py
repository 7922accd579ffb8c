"""What the papers say of the speed of what a run does: the one place where their factors stand."""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.recipes import DistillRecipe, Recipe, config

DISBACK_SPEED_UPS: Mapping[str, float] = {"cifar10": 5.67, "ffhq64": 1.97, "imagenet64": 1.79}
"""How many times faster DisBack converges than without its path (DisBack, Sec. 5.2 and Fig. 1), by the first part of the published networks' names; in the paper's iterations."""


def published_speed_up(one: Recipe, other: Recipe) -> float | None:
    """The paper's factor of the first over the second: None unless they are DisBack and the same without its path, from a teacher of which the paper speaks, with a student of its shape."""
    if not (isinstance(one, DistillRecipe) and isinstance(other, DistillRecipe)) or one.teacher != other.teacher or not isinstance(one.teacher, config.NvidiaTeacher):
        return None
    if (one.target.kind, other.target.kind) != ("backtracked", "fixed") or any(each.method.kind != "distribution-matching" or each.student.kind != "copy" for each in (one, other)):
        return None
    return DISBACK_SPEED_UPS.get(one.teacher.network.partition("-")[0])
