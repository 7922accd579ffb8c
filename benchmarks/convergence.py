"""Does the path help? DisBack, Diff-Instruct and the warm ablation at the same budget of network
evaluations; then the path's length, fixed against automatic rules.

    # everything: about an hour of two cores at the stated budget
    python benchmarks/convergence.py --out runs/convergence
    python benchmarks/convergence.py --out runs/convergence --study main --seeds 5

Every run is `fewstep distill` of a shipped recipe with overrides, one thread each, `--jobs` at a
time; a run that is there already is not repeated, and one that was cut off goes on. The budget
counts network evaluations of one sample (a forward 1, a backward 2) and includes the path's. Seeds
are paired: seed s draws the same noise, and evaluation noise is the same for all. Reported: the
final averaged student (three draws of 5,000), the median of the last quarter of the run's own
measurements (one draw each), and the evaluations from which a run stays at or below Diff-Instruct's
level of the same seed. Medians over seeds, with the range over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import Job, options_of, run_all

RECORDING = 4


@dataclass(frozen=True)
class Method:
    """A recipe with overrides.

    ``recorded`` steps of recording are paid from the budget (a guess for automatic rules: the table
    says what a run really took); a later step costs ``matching`` evaluations a sample.
    """

    name: str
    recipe: str
    recorded: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    batch: int = 64
    matching: int = 8
    every: int = 50

    def settings(self, budget: int, seed: int) -> dict[str, Any]:
        """The overrides that spend ``budget`` evaluations."""
        steps = self.recorded + (budget // self.batch - RECORDING * self.recorded) // self.matching
        values = {
            "training.batch": self.batch,
            "training.seed": seed,
            "training.health_every": 10_000,
            "evaluation.every": self.every,
            **self.overrides,
        }
        if self.recipe.startswith("mixture2d"):
            values["student.seed"] = seed
        # Shares are given in full, so that none is scaled.
        return {**values, "training.steps": steps}


def path(nodes: int, every: int, switch: int) -> dict[str, Any]:
    """A path of fixed rules."""
    return {"target.nodes": nodes, "target.record.steps": every, "target.switch.steps": switch}


def disback(name: str, nodes: int, every: int, switch: int) -> Method:
    """DisBack with a path of fixed rules."""
    return Method(name, "digits-disback", every * (nodes - 1), path(nodes, every, switch))


AUTOMATIC = {
    "target.nodes": 5,
    "target.record": {"kind": "distance", "distance": 0.06, "floor": 0.5, "max_steps": 80},
    "target.switch": {"kind": "plateau", "window": 10, "improvement": 0.02, "min_steps": 10, "max_steps": 60},
}
DIFF_INSTRUCT = Method("diff-instruct", "digits-diff-instruct")
WARM = Method("warm", "digits-diff-instruct-warm", 40, path(2, 40, 1))
DISBACK = disback("disback", 5, 10, 20)


# What the recipe said when these figures were taken; ``disback.py`` tells what depends on it.
WIDE = {
    **{f"{section}.times": {"kind": "log-normal", "mean": 0.0, "std": 1.2} for section in ("method", "method.fake")},
    "method.optimizer.decay": 0.5,
}


def toy(name: str, recorded: int, **target: Any) -> Method:
    """The plane: a generator on z from random weights, far from everything the teacher knows.

    The student is updated at every other step, so a step costs (8 + 4) / 2.
    """
    return Method(
        name,
        "mixture2d-disback",
        recorded,
        {**WIDE, **{f"target.{key}": value for key, value in target.items()}},
        batch=256,
        matching=6,
        every=100,
    )


STUDIES: dict[str, tuple[Method, ...]] = {
    "main": (DIFF_INSTRUCT, WARM, DISBACK),
    "nodes": (
        DIFF_INSTRUCT,
        WARM,
        disback("3 nodes", 3, 20, 20),
        DISBACK,
        disback("11 nodes", 11, 4, 20),
        disback("11 nodes, path 10 times too long", 11, 40, 20),
    ),
    "toy": (
        Method(
            "diff-instruct",
            "mixture2d-disback",
            0,
            {**WIDE, "target": {"kind": "fixed"}},
            batch=256,
            matching=6,
            every=100,
        ),
        toy("warm", 160, nodes=2, **{"record.steps": 160, "switch.steps": 1}),
        toy("disback", 160, nodes=5, **{"record.steps": 40, "switch.steps": 50}),
    ),
    "rules": (DIFF_INSTRUCT, DISBACK, Method("5 nodes, automatic rules", "digits-disback", 20, AUTOMATIC)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=[*STUDIES, "all"], default="all")
    parser.add_argument(
        "--budget",
        type=int,
        default=358_400,
        help="network evaluations of one sample, a run; the toy study has 6 times as many",
    )
    options = options_of(parser, "runs/convergence", 5)
    chosen = [*STUDIES] if options.study == "all" else [options.study]
    # The toy comes last: its budget is another one.
    for study in sorted(chosen, key="toy".__eq__):
        if study == "toy":
            options.budget *= 6
            options.out = options.out / "toy"
        methods, seeds = STUDIES[study], range(options.seeds)
        # Seed by seed, so that an early stop leaves whole comparisons.
        run_all(
            [
                Job(folder_of(method, seed, options), method.recipe, method.settings(options.budget, seed))
                for seed in seeds
                for method in methods
            ],
            options,
        )
        table = [summary(study, method, seeds, options) for method in methods]
        show(study, table, options)
        options.results.mkdir(parents=True, exist_ok=True)
        plot(study, table, options.results / f"convergence-{study}.png")
        content = {"study": study, "budget": options.budget, "seeds": options.seeds, "rows": table}
        (options.results / f"convergence-{study}.json").write_text(json.dumps(content, indent=1) + "\n")


def folder_of(method: Method, seed: int, options: argparse.Namespace) -> Path:
    return options.out / f"{options.budget}" / f"{method.name.replace(' ', '-').replace(',', '')}-{seed}"


def final_distance(folder: Path) -> float:
    """The final averaged student over three draws; kept beside the run."""
    kept = folder / "final.json"
    if not kept.is_file():
        from fewstep.recipes.building.parts import build_evaluator
        from fewstep.runs import RunFolder, load

        recipe, sampler = RunFolder(folder).read_distill_recipe(), load(folder)
        assert recipe.data is not None
        evaluator = build_evaluator(recipe.evaluation, recipe.data.open())
        quality = evaluator.measure(
            lambda place, n, labels: sampler.draw(place, n, labels, 1).clamp(sampler.low, sampler.high), 3
        )
        kept.write_text(json.dumps({"fd": quality.fd}))
    return float(json.loads(kept.read_text())["fd"])


def summary(study: str, method: Method, seeds: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """One method's figures over the seeds."""
    from fewstep.runs.compare import measured

    folders = [folder_of(method, seed, options) for seed in seeds]
    curves = [measured(folder) for folder in folders]
    levels = [measured(folder_of(STUDIES[study][0], seed, options)).level for seed in seeds]
    reached = [curve.reaches(level) for curve, level in zip(curves, levels, strict=True)]
    return {
        "method": method.name,
        "steps": [curve.steps[-1] for curve in curves],
        "evaluations": [curve.evaluations[-1] for curve in curves],
        "final": [final_distance(folder) for folder in folders],
        "level": [curve.level for curve in curves],
        "evaluations_to_diff_instruct_level": [None if found is None else found[1] for found in reached],
        "curves": [{"evaluations": curve.evaluations, "fd": curve.fd} for curve in curves],
    }


def show(study: str, rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"\n{study}: {options.seeds} seeds, {options.budget} network evaluations a run")
    print(
        f"{'method':<34} {'evaluations':>12} {'final student':>22} {'last quarter':>22} "
        f"{'better than DI on':>18} {'evaluations to DI level':>30}"
    )
    baseline = rows[0]["final"]
    for row in rows:
        wins = sum(ours < theirs for ours, theirs in zip(row["final"], baseline, strict=True))
        found = [value for value in row["evaluations_to_diff_instruct_level"] if value is not None]
        reached = "never" if not found else f"{statistics.median(found):.0f} ({len(found)}/{len(baseline)} seeds)"
        print(
            f"{row['method']:<34} {statistics.median(row['evaluations']):>12.0f} {spread(row['final']):>22} "
            f"{spread(row['level']):>22} {f'{wins}/{len(baseline)}':>18} {reached:>30}"
        )


def plot(study: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The median curve over the seeds of each method; seeds are measured at the same steps."""
    from fewstep.report import DistanceCurve, plot_curves

    curves = []
    for row in rows:
        evaluations = row["curves"][0]["evaluations"]
        medians = [statistics.median(values) for values in zip(*(curve["fd"] for curve in row["curves"]), strict=True)]
        curves.append(DistanceCurve(row["method"], range(len(medians)), evaluations, medians))
    plot_curves(curves, path, {"Diff-Instruct, last quarter": statistics.median(rows[0]["level"])})


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
