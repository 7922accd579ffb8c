"""Does training on the student's own states help, and thresholding? PD, LCM and DMD2 on digits:
plain, + reflected, + DDIL, + both.

    python benchmarks/ddil.py --out runs/ddil                  # some four hours of two cores
    python benchmarks/ddil.py --out runs/ddil --seeds 2 --only pd4
    # the table of the stored figures, without a run
    python benchmarks/ddil.py --study stored
    python benchmarks/ddil.py --study overhead --seeds 3 --budget 100000 --only pd4 lcm4 dmd2-4

Every run of a task gets the same number of network evaluations (collecting trajectories is paid
from them). Seeds are paired, and so is the evaluation's noise: the gain of a setting is the mean
over seeds of log(plain / setting) in the Frechet distance at the student's own number of steps,
given as a percentage with Student's 95 % interval. Beside it the paper's gain. The paper has
thresholds on "by default" (App. A), in its baselines too, so that its gain of DDIL for PD is that
of ``both`` over ``reflected``; that comparison has a column of its own.

``--study overhead``: what collecting trajectories costs, in evaluations and in seconds of the
processor, over all else within the same run (``collecting.py``), and the distance at equal
evaluations: as the recipes do it, and as they did at first, when fresh trajectories at every step
gave one state each.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paired import gain, shown
from runner import Job, measured, options_of, run_all

REFLECTED = {"reflected": {"kind": "static", "bound": 1.0}}
# Student's t at 97.5 % by degrees of freedom.
T_VALUES = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 9: 2.26, 11: 2.20, 15: 2.13, 19: 2.09}


@dataclass(frozen=True)
class Task:
    """``recipe``, and ``ddil_recipe``, the same with DDIL's states; a step of training costs
    ``cost`` evaluations of one sample, with DDIL ``ddil_cost``. ``paper``: its gains by setting.
    ``paper_over_reflected``: the paper's gain of both over thresholds alone. ``first``: how the
    recipe first collected, at ``first_cost``; ``now``: how the study collects where the recipe
    collects as at first, at ``now_cost``.
    """

    name: str
    recipe: str
    ddil_recipe: str
    own: int
    cost: float
    ddil_cost: float
    paper: Mapping[str, str]
    paper_over_reflected: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 64
    ddil_settings: Mapping[str, Any] = field(default_factory=dict)
    first_cost: float = 0.0
    first: Mapping[str, Any] = field(default_factory=dict)
    now_cost: float = 0.0
    now: Mapping[str, Any] = field(default_factory=dict)

    def job(self, setting: str, budget: int, seed: int, out: Path) -> Job:
        ddil = setting in ("ddil", "both")
        values: dict[str, Any] = {
            "training.seed": seed,
            "training.batch": self.batch,
            "training.health_every": 100_000,
            "evaluation.every": 100_000,
            **self.settings,
        }
        if setting in ("reflected", "both"):
            values |= REFLECTED
        if ddil:
            values |= self.ddil_settings
        values["training.steps"] = round(budget / (self.batch * (self.ddil_cost if ddil else self.cost)))
        return Job(
            out / str(budget) / f"{self.name}-{setting}-{seed}", self.ddil_recipe if ddil else self.recipe, values
        )

    def collecting(self, arm: str, budget: int, seed: int, out: Path) -> CountedJob:
        """The run with DDIL's states of an arm of the study of overhead."""
        values = {
            "training.seed": seed,
            "training.batch": self.batch,
            "training.health_every": 100_000,
            "evaluation.every": 100_000,
            **self.settings,
            **ARMS[arm](self),
        }
        values["training.steps"] = round(
            budget / (self.batch * ((self.now_cost or self.ddil_cost) if arm == "now" else self.first_cost))
        )
        return CountedJob(out / "overhead" / str(budget) / f"{self.name}-{arm}-{seed}", self.ddil_recipe, values)


@dataclass(frozen=True)
class CountedJob(Job):
    """A distillation that also says what collecting took."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("collecting.py")), self.recipe, "--out", str(self.folder)]

    @property
    def done(self) -> bool:
        return super().done and self.spent_file.is_file()

    @property
    def spent_file(self) -> Path:
        return self.folder / "collecting.json"

    def spent(self) -> dict[str, Any]:
        """What ``collecting.py`` counted."""
        found: dict[str, Any] = json.loads(self.spent_file.read_text())
        return found


ARMS: Mapping[str, Callable[[Task], Mapping[str, Any]]] = {
    "first": lambda task: task.first,
    "now": lambda task: {**task.ddil_settings, **task.now},
}
ONE_EACH = {"states.collect": 16, "states.every": 1, "states.of_each": "one"}
ALL_FRESH = {"states.collect": 64, "states.every": 1, "states.of_each": "one"}
WHOLE = {"states.collect": 64, "states.of_each": "all"}
WHOLE_FRESH = {**WHOLE, "states.collect": 16, "states.every": 1}
SETTINGS = ("plain", "reflected", "ddil", "both")
# Table 2's and 3's distances: 23.34 to 22.42 and 26.43 to 24.13 (PD, thresholds on), 24.39, 24.25,
# 23.44, 22.86 (LCM), 31.77, 29.32, 27.72 (DMD2).
LCM, DMD2 = {"reflected": "+0.6", "ddil": "+3.9", "both": "+6.3"}, {"reflected": "+7.7", "both": "+12.7"}
TASKS = (
    Task("pd4", "digits-pd", "digits-pd-ddil", 4, 5, 5.4, {}, "+3.9", first_cost=8, first=ONE_EACH),
    Task(
        "pd2", "digits-pd", "digits-pd-ddil", 2, 5, 5.4, {}, "+8.7", {"method.steps": 2}, first_cost=8, first=ONE_EACH
    ),
    Task(
        "lcm4",
        "digits-lcm",
        "digits-lcm-ddil",
        4,
        6,
        6.75,
        LCM,
        "+5.7",
        first_cost=6.75,
        first=ONE_EACH,
        now_cost=6.2,
        now={**WHOLE, "states.every": 16},
    ),
    Task(
        "dmd2-4",
        "digits-dmd2-4step",
        "digits-dmd2-ddil",
        4,
        16.5,
        19.3,
        DMD2,
        "+5.5",
        first_cost=19.3,
        first=ALL_FRESH,
        now_cost=15,
        now={**WHOLE, "states.collect": 16, "states.every": 1},
    ),
    Task(
        "dmd2-4-small",
        "digits-dmd2-4step",
        "digits-dmd2-ddil",
        4,
        16.5,
        19.3,
        DMD2,
        "+5.5",
        batch=8,
        ddil_settings={"states.capacity": 8, "states.collect": 8},
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=200_000)
    parser.add_argument("--only", nargs="*", default=[task.name for task in TASKS])
    parser.add_argument("--study", choices=["gains", "stored", "overhead"], default="gains")
    options = options_of(parser, "runs/ddil", 6)
    tasks = [task for task in TASKS if task.name in options.only]
    if options.study == "overhead":
        overhead(tasks, options)
        return
    if options.study == "stored":
        stored(tasks, options)
        return
    # Seed by seed, so that an early stop leaves whole comparisons.
    planned = [
        (task, task.job(setting, options.budget, seed, options.out))
        for seed in range(options.seeds)
        for task in tasks
        for setting in SETTINGS
    ]
    own = {job.folder: task.own for task, job in planned}
    run_all([job for _, job in planned], options, lambda job: measured(job.folder, [own[job.folder]]))
    rows = [row for task in tasks for row in summary(task, options)]
    show(rows, options)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "ddil.json").write_text(
        json.dumps({"budget": options.budget, "seeds": options.seeds, "rows": rows}, indent=1) + "\n"
    )


def overhead(tasks: Sequence[Task], options: argparse.Namespace) -> None:
    """Runs both arms of the tasks that have two, seed by seed, and says what collecting cost and
    how near the students are.
    """
    tasks = [task for task in tasks if task.first]
    planned = [
        (task, task.collecting(arm, options.budget, seed, options.out))
        for seed in range(options.seeds)
        for task in tasks
        for arm in ARMS
    ]
    own = {job.folder: task.own for task, job in planned}
    run_all([job for _, job in planned], options, lambda job: measured(job.folder, [own[job.folder]]))
    rows = [row for task in tasks for row in overhead_of(task, options)]
    print(
        f"\n{options.seeds} seeds, {options.budget} network evaluations a run; overhead: median over seeds "
        "of collecting over all else, within a run"
    )
    print(
        f"{'task':<10} {'collecting':<11} {'in evaluations':>15} {'in seconds':>11} "
        f"{'distance (range)':>22} {'evaluations':>12} {'gain over first, 95 %':>30}"
    )
    for row in rows:
        distance = f"{statistics.median(row['fd']):.2f} ({min(row['fd']):.2f}-{max(row['fd']):.2f})"
        shares = [f"{statistics.median(row[key]):.1%}" for key in ("share_of_evaluations", "share_of_seconds")]
        print(
            f"{row['task']:<10} {row['arm']:<11} {shares[0]:>15} {shares[1]:>11} {distance:>22} "
            f"{statistics.median(row['evaluations']):>12.0f} {row['shown']:>30}"
        )
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "ddil-overhead.json"
    # Tasks may have budgets of their own: what this call has not measured stays.
    others = (
        [row for row in json.loads(path.read_text())["rows"] if row["task"] not in options.only]
        if path.is_file()
        else []
    )
    path.write_text(json.dumps({"rows": [*others, *rows]}, indent=1) + "\n")


def overhead_of(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row an arm."""
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        jobs = [task.collecting(arm, options.budget, seed, options.out) for seed in range(options.seeds)]
        distances, spent = (
            [measured(job.folder, [task.own])[str(task.own)]["fd"] for job in jobs],
            [job.spent() for job in jobs],
        )
        shares = {
            f"share_of_{key}": [each["collecting"][key] / each["rest"][key] for each in spent]
            for key in ("evaluations", "seconds")
        }
        evaluations = [each["collecting"]["evaluations"] + each["rest"]["evaluations"] for each in spent]
        found = gain(distances, rows[0]["fd"]) if rows else None
        counted = {"budget": options.budget, "seeds": options.seeds, "evaluations": evaluations}
        rows.append(
            {
                "task": task.name,
                "arm": arm,
                **counted,
                "fd": distances,
                **shares,
                "gain": found,
                "shown": "" if found is None else shown(found),
            }
        )
    return rows


def summary(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a setting: figures over seeds, and the paired gain over the plain run."""
    found = {
        setting: [
            measured(task.job(setting, options.budget, seed, options.out).folder, [task.own])[str(task.own)]
            for seed in range(options.seeds)
        ]
        for setting in SETTINGS
    }
    keys = ("fd", "accuracy", "recall", "diversity")
    return compared(
        task, {setting: {key: [each[key] for each in found[setting]] for key in keys} for setting in SETTINGS}
    )


def compared(task: Task, found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """A row a setting: its figures over seeds, and the paired gains over the plain run and over
    thresholds alone.
    """

    def over(setting: str, other: str) -> dict[str, float | None]:
        return interval([math.log(a / b) for a, b in zip(found[other]["fd"], found[setting]["fd"], strict=True)])

    rows = []
    for setting in SETTINGS:
        row = {
            "task": task.name,
            "setting": setting,
            **found[setting],
            "gain": over(setting, "plain"),
            "paper": task.paper.get(setting, ""),
        }
        if setting == "both":
            row |= {"gain_over_reflected": over("both", "reflected"), "paper_over_reflected": task.paper_over_reflected}
        rows.append(row)
    return rows


def stored(tasks: Sequence[Task], options: argparse.Namespace) -> None:
    """The table of what was measured before."""
    path = options.results / "ddil.json"
    held = json.loads(path.read_text())
    keys = ("fd", "accuracy", "recall", "diversity")
    by = {(row["task"], row["setting"]): {key: row[key] for key in keys} for row in held["rows"]}
    rows = [
        row
        for task in tasks
        if (task.name, "plain") in by
        for row in compared(task, {setting: by[task.name, setting] for setting in SETTINGS})
    ]
    show(rows, argparse.Namespace(seeds=held["seeds"], budget=held["budget"]))
    others = [row for row in held["rows"] if row["task"] not in {each["task"] for each in rows}]
    path.write_text(json.dumps({**held, "rows": [*rows, *others]}, indent=1) + "\n")


def interval(logs: Sequence[float]) -> dict[str, float | None]:
    """The mean gain in per cent, 1 - exp(-mean), and the ends of its 95 % interval; no ends for a
    single seed.
    """
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return {"mean": 100 * -math.expm1(-mean), "low": None, "high": None}
    width = T_VALUES.get(len(logs) - 1, 2.0) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {
        "mean": 100 * -math.expm1(-mean),
        "low": 100 * -math.expm1(-(mean - width)),
        "high": 100 * -math.expm1(-(mean + width)),
    }


def show(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"\n{options.seeds} seeds, {options.budget} network evaluations a run")
    columns = ["gain over plain, 95 %", "paper", "over reflected, 95 %", "paper"]
    print(
        f"{'task':<12} {'setting':<10} {'distance (range)':>22} {'accuracy':>9} {'recall':>7} "
        f"{'diversity':>10} {columns[0]:>28} {columns[1]:>8} {columns[2]:>28} {columns[3]:>8}"
    )
    for row in rows:
        over_plain = "" if row["setting"] == "plain" else shown_interval(row["gain"])
        over_reflected = shown_interval(row["gain_over_reflected"]) if "gain_over_reflected" in row else ""
        distance = f"{statistics.median(row['fd']):.2f} ({min(row['fd']):.2f}-{max(row['fd']):.2f})"
        figures = [statistics.median(row[key]) for key in ("accuracy", "recall", "diversity")]
        gains = f"{over_plain:>28} {row['paper']:>8} {over_reflected:>28} {row.get('paper_over_reflected', ''):>8}"
        print(
            f"{row['task']:<12} {row['setting']:<10} {distance:>22} {figures[0]:>9.1%} {figures[1]:>7.3f} "
            f"{figures[2]:>10.3f} {gains}"
        )


def shown_interval(found: Mapping[str, float | None]) -> str:
    return f"{found['mean']:+.1f} %" + (
        "" if found["low"] is None else f" ({found['low']:+.1f} to {found['high']:+.1f})"
    )


if __name__ == "__main__":
    main()
