"""Whether a collapse is warned of in time: runs that are spoilt on purpose, and the same runs left
alone, counted.

    python stress/alarms.py --runs 10

A run of a shipped recipe, in the plane and on digits, is trained for a while and then goes on for
50 steps in one of four ways, its health being read every 10:

- nothing changes: a warning is a false alarm
- fake score frozen: its rate is 0
- rate times 30: of the student
- guidance 30: the target is guided by this scale; only where the teacher knows classes

Of each way the script counts the seeds in which any health reading warned within these 50 steps,
and says which of them did, the first of each run. Warnings that say that the fake score stands
still are counted apart, since they name the cause: ``by samples`` leaves them out. A run is on one
thread and a function of its seed.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewstep.objectives import DistributionMatching
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.targets import ConstantGuidance, GuidedTarget
from fewstep.training import Phase, Stage, Term, Trainer
from fewstep.training.reporting.log import read_log

EVERY, WITHIN = 10, 50
# A recipe, the steps before it is spoilt, and what makes it small.
PLACES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "plane": ("mixture2d-diff-instruct", 1000, ("training.batch=128",)),
    "digits": ("digits-diff-instruct", 200, ("training.batch=16",)),
}
STILL = "the fake score has moved by 0"
Spoils = Callable[[Phase, Distillation], Phase]


def left_alone(phase: Phase, parts: Distillation) -> Phase:
    """The phase as it was."""
    return phase


def frozen_fake(phase: Phase, parts: Distillation) -> Phase:
    """No rate for the fake score."""
    return replace(phase, optimizer=replace(phase.optimizer, lr=1e-30)) if phase.name == "fake" else phase


def fast_student(phase: Phase, parts: Distillation) -> Phase:
    """Thirty times the student's rate."""
    if phase.network is not parts.student:
        return phase
    return replace(phase, optimizer=replace(phase.optimizer, lr=30 * phase.optimizer.lr))


def guided(phase: Phase, parts: Distillation) -> Phase:
    """A target that is guided by 30."""

    def term(each: Term) -> Term:
        if not isinstance(each.objective, DistributionMatching):
            return each
        target = GuidedTarget(each.objective.target, ConstantGuidance(30.0), parts.prior.conditions)
        return replace(each, objective=replace(each.objective, target=target))

    return replace(phase, terms=[term(each) for each in phase.terms])


WAYS: dict[str, Spoils] = {
    "nothing changes": left_alone,
    "fake score frozen": frozen_fake,
    "rate times 30": fast_student,
    "guidance 30": guided,
}


def warned(place: str, way: str, seed: int, steps: int | None = None, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The warnings of a run that is spoilt after ``steps`` steps: by kind, after how many steps
    each came first; and those before.
    """
    name, usual, small = PLACES[place]
    before = usual if steps is None else steps
    settings = (*small, f"training.seed={seed}", *((f"student.seed={seed}",) if place == "plane" else ()))
    fixed = (f"training.health_every={EVERY}", f"training.log_every={EVERY}", "training.checkpoint_every=1000000")
    recipe = load_recipe(name, [*settings, f"training.steps={before}", *fixed, *more])
    assert isinstance(recipe, DistillRecipe)
    with tempfile.TemporaryDirectory() as folder:
        parts = build_distillation(recipe, Path(folder))
        (stage,) = parts.stages
        spoilt = [WAYS[way](phase, parts) for phase in stage.phases]
        stages = [stage, Stage("spoilt", WITHIN, spoilt)]
        trainer = Trainer(
            folder, stages, parts.average, build_settings(recipe.training), recipe.training.average, [parts.monitor]
        )
        trainer.fit()
        entries = [entry for entry in read_log(Path(folder) / "metrics.jsonl") if entry.get("probe") == "health"]
    found: dict[str, int] = {}
    for entry in entries:
        for text in entry["warnings"] if before < entry["step"] <= before + WITHIN else ():
            found.setdefault(kind_of(text), entry["step"] - before)
    earlier = Counter(kind_of(text) for e in entries if e["step"] <= before for text in e["warnings"])
    readings = {
        entry["step"] - before: {name: value for name, value in entry.items() if isinstance(value, float)}
        for entry in entries
        if entry["step"] >= before
    }
    return {"seed": seed, "found": found, "earlier": earlier, "readings": readings}


def kind_of(warning: str) -> str:
    """A warning without its figures, up to its reason."""
    return re.sub(r"\d+(\.\d+)?%?", "#", warning).split(":")[0].split(" (")[0]


def counted(place: str, way: str, seeds: int, steps: int | None, more: tuple[str, ...]) -> dict[str, Any]:
    """How many of the seeds warned, and by what."""
    runs = [warned(place, way, seed, steps, more) for seed in range(seeds)]
    by_samples = [[kind for kind in run["found"] if not kind.startswith(STILL)] for run in runs]
    return {
        "place": place,
        "way": way,
        "seeds": seeds,
        "warned": sum(bool(run["found"]) for run in runs),
        "by_samples": sum(map(bool, by_samples)),
        "before": sum(bool(run["earlier"]) for run in runs),
        "runs": runs,
    }


def main() -> None:
    """Counts all ways in all places, prints a table and writes ``alarms.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of each way, each of another seed")
    parser.add_argument("--steps", type=int, help="before a run is spoilt; each place's own unless given")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run")
    parser.add_argument("--results", type=Path, default=Path("stress/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for place in args.places:
        for way in args.ways:
            if way == "guidance 30" and place == "plane":
                continue
            row = counted(place, way, args.runs, args.steps, tuple(args.set))
            rows.append(row)
            kinds = Counter(kind for run in row["runs"] for kind in run["found"])
            shown = "; ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
            print(
                f"{place:<8}{way:<20}{row['warned']:>3} of {row['seeds']} warned, {row['by_samples']:>3} by samples, "
                f"{row['before']:>3} before: {shown}",
                flush=True,
            )
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "alarms.json").write_text(json.dumps({"steps": args.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
