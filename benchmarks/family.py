"""The whole family on digits, from one teacher, at equal network evaluations: quality at 1, 2 and 4
steps, cost and memory; beside the teacher's own solvers.

    # three seeds: some four hours of two cores
    python benchmarks/family.py --out runs/family
    python benchmarks/family.py --out runs/family --seeds 1 --only cd dmd2

Every method gets ``--budget`` network evaluations of one sample (a forward 1, a backward 2), with
its pairs and its path paid from them: its recipe's steps are set to what that buys, all its
proportions kept. The evaluations that a run really took stand in the table. Seeds are paired,
evaluation noise is the same for all. One draw of 5,000 samples a seed; medians over seeds, with the
range. The teacher's best at so many network evaluations: of Euler, Heun and DPM-Solver++ 2M, from
several first levels, on Karras' grid and on the students'.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner import Job, kept, measured, options_of, run_all

STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Method:
    """``cost``: network evaluations of one sample at each step of training; ``fixed``: those spent
    besides (pairs); ``own``: the number of steps its student is made for.
    """

    name: str
    cost: float
    own: int = 1
    fixed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        return f"digits-{self.name}"

    def job(self, budget: int, seed: int, out: Path) -> Job:
        steps = round((budget - self.fixed) / (64 * self.cost))
        settings = {
            "training.seed": seed,
            "training.health_every": 10_000,
            "evaluation.every": 10_000,
            **self.settings,
            "training.steps": steps,
        }
        return Job(out / str(budget) / f"{self.name}-{seed}", self.recipe, settings)


PAIRS, REGRESSION_PAIRS = 5_000, 1_500
METHODS = (
    Method("kd", 3, fixed=PAIRS * 23, settings={"method.pairs.count": PAIRS}),
    Method("pd", 5, own=4),
    # Pairs of the teacher (23 evaluations), of the first flow and of the second (10 each).
    Method("reflow", 3, fixed=3_000 * 43, settings={"method.pairs": 3_000}),
    Method("cd", 6, own=2),
    Method("perflow", 11, own=4),
    Method("lcm", 6, own=4),
    Method("pcm", 14, own=4),
    Method("scm", 5, own=2),
    Method("ect", 4, own=2),
    Method("tcm", 7),
    Method("meanflow", 5),
    Method("ayf", 5, own=4),
    Method("ctm", 15, own=2),
    Method("tcd", 6, own=2),
    Method("sds", 4),
    Method("stf", 8),
    Method("vsd", 8),
    Method("diff-instruct", 8),
    Method("disback", 8),
    Method("dmd", 11, fixed=REGRESSION_PAIRS * 23, settings={"method.regression.pairs": REGRESSION_PAIRS}),
    Method("dmd2", 13.5),
    Method("dmd2-4step", 16.5, own=4),
    Method("disback-dmd2", 13.5),
    Method("f-distill", 14),
    Method("rcm", 14, own=2),
    Method("moment", 9, own=4),
    Method("sid", 12),
    Method("add", 11, own=4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=400_000)
    parser.add_argument("--only", nargs="*", default=[method.name for method in METHODS])
    options = options_of(parser, "runs/family", 3)
    methods = [method for method in METHODS if method.name in options.only]
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = [method.job(options.budget, seed, options.out) for seed in range(options.seeds) for method in methods]
    run_all(jobs, options, lambda job: measured(job.folder, STEPS))
    teacher = kept(options.out / "teacher.json", lambda: solvers(options.more))
    rows = [summary(method, options) for method in methods]
    show(rows, teacher, options)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"budget": options.budget, "seeds": options.seeds, "teacher": teacher, "rows": rows}
    (options.results / "family.json").write_text(json.dumps(content, indent=1) + "\n")


def summary(method: Method, options: argparse.Namespace) -> dict[str, Any]:
    """One method's figures, a list over seeds by number of steps; cost and memory of the first
    seed.
    """
    folders = [method.job(options.budget, seed, options.out).folder for seed in range(options.seeds)]
    found = [measured(folder, STEPS) for folder in folders]
    by_steps = {
        str(steps): {key: [each[str(steps)][key] for each in found] for key in found[0][str(steps)]} for steps in STEPS
    }
    return {"method": method.name, "own": method.own, "steps": by_steps, **cost(folders[0])}


def cost(folder: Path) -> dict[str, Any]:
    """Steps and evaluations from the run's log, milliseconds a step (the median between log lines),
    and the bytes of weights, gradients, optimizers and averages.
    """
    from fewstep.planning.footprint import state_bytes
    from fewstep.recipes.building.distillation import build_distillation
    from fewstep.runs import RunFolder
    from fewstep.training.reporting.log import read_log

    lines = [entry for entry in read_log(folder / "metrics.jsonl") if "evaluations" in entry and "seconds" in entry]
    rates = [
        1e3 * (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])
        for a, b in pairwise(lines)
        if b["step"] > a["step"]
    ]
    parts = build_distillation(RunFolder(folder).read_distill_recipe(), folder)
    return {
        "training_steps": lines[-1]["step"],
        "evaluations": lines[-1]["evaluations"],
        "ms_per_step": statistics.median(rates),
        "state_bytes": state_bytes(parts.stages, parts.teacher),
    }


def solvers(more: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher by network evaluations: the best of rules, first levels and grids, and each;
    measured as the students are where ``more`` says how.
    """
    from fewstep.recipes import DistillRecipe, load_recipe
    from fewstep.recipes.building.frozen_teachers import build_teacher
    from fewstep.recipes.building.parts import build_evaluator

    said = [f"{key}={json.dumps(value)}" for key, value in more.items() if key.startswith("evaluation.")]
    recipe = load_recipe("digits-cd", said)
    assert isinstance(recipe, DistillRecipe)
    assert recipe.data is not None
    data = recipe.data.open()
    teacher, evaluator = build_teacher(recipe.teacher, data), build_evaluator(recipe.evaluation, data)
    found: dict[str, Any] = {}
    for evaluations in (1, 2, 4, 8, 16, 35):
        # Few evaluations want a low first level, and a grid that does not spend one of them at
        # t_min.
        few = evaluations <= 8
        settings = [
            (rule, sigma, nested)
            for rule in ("euler", "heun", "dpm2m")
            for sigma in ((80.0, 10.0, 2.5) if few else (80.0, 10.0))
            for nested in ((False, True) if few else (False,))
        ]
        rows = [
            row
            for rule, sigma, nested in settings
            if (row := solved(teacher, evaluator, evaluations, rule, sigma, nested)) is not None
        ]
        found[str(evaluations)] = {"best": min(rows, key=lambda row: row["fd"]), "all": rows}
    return found


def solved(
    teacher: Any, evaluator: Any, evaluations: int, rule: str, sigma: float, nested: bool
) -> dict[str, Any] | None:
    """One draw by a solver with at most so many evaluations; None where its steps do not come out
    at that number.
    """
    import torch

    from fewstep.condition import Classes
    from fewstep.solvers import RULES, solve
    from fewstep.states import Prior
    from fewstep.times import RhoGrid, nested_times

    # Heun's last step is a DDIM step: 2 n - 1 evaluations.
    steps = (evaluations + 1) // 2 if rule == "heun" else evaluations
    if RULES[rule].evaluations(steps) != evaluations and not (
        rule == "heun" and RULES[rule].evaluations(steps) == evaluations - 1
    ):
        return None
    first = float(teacher.schedule.time_at_sigma(sigma))
    prior = Prior(teacher.schedule, teacher.shape, first, conditions=Classes(teacher.classes))
    times = (
        nested_times(RhoGrid(), teacher.schedule, prior.time, steps)
        if nested
        else RhoGrid().times(teacher.schedule, steps, prior.time)
    )

    @torch.no_grad()
    def sample(place: Any, n: int, labels: Any) -> Any:
        parts = []
        for start in range(0, n, 500):
            state = prior.at(place, "prior", min(500, n - start), labels[start : start + 500], start)
            parts.append(
                solve(RULES[rule], teacher, state.x, times, state.condition).clamp(
                    evaluator.data.low, evaluator.data.high
                )
            )
        return torch.cat(parts)

    full = evaluator.describe(sample, 1)
    return {
        "rule": rule,
        "first_sigma": sigma,
        "nested": nested,
        "fd": full.quality.fd,
        "accuracy": full.quality.accuracy,
        **vars(full.breadth),
    }


def show(rows: Sequence[dict[str, Any]], teacher: Mapping[str, Any], options: argparse.Namespace) -> None:
    print(
        f"\n{options.seeds} seeds, {options.budget} network evaluations a run; * the student's own number "
        "of steps; distances are medians over seeds (range)"
    )
    print(
        f"{'method':<16} {'1 step':>22} {'2 steps':>22} {'4 steps':>22} {'accuracy':>9} {'recall':>7} "
        f"{'diversity':>10} {'evaluations':>12} {'ms/step':>8} {'MB':>6}"
    )
    for row in sorted(rows, key=lambda row: statistics.median(row["steps"][str(row["own"])]["fd"])):
        own = row["steps"][str(row["own"])]
        cells = [spread(row["steps"][str(steps)]["fd"]) + ("*" if steps == row["own"] else " ") for steps in STEPS]
        figures = [statistics.median(own[key]) for key in ("accuracy", "recall", "diversity")]
        print(
            f"{row['method']:<16} "
            + " ".join(f"{cell:>22}" for cell in cells)
            + f" {figures[0]:>9.1%} {figures[1]:>7.3f} {figures[2]:>10.3f}"
            f" {row['evaluations']:>12} {row['ms_per_step']:>8.0f} {row['state_bytes'] / 1e6:>6.1f}"
        )
    print("\nthe teacher's best solver by network evaluations")
    for evaluations, entry in teacher.items():
        best = entry["best"]
        besides = f"accuracy {best['accuracy']:.1%}, recall {best['recall']:.3f}, diversity {best['diversity']:.3f}"
        print(f"{evaluations:>3}: {best['fd']:8.2f}  {best['rule']} from sigma {best['first_sigma']:g}; {besides}")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
