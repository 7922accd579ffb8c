"""Runs beside one another: how many network evaluations each needs to reach the others' level."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any, TypeGuard

from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.recipes import DistillRecipe
from fewstep.runs.speed import published_speed_up, speed_ups
from fewstep.runs.yardstick import check_comparable
from fewstep.training.reporting.log import read_log

_KEYS = ("step", "evaluations", "fd")
_SHARES = ("prompt_diversity_ratio", "class_diversity_ratio")
# Above all that a run counts, and what a float holds exactly.
_LARGEST = 2**53


@dataclass(frozen=True)
class Measured:
    """The curve of one run: Frechet distance ``fd`` at ``steps`` and ``evaluations``; ``level`` is
    the median of its last quarter, never a minimum.

    ``kept``: the step of the best student that the run kept and its distance on the curve, whose
    noise did not choose it; None where the run kept none. ``of_best``: whether that distance is the
    run's level. ``breadth``: recall, coverage and share of the teacher's diversity of its student
    as ``evaluate`` found them; empty where there is nothing that can be read.
    """

    name: str
    steps: tuple[int, ...]
    evaluations: tuple[int, ...]
    fd: tuple[float, ...]
    kept: tuple[int, float] | None = None
    of_best: bool = False
    breadth: Mapping[str, float] = field(default_factory=dict)

    @property
    def level(self) -> float:
        """The median distance over the last quarter of the run's steps, or that of the best
        student.
        """
        if self.of_best and self.kept is not None:
            return self.kept[1]
        return statistics.median(
            fd for step, fd in zip(self.steps, self.fd, strict=True) if step >= 0.75 * self.steps[-1]
        )

    def reaches(self, level: float) -> tuple[int, int] | None:
        """(steps, evaluations) from which the distance stays at or below a level for two
        measurements in a row (or at the last), None if it never does.
        """
        for index, fd in enumerate(self.fd):
            if fd <= level and all(later <= level for later in self.fd[index + 1 : index + 2]):
                return self.steps[index], self.evaluations[index]
        return None


@dataclass(frozen=True)
class Comparison:
    """The curves of several runs.

    ``notes``: what of their being comparable cannot be checked, a sentence each.

    ``levels``: distances at which their speed is compared, multiples of each run's own unless
    given. ``published``: a paper's speed-up, by the names of two runs.
    """

    runs: tuple[Measured, ...]
    notes: tuple[str, ...] = ()
    levels: tuple[float, ...] = ()
    published: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """``{run: {"level", "steps", "evaluations", "reaches": {other: {"steps", "evaluations"} or
        None}}}``; ``"best"``: step and distance of the best student, where the run kept it;
        ``"breadth"``: ``recall``, ``coverage`` and ``diversity_ratio``, as far as they are known.

        ``"speed_up"``: at fixed levels, by the other run, how many times sooner than it (see
        ``speed``); ``"published"``: what the paper says of that.
        """
        return {
            run.name: {
                "level": run.level,
                "steps": run.steps[-1],
                "evaluations": run.evaluations[-1],
                **({} if run.kept is None else {"best": {"step": run.kept[0], "fd": run.kept[1]}}),
                "breadth": dict(run.breadth),
                "reaches": {other.name: _pair(run.reaches(other.level)) for other in self.runs if other is not run},
                "speed_up": {
                    other.name: [asdict(each) for each in speed_ups(run, other, self.levels)]
                    for other in self.runs
                    if other is not run
                },
                "published": {other: factor for (name, other), factor in self.published.items() if name == run.name},
            }
            for run in self.runs
        }


def _pair(reached: tuple[int, int] | None) -> dict[str, int] | None:
    return None if reached is None else {"steps": reached[0], "evaluations": reached[1]}


def compare(runs: Sequence[Path | str], levels: Sequence[float] = (), which: Which = "last") -> Comparison:
    """Reads the measurements that the runs took while they trained; their speed is compared at the
    distances ``levels``. ``which``: whether a run's own level is that of its last quarter or of the
    best student that it kept.

    Raises ``UserError`` for a folder without any, for figures that were taken in other features or
    on other data, and where a run kept no best student that is asked for.
    """
    if len({str(run) for run in runs}) < 2:
        raise UserError("compare needs at least two different runs.")
    found = tuple(replace(measured(Path(run)), breadth=_breadth(RunFolder(Path(run)), which)) for run in runs)
    if which == "best":
        found = tuple(replace(run, of_best=True) for run in found)
        lacking = next((run.name for run in found if run.kept is None), None)
        if lacking is not None:
            RunFolder(Path(lacking)).read_best()
            raise UserError(f"{lacking}: took no distance at the step of its best student; leave --best out.")
    wrong = next((level for level in levels if not 0 < level < _LARGEST), None)
    if wrong is not None:
        raise UserError(f"--level: a Frechet distance is above 0, got {wrong}.")
    return Comparison(
        found, tuple(check_comparable([RunFolder(Path(run)) for run in runs])), tuple(levels), _published(runs)
    )


def _breadth(folder: RunFolder, which: Which) -> dict[str, float]:
    """What ``evaluate`` found of a run's student in the steps that it is made for, or else in the
    fewest; nothing where there is no such file, or where it cannot be read.
    """
    recipe = folder.read_recipe()
    try:
        models = json.loads(folder.evaluation_of(which).read_bytes())
        by_steps = {int(steps): entry for steps, entry in models["student"].items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
    usual = recipe.method.steps_of_student if isinstance(recipe, DistillRecipe) else 1
    entry = by_steps.get(usual, by_steps[min(by_steps)] if by_steps else {})
    if not isinstance(entry, dict):
        return {}
    of = {"recall": ("recall",), "coverage": ("coverage",), "diversity_ratio": _SHARES}
    found = {name: next((entry[key] for key in keys if _is_figure(entry.get(key))), None) for name, keys in of.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _is_figure(value: Any) -> TypeGuard[float]:
    """Whether a value of a file is a number that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _published(runs: Sequence[Path | str]) -> dict[tuple[str, str], float]:
    """What papers say of each pair of runs of which they speak."""
    recipes = {str(Path(run)): RunFolder(Path(run)).read_recipe() for run in runs}
    factors = {
        (one, other): published_speed_up(recipes[one], recipes[other]) for one, other in permutations(recipes, 2)
    }
    return {pair: factor for pair, factor in factors.items() if factor is not None}


def _is_measured(entry: dict[str, Any]) -> bool:
    """Whether the figures of a line are numbers, as in what a run wrote."""
    values = [entry.get(key) for key in _KEYS]
    numbers = [value for value in values if _is_figure(value)]
    return len(numbers) == len(values) and min(numbers[:2]) >= 0


def measured(run: Path) -> Measured:
    """The curve of one run, named by its folder."""
    folder = RunFolder(run)
    recipe = folder.read_recipe()
    if recipe.data is None and recipe.evaluation.reference is None:
        raise UserError(
            f"{run}: its recipe has no 'data' section, so that no distance was measured while it trained; "
            "compare runs with data."
        )
    points = [entry for entry in read_log(folder.log) if entry.get("probe") == "evaluation" and _is_measured(entry)]
    if len(points) < 2:
        raise UserError(
            f"{run}: has fewer than two measurements in metrics.jsonl; train longer or lower 'evaluation.every'."
        )
    columns = (tuple(point[key] for point in points) for key in _KEYS)
    steps, evaluations, fd = columns
    best = folder.read_best()["step"] if folder.best.is_file() else None
    return Measured(
        str(run), steps, evaluations, fd, next(((s, d) for s, d in zip(steps, fd, strict=True) if s == best), None)
    )
