"""How large is the mismatch that a degradation path mitigates? The mismatch degree (DisBack, Eq. 9) on data and on the untrained student's samples, for both shipped teachers.

    python benchmarks/mismatch.py

Per noise level sigma / alpha, from 1,000 samples each; levels where fewer than two references speak are marked. Units: the score of pure noise has size 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fewstep.metrics import MismatchDegree, assessed_mismatch, training_mismatch
from fewstep.random import Place
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.distillation import build_distillation
from fewstep.states import Step

ROWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    results = {}
    for name in ("digits-disback", "mixture2d-disback"):
        training, assessed = measure(name)
        results[name] = {"levels": training.levels, "data": training.degrees, "untrained student": assessed.degrees}
        show(name, training, assessed)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "mismatch.json").write_text(json.dumps(results, indent=1) + "\n")


def measure(name: str) -> tuple[MismatchDegree, MismatchDegree]:
    recipe = load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    parts = build_distillation(recipe, Path("unused"))
    place = Place(0, "mismatch-benchmark")
    order = place.permutation("subset", len(parts.data))[:ROWS]
    data = parts.data.subset(order)
    step = Step(place, ROWS)
    state = parts.prior.at(place, "prior", ROWS, data.labels)
    samples = step.sample(parts.student, state)
    return training_mismatch(parts.teacher, data, place), assessed_mismatch(parts.teacher, samples, data.labels, place)


def show(name: str, training: MismatchDegree, assessed: MismatchDegree) -> None:
    print(f"\n{name}\n{'level':>8} {'data':>8} {'untrained student':>18} {'ratio':>7}")
    both = zip(training.reliable, assessed.reliable, strict=True)
    for level, a, b, (fine, other) in zip(training.levels, training.degrees, assessed.degrees, both, strict=True):
        print(f"{level:>8} {a:>8.3f} {b:>18.3f} {b / a:>7.2f}" + ("" if fine and other else "   (fewer than two references)"))


if __name__ == "__main__":
    main()
