"""What one batch saves: the estimates of a guided target and of a fake score, both adapters on one
network, made in one batch and in separate passes.

    OMP_NUM_THREADS=1 python benchmarks/passes.py [--batches 1 2 4 16] [--pairs 20]

The networks are those of ``scenes-disback-lora``: a pass of target, unconditional estimate and fake
score, without gradients. A pair runs both ways one after the other, every second pair in the other
order. What is counted is the process' CPU seconds, so that other work on the machine hits both
alike. The ratio is the geometric mean of together / separate over pairs, with Student's 95 %
interval. Both ways must agree to 1e-3 of their size before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.networks.calls import Asking
from fewstep.objectives import DistributionMatching
from fewstep.objectives.scores.fakes import Learned
from fewstep.objectives.scores.passes import Separate, Together
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.states import Step
from networks import timed
from paired import ratio

RECIPE = "scenes-disback-lora"
SETTING = ('target={"kind": "fixed", "guidance": {"kind": "constant", "scale": 3.0}}', "training.device=cpu")
AGREE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 16], help="samples a step")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="that one batch may take")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE, list(SETTING))
    assert isinstance(recipe, DistillRecipe)
    with tempfile.TemporaryDirectory() as folder:
        parts = build_distillation(recipe, Path(folder))
    objective = next(
        term.objective
        for phase in parts.stages[-1].phases
        for term in phase.terms
        if isinstance(term.objective, DistributionMatching)
    )
    rows = []
    print(f"{'samples':>7} {'separate':>12} {'together':>12} {'together / separate':>24}")
    for batch in options.batches:
        step = Step(Key(0), batch)
        row = measured(asked_by(objective, step, step.state(parts.prior).condition), options.pairs, options.seconds)
        rows.append({"samples": batch, **row})
        interval = f"{row['ratio']['mean']:.2f} ({row['ratio']['low']:.2f} to {row['ratio']['high']:.2f})"
        print(f"{batch:>7} {row['separate']:>9.1f} ms {row['together']:>9.1f} ms {interval:>24}", flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "passes.json").write_text(json.dumps({"recipe": RECIPE, "rows": rows}, indent=1) + "\n")


def asked_by(objective: DistributionMatching, step: Step, condition: Any) -> list[Callable[[], Asking]]:
    """What a step asks of the fake score and of the target, at the times that it draws."""
    assert isinstance(objective.fake, Learned)
    target = objective.target.denoiser
    t = objective.times.draw(target.schedule, step.key, "time", step.rows)
    x = step.noise_like("noise", torch.zeros(step.rows, *target.shape))
    return [partial(denoiser.asked, x, t, condition) for denoiser in (objective.fake.denoiser, target)]


@torch.no_grad()
def measured(asked: list[Callable[[], Asking]], pairs: int, seconds: float) -> dict[str, Any]:
    """Milliseconds (medians) of each way, and their ratio."""
    ways = {"together": Together(), "separate": Separate()}
    estimates: dict[str, list[Tensor]] = {name: way.estimates(*asked) for name, way in ways.items()}
    for one, other in zip(estimates["together"], estimates["separate"], strict=True):
        if float((one - other).abs().max()) > AGREE * float(other.square().mean().sqrt()):
            raise SystemExit("the two ways differ: there is nothing to compare.")

    def run(name: str) -> None:
        ways[name].estimates(*asked)

    found = timed({name: partial(run, name) for name in ways}, pairs, seconds)
    medians = {name: 1000 * statistics.median(each) for name, each in found.items()}
    return {**medians, "ratio": ratio(found["together"], found["separate"])}


if __name__ == "__main__":
    main()
