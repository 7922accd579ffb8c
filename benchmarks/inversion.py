"""Does a trajectory model carry data to noise, and back? With its jumps upwards trained
(``method.inversion``) and without, against the teacher's ODE, in the plane.

    python benchmarks/inversion.py --out runs/inversion --seeds 2 --steps 1100

Data are noised to t_min and carried to the student's first level in 1, 2, 4 and 8 jumps. ``off``:
the root mean square distance to where the teacher's ODE arrives (Heun, ``FINE`` steps), over the
noise level there: 1 is as far as noise of another seed is on average over 1.41. ``back``: the root
mean square distance to the data after as many jumps down again, over the data's standard deviation.
Beside it what the teacher does in as many DDIM steps each way. Medians over seeds, with the range.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner import Job, kept, options_of, run_all

JUMPS = (1, 2, 4, 8)
FINE = 200
SAMPLES = 2000
RECIPES = {"both ways": "mixture2d-ctm-inversion", "down only": "mixture2d-ctm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="of training, a run")
    options = options_of(parser, "runs/inversion", 2)
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = {(name, seed): job_of(name, seed, options) for seed in range(options.seeds) for name in RECIPES}
    run_all([*jobs.values()], options)
    found = {name: [figures(jobs[name, seed].folder) for seed in range(options.seeds)] for name in RECIPES}
    rows = [row for name in RECIPES for row in rows_of(f"student, {name}", [each["student"] for each in found[name]])]
    rows += rows_of("teacher, DDIM", [each["teacher"] for each in found["down only"]])
    show(rows, options)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "inversion.json").write_text(
        json.dumps({"steps": options.steps, "seeds": options.seeds, "samples": SAMPLES, "rows": rows}, indent=1) + "\n"
    )


def job_of(name: str, seed: int, options: argparse.Namespace) -> Job:
    values: dict[str, Any] = {
        "training.steps": options.steps,
        "training.seed": seed,
        "training.health_every": 100_000,
        "evaluation.every": 100_000,
    }
    return Job(options.out / str(options.steps) / f"{RECIPES[name]}-{seed}", RECIPES[name], values)


def figures(folder: Path) -> dict[str, Any]:
    """What was measured of a run, kept beside it."""
    return kept(folder / "inversion.json", lambda: measured(folder))


def measured(folder: Path) -> dict[str, Any]:
    """What a run's averaged student does, and its teacher, by number of jumps."""
    import torch
    from torch import Tensor

    from fewstep.denoisers import TrajectoryDenoiser
    from fewstep.random import Key
    from fewstep.runs import RunFolder, load, load_teacher
    from fewstep.solvers import EULER, HEUN, solve
    from fewstep.times import RhoGrid

    recipe, sampler = RunFolder(folder).read_distill_recipe(), load(folder)
    assert recipe.data is not None
    student, teacher, data = sampler.model, load_teacher(folder).denoiser, recipe.data.open()
    assert isinstance(student, TrajectoryDenoiser)
    schedule, key, level = student.schedule, Key(0, "inversion"), sampler.prior.time
    x0 = data.take(key.integers("data", SAMPLES, len(data)))
    low = schedule.add_noise(
        x0, torch.full((SAMPLES,), schedule.t_min, dtype=torch.float64), key.normal("noise", x0.shape).to(x0)
    )

    def down(jumps: int) -> Tensor:
        return RhoGrid().between(schedule, level, schedule.t_min, jumps + 1)

    def jumped(x: Tensor, times: Tensor) -> Tensor:
        for t, s in pairwise(times):
            x = student.jump(x, t, s)
        return x

    def there_and_back(carry: Callable[[Tensor, Tensor], Tensor], jumps: int) -> dict[str, float]:
        """Up to the level, down again, and clean at the end."""
        up = carry(low, down(jumps).flip(0))
        back = carry(up, torch.cat([down(jumps)[:-1], torch.zeros(1, dtype=torch.float64)]))
        return {"off": rms(up - far) / float(schedule.sigma(level)), "back": rms(back - x0) / float(x0.std(0).mean())}

    def rms(apart: Tensor) -> float:
        return float(apart.square().mean().sqrt())

    with torch.no_grad():
        far = solve(HEUN, teacher, low, down(FINE).flip(0))
        by = {"student": jumped, "teacher": lambda x, times: solve(EULER, teacher, x, times)}
        return {name: {str(jumps): there_and_back(carry, jumps) for jumps in JUMPS} for name, carry in by.items()}


def rows_of(name: str, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a number of jumps, with the figures of each seed."""
    return [
        {"map": name, "jumps": jumps, **{key: [each[str(jumps)][key] for each in found] for key in ("off", "back")}}
        for jumps in JUMPS
    ]


def show(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"\n{options.seeds} seeds, {options.steps} steps of training, {SAMPLES} samples")
    print(f"{'map':<20} {'jumps each way':>14} {'off, of the noise level':>26} {'back, of the data':>26}")
    for row in rows:
        print(f"{row['map']:<20} {row['jumps']:>14} {spread(row['off']):>26} {spread(row['back']):>26}")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1%} ({min(values):.1%} to {max(values):.1%})"


if __name__ == "__main__":
    main()
