"""One-step students of the scenes' text-to-image teacher, from prompts alone: DisBack, its warm
ablation and Diff-Instruct, with a guided target and without guidance.

    # some ten minutes of a core a run; it says the hours before it starts
    python benchmarks/scenes_students.py --seeds 5 --out runs/scenes-students
    python benchmarks/scenes_students.py --only-show --out runs/scenes-students

``along path`` is DisBack too, but guided by 1 at the last node and by the full scale at the teacher
only; ``first gap`` is the gap between the scores at the first step after recording.

All runs have the network evaluations of one sample that the recipe ``scenes-disback`` has, or
``--budget``: recording, which DisBack alone has, is paid from them. The warm ablation records as
long and keeps the last node alone. There are ``--plain-seeds`` runs at guidance 1, and
``--along-seeds`` runs that are guided along the path. Each student is measured by ``fewstep
evaluate``: the Frechet distance to the guided teacher's own samples, the prompt accuracy of seen
prompts, diversity a prompt (ten pictures of each of fifty prompts) over the teacher's; and by the
prompts of held-out combinations, which no run was trained on. Seeds are paired, evaluation noise is
the same for all; means over seeds, gains with Student's interval. Runs whose figures are there are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from paired import gain
from runner import Job, options_of, studied

RECIPE = "scenes-disback"
ARMS = ("disback", "warm", "diff-instruct")
SCALE = 1.75
ALONG = "along path"
SHOWN = ("fd", "accuracy", "held_out", "diversity", "first_gap", "seconds_a_step")
PER_CENT = ("accuracy", "held_out", "diversity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain-seeds", type=int, default=3, help="of runs at guidance 1")
    parser.add_argument("--along-seeds", type=int, default=3, help="of runs that are guided along the path")
    parser.add_argument("--budget", type=float, help="network evaluations of one sample, a run")
    parser.add_argument("--pictures", type=int, default=400, help="of held-out prompts")
    parser.add_argument("--only-show", action="store_true", help="tables of the runs that are there")
    options = options_of(parser, "runs/scenes-students", 5)
    arms = {(arm, SCALE): options.seeds for arm in ARMS}
    arms[ALONG, SCALE] = min(options.along_seeds, options.seeds)
    arms |= {(arm, 1.0): min(options.plain_seeds, options.seeds) for arm in ("disback", "diff-instruct")}
    steps = {arm: steps_within(arm, options) for arm in arms}
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = {
        (arm, seed): job_of(arm, seed, steps[arm], options)
        for seed in range(options.seeds)
        for arm, seeds in arms.items()
        if seed < seeds
    }
    found = studied(jobs, options, partial(figures, pictures=options.pictures), 1 / 6, pictures=options.pictures)
    rows = [
        {
            "arm": arm[0],
            "guidance": arm[1],
            "steps": steps[arm],
            **of_seeds(found, arm, options.seeds),
        }
        for arm in arms
    ]
    compared = {scale: compare(rows, scale) for scale in (SCALE, 1.0)}
    show(rows, compared)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"recipe": RECIPE, "rows": rows, "gains of disback": {str(key): each for key, each in compared.items()}}
    (options.results / "scenes-students.json").write_text(json.dumps(content, indent=1) + "\n")


def target_of(arm: str, scale: float) -> dict[str, Any]:
    """The settings of a run's target."""
    from fewstep.recipes import DistillRecipe, load_recipe
    from fewstep.targets.record import RecordEvery

    kind = "along-path" if arm == ALONG else "constant"
    guidance = {"kind": kind, "scale": scale} if scale != 1 else {"kind": "none"}
    if arm == "diff-instruct":
        return {"target": {"kind": "fixed", "guidance": guidance}}
    if arm != "warm":
        return {"target.guidance": guidance}
    recipe = load_recipe(RECIPE)
    assert isinstance(recipe, DistillRecipe)
    target = recipe.target.backtracked
    assert target is not None
    assert isinstance(target.record, RecordEvery)
    recorded = target.record.steps * (target.nodes - 1)
    return {"target.guidance": guidance, "target.nodes": 2, "target.record.steps": recorded}


def steps_within(arm: tuple[str, float], options: argparse.Namespace) -> int:
    """The steps that the budget buys: counted by a rehearsal."""
    from fewstep.planning import plan_recipe

    def planned(arm: tuple[str, float]) -> Any:
        settings = {**target_of(*arm), **options.more}
        return plan_recipe(RECIPE, [f"{key}={json.dumps(value)}" for key, value in settings.items()])

    budget = options.budget or planned(("disback", SCALE)).evaluations
    plan = planned(arm)
    return round(sum(plan.steps.values()) * budget / plan.evaluations)


def job_of(arm: tuple[str, float], seed: int, steps: int, options: argparse.Namespace) -> Job:
    settings = {
        "training.seed": seed,
        "training.health_every": 100_000,
        "evaluation.every": 100_000,
        **target_of(*arm),
        "training.steps": steps,
    }
    return Job(options.out / f"{arm[0].replace(' ', '-')}-{arm[1]:g}-{steps}-{seed}", RECIPE, settings)


def figures(job: Job, pictures: int, steps: int = 1) -> dict[str, Any]:
    """What is measured of a run's student in so many steps, in a process of its own."""
    script = Path(__file__).with_name("scenes_measured.py")
    command = [sys.executable, str(script), str(job.folder), str(pictures), str(steps)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{job.folder}: {result.stderr.splitlines()[-1]}")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def compare(rows: Sequence[Mapping[str, Any]], scale: float) -> dict[str, Any]:
    """The gain of DisBack in distance over each other arm at that scale, seed by seed."""
    by_arm = {
        row["arm"]: dict(zip(row["seeds"], row["figures"], strict=True)) for row in rows if row["guidance"] == scale
    }
    ours, found = by_arm.get("disback", {}), {}
    for arm, theirs in by_arm.items():
        seeds = sorted(ours.keys() & theirs.keys())
        if arm != "disback" and seeds:
            found[arm] = gain([ours[seed]["fd"] for seed in seeds], [theirs[seed]["fd"] for seed in seeds])
    return found


def show(rows: Sequence[Mapping[str, Any]], compared: Mapping[float, Mapping[str, Any]]) -> None:
    print(f"\n{'arm':<15}{'guidance':>9}{'steps':>7}{'seeds':>6}" + "".join(f"{key:>26}" for key in SHOWN))
    for row in rows:
        print(f"{row['arm']:<15}{row['guidance']:>9g}{row['steps']:>7}{len(row['seeds']):>6}" + cells(row, SHOWN))
    for scale, others in compared.items():
        for arm, each in others.items():
            between = "" if each["low"] is None else f" ({each['low']:+.0f} to {each['high']:+.0f})"
            lower = f"lower on {each['wins']} of {each['pairs']}"
            print(f"guidance {scale:g}: disback's distance below {arm}'s by {each['mean']:+.0f} %{between}, {lower}")


def of_seeds(found: Mapping[tuple[Any, int], Any], arm: Any, seeds: int) -> dict[str, list[Any]]:
    """The ``seeds`` of which an arm's figures were found, and these ``figures``."""
    there = [seed for seed in range(seeds) if (arm, seed) in found]
    return {"seeds": there, "figures": [found[arm, seed] for seed in there]}


def cells(row: Mapping[str, Any], shown: Sequence[str]) -> str:
    """A row's figures of these names over its seeds, as columns."""
    return "".join(f"{spread([each[key] for each in row['figures']], key in PER_CENT):>26}" for key in shown)


def spread(values: Sequence[float | None], per_cent: bool) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    form = "{:.1%}" if per_cent else "{:.3g}"
    shown = [form.format(value) for value in (statistics.fmean(known), min(known), max(known))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


if __name__ == "__main__":
    main()
