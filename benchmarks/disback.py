"""Where is the path worth its price? DisBack against Diff-Instruct and the warm ablation, where the
paper's reasons hold.

    python benchmarks/disback.py --study plane --out runs/disback
    python benchmarks/disback.py --study fastgan --out runs/disback
    python benchmarks/disback.py --study foreign --out runs/disback

Every run of a study has the same number of network evaluations of one sample (a forward 1, a
backward 2); the path is paid from them. Seeds are paired: a seed sets weights and draws, and
evaluation noise is the same for all. Runs measure themselves (one draw of 5,000) every twentieth of
the way, the mismatch degree of their students beside it. Reported: the gain in the median of the
last quarter and at the very end (1 minus the geometric mean of the paired ratios, with Student's 95
% interval), the evaluations to fixed levels over Diff-Instruct's, the mismatch over training (the
paper's Fig. 4), and the gain by noise level. A study prints its hours before it starts; a run that
is there is not repeated, and a run that was cut off goes on. Studies:

- plane: a generator from random weights; times' mean and the rate's decay in six cells, and in one
  cell a longer path and wider times, to find which of these matters.
- fastgan: another architecture than the teacher's, from random weights; measured rules for
  recording and switching.
- foreign: a student that starts as the teacher of other digits (inverted, rotated), 40 % of its
  updates on nodes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from disback_studies import RECORDING, Arm, Cell, Run, Study, study_of
from disback_tables import draw, rows_of, show


def runs_of(study: Study, name: str, options: argparse.Namespace) -> list[Run]:
    """In the order in which they are run: seed by seed within a cell's round, so that an early stop
    leaves whole comparisons.
    """
    found = []
    cells = [cell for cell in study.cells if options.cells is None or cell.name in options.cells]
    for seed in range(study.first_seed, study.first_seed + (options.seeds or study.seeds)):
        for cell in cells:
            for arm in cell.arms:
                folder = options.out / name / slug(cell.name) / f"{arm.name}-{seed}"
                found.append(Run(cell, arm, seed, folder, settings_of(study, cell, arm, seed, options)))
    return found


def settings_of(study: Study, cell: Cell, arm: Arm, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    total = options.steps or study.steps
    steps = arm.recorded + round((total * study.cost - RECORDING * arm.recorded) / study.cost)
    values = {**study.shared, "training.seed": seed, "evaluation.every": max(1, total // 20)}
    values |= {
        "training.health_every": max(1, total // 10),
        "training.checkpoint_every": 100_000,
        **cell.settings,
        **arm.target,
    }
    if "student" not in cell.settings:
        values["student.seed"] = seed
    return {**values, **options.more, "training.steps": steps}


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name)


def carry_out(folder: str, recipe: str, settings: Mapping[str, Any]) -> float:
    """One run, in a process that has imported everything already; the seconds it took."""
    import torch

    from fewstep.runs import distill

    torch.set_num_threads(1)
    began = time.monotonic()
    distill(recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()], out=folder, resume=True)
    return time.monotonic() - began


def run_all(study: Study, runs: Sequence[Run], jobs: int) -> None:
    waiting = [run for run in runs if not run.done]
    hours = len(waiting) * study.seconds / 3600
    print(
        f"{len(waiting)} of {len(runs)} runs to do: about {hours:.1f} hours of one core, {jobs} at a time", flush=True
    )
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        started = [pool.submit(carry_out, str(run.folder), study.recipe, run.settings) for run in waiting]
        for number, (run, future) in enumerate(zip(waiting, started, strict=True), 1):
            print(f"[{number}/{len(waiting)}] {run.folder}: {future.result():.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=["plane", "fastgan", "foreign"], required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/disback"))
    parser.add_argument("--seeds", type=int, help="the study's own number unless given")
    parser.add_argument("--cells", nargs="*", help="names of cells; all unless given")
    parser.add_argument(
        "--steps", type=int, help="Diff-Instruct's steps, which set the budget; the study's own unless given"
    )
    parser.add_argument("--set", action="append", default=[], help="KEY=JSON, for every run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only-show", action="store_true", help="tables of what is there")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.more = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    study = study_of(options.study, options)
    runs = runs_of(study, options.study, options)
    if not options.only_show:
        run_all(study, runs, options.jobs)
    rows = list(rows_of(study, runs))
    show(options.study, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"study": options.study, "steps": options.steps or study.steps, "rows": rows}
    (options.results / f"disback-{options.study}.json").write_text(json.dumps(content) + "\n")
    if rows:
        draw(options.study, rows, options.results)


if __name__ == "__main__":
    main()
