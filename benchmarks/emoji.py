"""Colour images: an EDM teacher of emoji and its one-step students by DisBack, Diff-Instruct and
DMD2, at equal network evaluations; beside the teacher's solver at 1 to 35 steps.

    # from Debian's fonts-noto-color-emoji and unicode-data
    fewstep data emoji data/emoji32.zip --size 32
    # an hour for the teacher, then some ten minutes a student, on one core
    python benchmarks/emoji.py --out runs
    python benchmarks/emoji.py --side 64 --out runs --budget 20000000 --jobs 1     # on a GPU

Teacher and feature network are made by their recipes where they are not there. A student's steps
are what its budget buys at the cost that ``fewstep plan`` counts, all proportions of its recipe
kept. Distances are in the features of a classifier of the nine groups and to all 3,641 emoji, which
teacher and classifier were trained on: train-set distances, to be compared with one another.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from runner import Job, kept, measured, options_of, run_all

METHODS = ("disback", "diff-instruct", "dmd2")
TEACHER_STEPS = (1, 2, 4, 8, 16, 35)
COLUMNS = ("accuracy", "precision", "recall", "diversity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=32, choices=(32, 64))
    parser.add_argument("--budget", type=int, default=150_000)
    options = options_of(parser, "runs", 2)
    name = f"emoji{options.side}"
    run_all(
        [Job(options.out / f"{name}-{part}", f"{name}-{part}", task="pretrain") for part in ("features", "teacher")],
        options,
    )
    jobs = {method: [student(name, method, seed, options) for seed in range(options.seeds)] for method in METHODS}
    # Seed by seed, so that an early stop leaves whole comparisons.
    run_all(
        [jobs[method][seed] for seed in range(options.seeds) for method in METHODS],
        options,
        lambda job: measured(job.folder, [1]),
    )
    teacher = kept(options.out / f"{name}-students" / "teacher.json", lambda: solver(jobs[METHODS[0]][0].folder))
    rows = [
        {"method": method, **{key: [measured(job.folder, [1])["1"][key] for job in runs] for key in ("fd", *COLUMNS)}}
        for method, runs in jobs.items()
    ]
    show(rows, teacher, options)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"side": options.side, "budget": options.budget, "seeds": options.seeds, "teacher": teacher, "rows": rows}
    (options.results / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def student(name: str, method: str, seed: int, options: argparse.Namespace) -> Job:
    """The run of a method and seed, in as many steps as the budget buys."""
    from fewstep.planning import plan_recipe

    paths = {
        "teacher.path": str(options.out / f"{name}-teacher" / "model.safetensors"),
        "evaluation.features.path": str(options.out / f"{name}-features" / "model.safetensors"),
    }
    counted = plan_recipe(f"{name}-{method}", [f"{key}={value}" for key, value in paths.items()])
    steps = round(options.budget * sum(counted.steps.values()) / counted.evaluations)
    settings: dict[str, Any] = {
        **paths,
        "training.seed": seed,
        "training.steps": steps,
        "training.health_every": 100_000,
    }
    return Job(options.out / f"{name}-students" / f"{options.budget}-{method}-{seed}", f"{name}-{method}", settings)


def solver(run: Path) -> dict[str, Any]:
    """Quality and breadth of a run's teacher by number of steps."""
    import torch

    from fewstep.random import Key
    from fewstep.recipes.building.parts import build_evaluator
    from fewstep.runs import RunFolder, load_teacher

    torch.set_num_threads(1)
    recipe, teacher = RunFolder(run).read_distill_recipe(), load_teacher(run)
    assert recipe.data is not None
    evaluator = build_evaluator(recipe.evaluation, recipe.data.open())

    def drawn(steps: int, place: Key, n: int, labels: torch.Tensor | None) -> torch.Tensor:
        return teacher.draw(place, n, labels, steps).clamp(teacher.low, teacher.high)

    found: dict[str, Any] = {"halves": evaluator.halves()}
    for steps in TEACHER_STEPS:
        full = evaluator.describe(partial(drawn, steps), 1)
        found[str(steps)] = {"fd": full.quality.fd, "accuracy": full.quality.accuracy, **vars(full.breadth)}
    return found


def show(rows: Sequence[dict[str, Any]], teacher: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"\n{options.seeds} seeds, {options.budget} network evaluations a student; medians over seeds "
        f"(range); two halves of the data are {teacher['halves']:.2f} apart"
    )
    print(f"{'':<22} {'Frechet distance':>24} {'accuracy':>9} {'precision':>10} {'recall':>7} {'diversity':>10}")
    for row in rows:
        fd = f"{statistics.median(row['fd']):.2f} ({min(row['fd']):.2f}-{max(row['fd']):.2f})"
        print(line(row["method"], fd, [statistics.median(row[key]) for key in COLUMNS]))
    for steps in TEACHER_STEPS:
        found = teacher[str(steps)]
        print(line(f"teacher, {steps} steps", f"{found['fd']:.2f}", [found[key] for key in COLUMNS]))


def line(name: str, fd: str, figures: Sequence[float]) -> str:
    accuracy, precision, recall, diversity = figures
    return f"{name:<22} {fd:>24} {accuracy:>9.1%} {precision:>10.3f} {recall:>7.3f} {diversity:>10.3f}"


if __name__ == "__main__":
    main()
