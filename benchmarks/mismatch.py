"""How large is the mismatch that a degradation path mitigates? The mismatch degree (DisBack, Eq. 9)
on data and on students' samples.

    python benchmarks/mismatch.py
    python benchmarks/mismatch.py --over-training --data plane --seeds 3
    python benchmarks/mismatch.py --runs runs/ffhq64-disback runs/ffhq64-diff-instruct

Without a choice: per noise level sigma / alpha, for both shipped teachers, on data and on the
untrained student's samples, from 1,000 samples each; levels where fewer than two references speak
are marked. The degree is in units in which the score of pure noise has size 1 a dimension; beside
it the mean norm, as Eq. 9 is printed, with its deviation over the samples.

``--over-training`` is the paper's Fig. 4: runs of DisBack and of Diff-Instruct (the same recipe,
the teacher as the target throughout) of equal network evaluations, the path paid, log the degree of
their students' samples at every twentieth of the way. A run that is there is not repeated, and one
that was cut off goes on. ``--runs`` draws runs that were made elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.metrics import MismatchDegree, assessed_mismatch, training_mismatch
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.states import Step
from fewstep.studies.mismatch_track import Track, mismatch_track
from runner import Job, options_of, run_all

ROWS = 1000
RECIPES = {"plane": "mixture2d-disback", "digits": "digits-disback"}
# Evaluations of one sample: a step of recording (the student 1, the degrading teacher 3), and one
# of distilling by recipe.
RECORDING, COST = 4, {"plane": 6, "digits": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--over-training", action="store_true", help="the degree while students are distilled (Fig. 4)")
    parser.add_argument("--data", choices=[*RECIPES], default="plane")
    parser.add_argument("--steps", type=int, help="of DisBack's runs, its path included; the recipe's unless given")
    parser.add_argument("--points", type=int, default=20, help="readings a run")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="RUN", help="draw these runs")
    options = options_of(parser, "runs/mismatch", 3)
    if options.runs:
        over_training("runs", {run.name: [mismatch_track(run)] for run in options.runs}, options.results)
    elif options.over_training:
        jobs = jobs_of(options)
        # Seed by seed, so that an early stop leaves whole comparisons.
        run_all([job for seed in range(options.seeds) for job in (arm[seed] for arm in jobs.values())], options)
        over_training(
            options.data,
            {name: [mismatch_track(job.folder) for job in arm] for name, arm in jobs.items()},
            options.results,
        )
    else:
        by_level(options.results)


# By noise level


def by_level(results: Path) -> None:
    found = {}
    for name in RECIPES.values():
        training, assessed = measure(name)
        norms = {
            key: {"mean": each.norms, "deviation": each.deviations}
            for key, each in (("data", training), ("untrained student", assessed))
        }
        found[name] = {
            "levels": training.levels,
            "data": training.degrees,
            "untrained student": assessed.degrees,
            "norms": norms,
        }
        show(name, training, assessed)
    write(results / "mismatch.json", found)


def measure(name: str) -> tuple[MismatchDegree, MismatchDegree]:
    recipe = load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    parts = build_distillation(recipe, Path("unused"))
    assert parts.data is not None
    key = Key(0, "mismatch-benchmark")
    order = key.permutation("subset", len(parts.data))[:ROWS]
    data = parts.data.subset(order)
    step = Step(key, ROWS)
    state = parts.prior.at(key, "prior", ROWS, data.labels)
    samples = step.sample(parts.student, state)
    return training_mismatch(parts.teacher, data, key), assessed_mismatch(parts.teacher, samples, data.labels, key)


def show(name: str, training: MismatchDegree, assessed: MismatchDegree) -> None:
    print(
        f"\n{name}\n{'level':>8} {'data':>8} {'untrained student':>18} {'ratio':>7} {'Eq. 9 on data':>20} "
        f"{'Eq. 9 on the samples':>22}"
    )
    for index, level in enumerate(training.levels):
        a, b = training.degrees[index], assessed.degrees[index]
        norms = [f"{each.norms[index]:.3g} +- {each.deviations[index]:.2g}" for each in (training, assessed)]
        fine = training.reliable[index] and assessed.reliable[index]
        print(
            f"{level:>8} {a:>8.3f} {b:>18.3f} {b / a:>7.2f} {norms[0]:>20} {norms[1]:>22}"
            + ("" if fine else "   (fewer than two references)")
        )


# Over training


def jobs_of(options: argparse.Namespace) -> dict[str, list[Job]]:
    """The runs by arm, a seed each, read ``options.points`` times."""
    recipe = load_recipe(RECIPES[options.data], [] if options.steps is None else [f"training.steps={options.steps}"])
    assert isinstance(recipe, DistillRecipe)
    steps, target = recipe.training.steps, recipe.target.model_dump(mode="json")
    recorded = target["record"]["steps"] * (target["nodes"] - 1)
    alone = steps - recorded + round(RECORDING * recorded / COST[options.data])
    arms = {"DisBack": (steps, target), "Diff-Instruct": (alone, {"kind": "fixed"})}
    return {
        name: [job(options, name, seed, length, aim) for seed in range(options.seeds)]
        for name, (length, aim) in arms.items()
    }


def job(options: argparse.Namespace, name: str, seed: int, steps: int, target: Mapping[str, Any]) -> Job:
    settings = {
        "training.seed": seed,
        **({"student.seed": seed} if options.data == "plane" else {}),
        "target": target,
        "training.steps": steps,
        "training.health_every": max(1, steps // options.points),
        "evaluation.every": max(1, steps // options.points),
    }
    return Job(options.out / f"{options.data}-{name.lower()}-{steps}-{seed}", RECIPES[options.data], settings)


def over_training(name: str, tracks: Mapping[str, Sequence[Track]], results: Path) -> None:
    """A table, a JSON file and a picture of each arm's degrees over network evaluations."""
    arms = {arm: summary(found) for arm, found in tracks.items()}
    for arm, row in arms.items():
        print(
            f"\n{name}, {arm}: {len(tracks[arm])} seed(s)\n{'evaluations':>14} "
            f"{'over its value on data':>24} {'Eq. 9, mean norm':>22} {'on data':>10}"
        )
        for point in zip(
            row["evaluations"], row["over_bound"], row["norm"], row["deviation"], row["bound"], strict=True
        ):
            evaluations, ratio, norm, deviation, bound = point
            shown = "-" if norm is None else f"{norm:.3g} +- {deviation:.2g}"
            print(f"{evaluations:>14,} {ratio:>24.3f} {shown:>22} {'-' if bound is None else f'{bound:.3g}':>10}")
    if len(arms) == 2:
        one, other = arms
        print("\n" + compared(one, other, arms))
    write(results / f"mismatch-over-training-{name}.json", arms)
    draw(arms, results / f"mismatch-over-training-{name}.png")


def summary(tracks: Sequence[Track]) -> dict[str, list[Any]]:
    """Medians over the seeds at each reading, and the range of the ratio; as many readings as all
    have.
    """
    count = min(len(track.steps) for track in tracks)
    ratios = [[track.over_bound[index] for track in tracks] for index in range(count)]
    return {
        "steps": list(tracks[0].steps[:count]),
        "evaluations": list(tracks[0].evaluations[:count]),
        "over_bound": [statistics.median(values) for values in ratios],
        "low": [min(values) for values in ratios],
        "high": [max(values) for values in ratios],
        **{
            key: [middle([getattr(track, each)[index] for track in tracks]) for index in range(count)]
            for key, each in (("norm", "norms"), ("deviation", "deviations"), ("bound", "bounds"))
        },
    }


def middle(values: Sequence[float | None]) -> float | None:
    """The median of what was logged."""
    logged = [value for value in values if value is not None]
    return statistics.median(logged) if logged else None


def compared(one: str, other: str, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: the geometric mean of the ratio of both degrees over the shared range of
    evaluations, and where the one is lower.
    """
    end = min(arms[name]["evaluations"][-1] for name in (one, other))
    points = [x for x in arms[one]["evaluations"] if 0 < x <= end]
    logs = [math.log(at(arms[one], x) / at(arms[other], x)) for x in points]
    lower = sum(log < 0 for log in logs)
    return (
        f"the degree of {one} is {math.exp(statistics.fmean(logs)):.2f} times that of {other} on the geometric "
        f"mean over training, and lower at {lower} of {len(logs)} readings."
    )


def at(row: Mapping[str, Any], x: float) -> float:
    """The degree over its value on data after ``x`` evaluations, linear between readings."""
    pairs = list(zip(row["evaluations"], row["over_bound"], strict=True))
    for (left, low), (right, high) in pairwise(pairs):
        if left <= x <= right:
            return low + (high - low) * (x - left) / max(1, right - left)
    return pairs[-1][1]


def draw(arms: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    ratio, norm = figure.subplots(1, 2)
    for number, (name, row) in enumerate(arms.items()):
        colour = f"C{number}"
        ratio.plot(row["evaluations"], row["over_bound"], color=colour, marker="o", markersize=3, label=name)
        ratio.fill_between(row["evaluations"], row["low"], row["high"], color=colour, alpha=0.15)
        points = [
            each
            for each in zip(row["evaluations"], row["norm"], row["deviation"], row["bound"], strict=True)
            if None not in each
        ]
        if points:
            x, y, deviation, bound = zip(*points, strict=True)
            norm.plot(x, y, color=colour, marker="o", markersize=3, label=name)
            norm.fill_between(
                x,
                [max(0.0, a - b) for a, b in zip(y, deviation, strict=True)],
                [a + b for a, b in zip(y, deviation, strict=True)],
                color=colour,
                alpha=0.15,
            )
            norm.plot(x, bound, color=colour, linewidth=0.8, linestyle=(0, (5, 4)))
    ratio.axhline(1, color="black", linewidth=0.6)
    ratio.set(
        title="mismatch degree over its value on data (range over seeds)",
        xlabel="network evaluations of one sample",
        yscale="log",
    )
    norm.set(
        title="Eq. 9, mean norm (deviation over samples; dashed: data)", xlabel="network evaluations of one sample"
    )
    ratio.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    print(path)


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
