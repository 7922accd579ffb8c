"""Teacher and student that differ in architecture: DisBack against Diff-Instruct into FastGAN's
generator on digits, from random weights and from a GAN; and the GAN alone.

    python benchmarks/fastgan.py --out runs/fastgan                    # three seeds
    python benchmarks/fastgan.py --out runs/fastgan --seeds 1 --budget 40000 --gan 20000

Each distillation gets ``--budget`` network evaluations of one sample (a forward 1, a backward 2),
DisBack's path paid from them: its recipe's steps are set to what that buys, all its proportions
kept. The GAN gets ``--gan`` (its critic's are not counted), and once more as many as it and a
distillation have together, since that is what a warm start costs. Seeds are paired: they set
weights and draws, and a warm start is from the GAN of the same seed; evaluation noise is the same
for all. One draw of 5,000 samples a seed; medians over seeds, with the range.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner import Job, measured, options_of, run_all

BATCH = 64
# Evaluations of one sample at each step of training. Every second step is the student's (5 with
# teacher and fake score) and the fake score's (3), every other the fake score's with the samples it
# needs (4); of DisBack's, one in thirty records, which takes 4.
COSTS = {"diff-instruct": 6.0, "disback": 6 - 2 / 30}
GAN_COST = 3.0
QUIET = {"training.health_every": 100_000, "evaluation.every": 500}
COLUMNS = ("fd", "accuracy", "precision", "recall", "diversity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=600_000)
    parser.add_argument("--gan", type=int, default=600_000)
    options = options_of(parser, "runs/fastgan", 3)
    arms: dict[str, list[Job]] = {}
    # Seed by seed, so that an early stop leaves whole comparisons.
    for seed in range(options.seeds):
        jobs = arms_of(options, seed)
        # The GAN first, on whose file the warm starts wait.
        run_all([jobs["gan"]], options)
        run_all(list(jobs.values()), options, lambda job: measured(job.folder, [1]))
        for name, job in jobs.items():
            arms.setdefault(name, []).append(job)
    rows = [{"arm": name, **summary(jobs)} for name, jobs in arms.items()]
    show(rows, options)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"budget": options.budget, "gan": options.gan, "seeds": options.seeds, "rows": rows, "wins": wins(rows)}
    (options.results / "fastgan.json").write_text(json.dumps(content, indent=1) + "\n")


def arms_of(options: argparse.Namespace, seed: int) -> dict[str, Job]:
    """The runs of one seed, by name."""
    folder = options.out / f"{options.budget}-{options.gan}"
    gan = gan_job(folder / f"gan-{seed}", options.gan, seed)
    jobs = {"gan": gan, "gan, longer": gan_job(folder / f"gan-longer-{seed}", options.gan + options.budget, seed)}
    for start, file in (("random", None), ("gan", gan.model)):
        for method, cost in COSTS.items():
            settings = {
                **QUIET,
                "training.seed": seed,
                "student.seed": seed,
                "training.steps": round(options.budget / (BATCH * cost)),
            }
            settings |= {} if file is None else {"student.start": str(file.resolve())}
            jobs[f"{method} from {start}"] = Job(
                folder / f"{method}-{start}-{seed}", f"digits-fastgan-{method}", settings
            )
    return jobs


def gan_job(folder: Path, evaluations: int, seed: int) -> Job:
    settings = {
        "training.seed": seed,
        "evaluation.every": QUIET["evaluation.every"],
        "training.steps": round(evaluations / (BATCH * GAN_COST)),
    }
    return Job(folder, "digits-fastgan", settings, "pretrain")


def summary(jobs: Sequence[Job]) -> dict[str, Any]:
    """Figures of one arm, a list over seeds; evaluations and seconds of each run, and the Frechet
    distance over evaluations.
    """
    found = [measured(job.folder, [1])["1"] for job in jobs]
    logs = [log_of(job.folder) for job in jobs]
    curves = [[(line["evaluations"], line["fd"]) for line in log if line.get("probe") == "evaluation"] for log in logs]
    return {
        **{key: [each[key] for each in found] for key in COLUMNS},
        "evaluations": [log[-1]["evaluations"] for log in logs],
        "curves": curves,
    }


def log_of(folder: Path) -> list[dict[str, Any]]:
    from fewstep.training.reporting.log import read_log

    return [entry for entry in read_log(folder / "metrics.jsonl") if "evaluations" in entry]


def wins(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """On how many seeds DisBack ends lower than Diff-Instruct, by start."""
    by_arm = {row["arm"]: row["fd"] for row in rows}
    starts = ("random", "gan")
    return {
        start: sum(
            a < b for a, b in zip(by_arm[f"disback from {start}"], by_arm[f"diff-instruct from {start}"], strict=True)
        )
        for start in starts
    }


def show(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    print(
        f"\n{options.seeds} seeds; {options.budget} network evaluations a distillation, {options.gan} of "
        "the GAN before; medians over seeds (range)"
    )
    print(
        f"{'':<26} {'Frechet distance':>26} {'accuracy':>9} {'precision':>10} {'recall':>7} "
        f"{'diversity':>10} {'evaluations':>12}"
    )
    for row in rows:
        figures = [statistics.median(row[key]) for key in COLUMNS[1:]]
        print(
            f"{row['arm']:<26} {spread(row['fd']):>26} {figures[0]:>9.1%} {figures[1]:>10.3f} "
            f"{figures[2]:>7.3f} {figures[3]:>10.3f} {row['evaluations'][0]:>12}"
        )
    for start, count in wins(rows).items():
        print(f"from {start}: DisBack lower than Diff-Instruct on {count} of {options.seeds} seeds")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
