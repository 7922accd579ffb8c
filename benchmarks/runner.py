"""Runs of shipped recipes with overrides, each `fewstep distill` or `fewstep pretrain` on one
thread, several at a time; one that is there is not repeated, one that was cut off goes on. A study
whose figures are kept apart from its runs goes on where its runs are gone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A recipe with overrides, in a folder; ``task``: the recipe's."""

    folder: Path
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: str = "distill"

    @property
    def model(self) -> Path:
        """The file it ends with."""
        return self.folder / ("student.safetensors" if self.task == "distill" else "model.safetensors")

    @property
    def done(self) -> bool:
        """Whether that is there."""
        return self.model.is_file()

    @property
    def command(self) -> list[str]:
        """What runs it, or goes on with it, without its settings."""
        return [
            sys.executable,
            "-m",
            "fewstep",
            self.task,
            self.recipe,
            "--out",
            str(self.folder),
            "--resume",
            "--threads",
            "1",
        ]

    def said(self, more: Mapping[str, Any]) -> list[str]:
        """Its settings and ``more``, as the command line says them."""
        return [f"{key}={json.dumps(value)}" for key, value in {**self.settings, **more}.items()]

    def run(self, more: Mapping[str, Any]) -> None:
        """Runs it, with ``more`` settings, in a process of its own; ends the benchmark with its
        last line of error if it fails.
        """
        command = self.command
        # training.steps is given in full beside all shares, so that none is scaled.
        command += [argument for setting in self.said(more) for argument in ("--set", setting)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"{self.folder}: {result.stderr.splitlines()[-1]}")


def options_of(parser: argparse.ArgumentParser, out: str, seeds: int) -> argparse.Namespace:
    """What every comparison of runs is told: where, how many seeds, how many runs at a time;
    ``more`` settings of all runs.
    """
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="a setting of every run; repeatable"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.more = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    return options


def run_all(jobs: Sequence[Job], options: argparse.Namespace, then: Callable[[Job], Any] | None = None) -> None:
    """Runs what is not there, in order, and calls ``then`` on each job (also on those that were
    there).
    """

    def one(job: Job) -> Job:
        if not job.done:
            job.run(options.more)
        if then is not None:
            then(job)
        return job

    with ThreadPoolExecutor(options.jobs) as pool:
        for done, job in enumerate(pool.map(one, jobs), 1):
            print(f"[{done}/{len(jobs)}] {job.folder.name}", flush=True)


def studied(
    jobs: Mapping[Any, Job],
    options: argparse.Namespace,
    measure: Callable[[Job], Mapping[str, Any]],
    hours: float,
    **how: Any,
) -> dict[Any, Any]:
    """What ``measure`` finds of each of a study's runs, by their places; of those that are there.

    Runs and measures what is not there, unless ``options.only_show``, and says before by ``hours``
    a run how long that takes. Figures are kept beside the results, under a name that holds a
    digest of the whole recipe and of ``how`` is measured: they are small enough to be committed,
    so that a study goes on on another machine; figures of other settings are not taken for these.
    """
    files = {place: figures_file(job, options, how) for place, job in jobs.items()}
    if not options.only_show:
        waiting = {place: job for place, job in jobs.items() if not files[place].is_file()}
        print(
            f"{len(waiting)} of {len(jobs)} runs to do, about {len(waiting) * hours:.1f} hours of one core", flush=True
        )
        places = {job.folder: place for place, job in waiting.items()}
        run_all([*waiting.values()], options, lambda job: kept(files[places[job.folder]], lambda: measure(job)))
    return {place: json.loads(file.read_text()) for place, file in files.items() if file.is_file()}


def figures_file(job: Job, options: argparse.Namespace, how: Mapping[str, Any]) -> Path:
    """Where the figures of a run are kept that was measured so."""
    from fewstep.recipes import load_recipe

    recipe = load_recipe(job.recipe, job.said(options.more)).model_dump(mode="json")
    # Where it is computed changes no figure.
    recipe["training"].pop("device")
    digest = hashlib.sha256(json.dumps([recipe, how], sort_keys=True).encode()).hexdigest()[:12]
    return Path(options.results, job.folder.parent.name, f"{job.folder.name}-{digest}.json")


def kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What ``path`` holds, made and written when it is not there."""
    if not path.is_file():
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(value))
        aside.replace(path)
    return json.loads(path.read_text())


def measured(folder: Path, steps: Sequence[int], draws: int = 1) -> dict[str, Any]:
    """Quality and breadth of a run's student, or of the generator of a pretraining, by number of
    steps, in a process of its own, on one thread; kept beside the run.
    """

    def make() -> dict[str, Any]:
        command = [sys.executable, __file__, str(folder), str(draws), *map(str, steps)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"{folder}: {result.stderr.splitlines()[-1]}")
        return json.loads(result.stdout)

    return kept(folder / f"measured-{'-'.join(map(str, steps))}-{draws}.json", make)


def _measure(folder: Path, draws: int, steps: Sequence[int]) -> dict[str, Any]:
    import torch

    from fewstep.random import Key
    from fewstep.recipes import DistillRecipe
    from fewstep.recipes.building.parts import build_evaluator
    from fewstep.runs import RunFolder, load

    torch.set_num_threads(1)
    recipe = RunFolder(folder).read_recipe()
    sampler = load(folder if isinstance(recipe, DistillRecipe) else RunFolder(folder).model)
    assert recipe.data is not None
    evaluator = build_evaluator(recipe.evaluation, recipe.data.open())

    def drawn(number: int, place: Key, n: int, labels: torch.Tensor | None) -> torch.Tensor:
        return sampler.draw(place, n, labels, number).clamp(sampler.low, sampler.high)

    found: dict[str, Any] = {}
    for number in steps:
        full = evaluator.describe(partial(drawn, number), draws)
        found[str(number)] = {"fd": full.quality.fd, "accuracy": full.quality.accuracy, **vars(full.breadth)}
    return found


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]), [int(number) for number in sys.argv[3:]])))
