"""Should a guided DisBack be guided alike at all nodes, or the more the nearer to the teacher? And
what does guidance change at all?

    # nine runs of some 4 minutes of a core each
    python benchmarks/guided_target.py --budget 400000 --out runs/guided-target
    python benchmarks/guided_target.py --recipe digits-disback --scale 4 --out runs/guided-target-4

Three runs a seed of one backtracked recipe: without guidance, guided by one scale at all nodes
(``constant``), and guided by a scale that is 1 at the last node and the full one at the teacher
(``along-path``). The fully guided last node but one is no longer what the fake score starts beside:
``first gap`` is the gap between the scores at the first step after recording. All have ``--budget``
network evaluations of one sample, the recipe's own without guidance unless given; recording and the
second pass of a guided target are paid from them, all proportions of the recipe kept. Seeds are
paired, evaluation noise is the same for all; medians over seeds, with the range. The distance is to
the data, which a guided student is not meant to match: read it beside accuracy and diversity.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paired import ratio
from runner import Job, measured, options_of, run_all

GUIDANCES = ("none", "constant", "along-path")
SHOWN = ("first_gap", "fd", "accuracy", "diversity", "recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="digits-disback-guided", help="a recipe with a backtracked target")
    parser.add_argument("--scale", type=float, default=2.0, help="of the guidance, at the teacher")
    parser.add_argument("--budget", type=float, help="network evaluations of one sample, a run")
    parser.add_argument("--draws", type=int, default=1, help="of the evaluation's samples, a run")
    options = options_of(parser, "runs/guided-target", 3)
    steps = steps_within(options)
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = {
        (name, seed): job_of(name, seed, steps[name], options) for seed in range(options.seeds) for name in GUIDANCES
    }
    own = steps_of_student(options)
    run_all([*jobs.values()], options, lambda job: measured(job.folder, (own,), options.draws))
    rows: list[dict[str, Any]] = [
        {
            "guidance": name,
            "steps": steps[name],
            **joined([figures(jobs[name, seed], own, options) for seed in range(options.seeds)]),
        }
        for name in GUIDANCES
    ]
    by_name = {row["guidance"]: row for row in rows}
    compared = {
        key: ratio(by_name["along-path"][key], by_name["constant"][key])
        for key in SHOWN
        if all(value is not None and value > 0 for name in GUIDANCES[1:] for value in by_name[name][key])
    }
    show(rows, compared, options)
    options.results.mkdir(parents=True, exist_ok=True)
    said = {key: getattr(options, key) for key in ("recipe", "scale", "seeds", "draws")}
    (options.results / f"guided-target-{Path(options.recipe).stem}.json").write_text(
        json.dumps({**said, "rows": rows, "along-path over constant": compared}, indent=1) + "\n"
    )


def guidance_of(name: str, scale: float) -> dict[str, Any]:
    """The section ``target.guidance``."""
    return {"kind": name} if name == "none" else {"kind": name, "scale": scale}


def overrides_of(name: str, options: argparse.Namespace) -> list[str]:
    """A run's settings but for its steps, as ``--set`` takes them."""
    settings = {"target.guidance": guidance_of(name, options.scale), **options.more}
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def steps_within(options: argparse.Namespace) -> dict[str, int]:
    """The steps that the budget buys, by guidance: counted by a rehearsal of each recipe."""
    from fewstep.planning import plan_recipe

    planned = {name: plan_recipe(options.recipe, overrides_of(name, options)) for name in GUIDANCES}
    budget = options.budget or planned["none"].evaluations
    return {name: round(sum(plan.steps.values()) * budget / plan.evaluations) for name, plan in planned.items()}


def steps_of_student(options: argparse.Namespace) -> int:
    """How many steps the recipe's student takes."""
    from fewstep.recipes import DistillRecipe, load_recipe

    recipe = load_recipe(options.recipe, overrides_of("none", options))
    assert isinstance(recipe, DistillRecipe)
    return recipe.method.steps_of_student


def job_of(name: str, seed: int, steps: int, options: argparse.Namespace) -> Job:
    settings = {
        "training.seed": seed,
        "training.health_every": 100_000,
        "evaluation.every": 100_000,
        "target.guidance": guidance_of(name, options.scale),
        "training.steps": steps,
    }
    folder = options.out / Path(options.recipe).stem / f"{options.scale:g}-{name}-{steps}-{seed}"
    return Job(folder, options.recipe, settings)


def figures(job: Job, own: int, options: argparse.Namespace) -> dict[str, Any]:
    """What was measured of a run, and what its log tells."""
    from fewstep.report.history import History
    from fewstep.training.reporting.log import read_log

    history = History.of(read_log(job.folder / "metrics.jsonl"))
    found = measured(job.folder, (own,), options.draws)[str(own)]
    return {
        "first_gap": history.first_gap(),
        "evaluations": sum(stage.evaluations for stage in history.stages()),
        **{key: found.get(key) for key in SHOWN[1:]},
    }


def joined(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A list over seeds of each figure."""
    return {key: [each[key] for each in found] for key in found[0]}


def show(rows: Sequence[Mapping[str, Any]], compared: Mapping[str, Any], options: argparse.Namespace) -> None:
    print(f"\n{options.recipe}, scale {options.scale:g}, {options.seeds} seeds")
    print(f"{'guidance':<12}{'steps':>7}{'evaluations':>13}" + "".join(f"{key:>24}" for key in SHOWN))
    for row in rows:
        spent = statistics.median(row["evaluations"])
        print(
            f"{row['guidance']:<12}{row['steps']:>7}{spent:>13,.0f}"
            + "".join(f"{spread(row[key]):>24}" for key in SHOWN)
        )
    for key, ours in compared.items():
        between = "" if ours["low"] is None else f" ({ours['low']:.2f} to {ours['high']:.2f})"
        print(f"along-path over constant, {key}: {ours['mean']:.2f}{between}")


def spread(values: Sequence[float | None]) -> str:
    if any(value is None for value in values):
        return "-"
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3g} ({min(known):.3g} to {max(known):.3g})"


if __name__ == "__main__":
    main()
