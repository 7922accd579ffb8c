"""What draws cost that are made ahead: a training step whose states a thread draws, against the
same step on states that were drawn beforehand.

    python benchmarks/overlap.py [--pairs 20] [--block 3] [--threads 1]

The step trains a ``small-unet`` on noised pictures: they are decoded from a zip, times and noise
are drawn; 256 pixels a side are taken in patches of 4 x 4. Blocks of steps alternate between three
arms: ``beforehand`` (all that is drawn is in memory), ``ahead`` (a thread draws the next step while
this one computes) and ``in turn`` (as without the thread). What counts is the geometric mean of the
ratios of neighbouring blocks of ``ahead`` to ``beforehand``, with its interval. The thread needs a
core of its own: where there is one core (``taskset -c 0``), ``ahead`` is to cost what ``in turn``
costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fewstep as fs
from fewstep.data.archive import write_archive
from fewstep.data.images import open_images
from fewstep.networks import build
from fewstep.states import ForwardDiffusion, State, States, Step
from paired import gain

SIZES = {"32 x 3 x 64 x 64": (32, 64), "16 x 3 x 256 x 256": (16, 256)}
PICTURES = 64
ARMS = ("beforehand", "ahead", "in turn")


@dataclass(frozen=True, eq=False)
class Beforehand(States):
    """The first few draws of a source, which are in memory, in turn."""

    drawn: tuple[State, ...]

    def draw(self, step: Step) -> State:
        return self.drawn[step.key.step % len(self.drawn)]


@dataclass(frozen=True, eq=False)
class InTurn(States):
    """The states of a source, all of them drawn where they are needed."""

    source: States

    def draw(self, step: Step) -> State:
        # In a step of its own, so that nobody learns of its normals.
        return self.source.draw(Step(step.key, step.rows, step.start, step.device))


def pictures(side: int) -> Iterator[tuple[Image.Image, None]]:
    """Smooth pictures with a little noise, which compress and decode as photographs do."""
    numbers = np.random.default_rng(0)
    for _ in range(PICTURES):
        coarse = Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int64)
        yield Image.fromarray((smooth + numbers.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)), None


def arms(batch: int, side: int, width: int, folder: Path) -> dict[str, fs.training.Trainer]:
    """A trainer an arm, of equal networks."""
    write_archive(folder / "pictures.zip", pictures(side))
    # Never kept in memory: every picture is decoded when it is drawn.
    data = open_images(folder / "pictures.zip", cached_bytes=0)
    schedule = fs.schedule.KarrasVE()
    source = ForwardDiffusion(data, schedule, fs.times.LogNormalTimes())
    kept = Beforehand(tuple(source.draw(Step(fs.random.Key(0, "train", step), batch)) for step in range(4)))
    network = build(
        {"kind": "small-unet", "channels": 3, "width": width, "depth": 1, "classes": 0, "patch": side // 64}
    )
    model = fs.denoisers.NetworkDenoiser(
        network, schedule, fs.prediction.EDM(0.5), fs.denoisers.EDMInputs(0.5), (3, side, side)
    )
    found = {}
    for arm in ARMS:
        own = fs.denoisers.copy_of(model).requires_grad_(True)
        states: States = {"beforehand": kept, "ahead": source, "in turn": InTurn(source)}[arm]
        term = fs.training.Term(fs.objectives.Denoising(own, fs.objectives.EDMWeight(0.5)), states)
        stage = fs.training.Stage("train", 10**9, [fs.training.Phase("model", own, [term])])
        found[arm] = fs.training.Trainer(folder / arm, [stage], own, fs.training.Settings(batch=batch))
    return found


def measured(batch: int, side: int, options: argparse.Namespace) -> dict[str, Any]:
    """The seconds of a step of each arm, block by block, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = arms(batch, side, options.width, Path(folder))
        for trainer in trainers.values():
            # The first two steps are drawn in turn in every arm.
            trainer.advance(3)
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for pair in range(options.pairs):
            for arm in ARMS if pair % 2 else reversed(ARMS):
                began = time.perf_counter()
                trainers[arm].advance(options.block)
                seconds[arm].append((time.perf_counter() - began) / options.block)
    found: dict[str, Any] = {"ms": {arm: 1e3 * statistics.median(values) for arm, values in seconds.items()}}
    for arm in ("ahead", "in turn"):
        gained = gain(seconds[arm], seconds["beforehand"])
        # A gain of -3 % is a ratio of 1.03.
        low, mean, high = (None if gained[key] is None else 1 - gained[key] / 100 for key in ("high", "mean", "low"))
        found[arm] = {"ratio": mean, "low": low, "high": high}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--block", type=int, default=3, help="steps a block")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=32, help="of the network")
    parser.add_argument("--only", choices=SIZES, help="one size alone")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: measured(*size, options) for name, size in SIZES.items() if options.only in (None, name)}
    print(f"{'':<20} {'beforehand':>12} {'ahead':>10} {'in turn':>10} {'ratio':>8} {'95 %':>16}")
    for name, row in found.items():
        ms, ahead = row["ms"], row["ahead"]
        between = "" if ahead["low"] is None else f"{ahead['low']:.3f} to {ahead['high']:.3f}"
        print(
            f"{name:<20} {ms['beforehand']:>9.0f} ms {ms['ahead']:>7.0f} ms {ms['in turn']:>7.0f} ms "
            f"{ahead['ratio']:>8.3f} {between:>16}"
        )
    how = {
        "pairs": options.pairs,
        "block": options.block,
        "threads": options.threads,
        "width": options.width,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "overlap.json").write_text(json.dumps({**how, "sizes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
