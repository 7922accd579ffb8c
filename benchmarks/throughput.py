"""How much two processes make of two cores, and what a GPU makes of its peak.

    # two processes against one, the same global batch: some half an hour of two idle cores
    python benchmarks/throughput.py
    # bf16, torch.compile and CUDA graphs on one GPU
    python benchmarks/throughput.py --device cuda

On a processor every run is ``fewstep distill`` with one thread a process, and its step is timed by
its own log, from the first quarter on. Rounds take all ways in turn, and ratios are those within a
round, of which the median is reported. What keeps two processes from halving a step's time t is
taken apart by two more ways to run:

- *small batches*: one process alone with half of the batch takes longer than t / 2;
- *contention*: two such processes that know nothing of each other, side by side, take longer than
  one of them (caches, memory);
- *exchange*: two processes that share the batch take longer than those (gradients, waiting for each
  other).

On a GPU each variant is a process of its own, ours from Python: networks are compiled in place
before the trainer gets them. A variant that fails is reported with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

UNTRAINED = (
    "{kind: untrained, model: {kind: denoiser, schedule: {kind: karras-ve}, prediction: {kind: edm}, network: %s}}"
)
# An image set of the right shape that needs no file, and features that need no network.
MADE_UP = {
    "data": "{kind: waves, shape: [3, %d, %d], classes: %d}",
    "evaluation.features": "{kind: fourier, count: 4, bandwidth: 10.0}",
}
SMALL_EDM = (
    "{kind: song-unet, img_resolution: 32, model_channels: 16, channel_mult: [1, 2, 2], num_blocks: 1, "
    "attn_resolutions: [16]}"
)
ADM = (
    "{kind: dhariwal-unet, img_resolution: 64, model_channels: 192, channel_mult: [1, 2, 3, 4], num_blocks: 3, "
    "attn_resolutions: [32, 16, 8]}"
)
QUIET = {
    "training.checkpoint_every": 100_000,
    "training.health_every": 100_000,
    "evaluation.every": 100_000,
    "evaluation.samples": 8,
    "evaluation.draws": 1,
}


@dataclass(frozen=True)
class Work:
    """A recipe with overrides, its global ``batch``, and the ``steps`` of a run."""

    recipe: str
    batch: int
    steps: int
    settings: dict[str, str] = field(default_factory=dict)

    def arguments(self, folder: Path, **training: object) -> list[str]:
        """Of ``fewstep distill``."""
        values: dict[str, object] = {
            **self.settings,
            **QUIET,
            "training.steps": self.steps,
            "training.batch": self.batch,
            "training.log_every": self.steps // 4,
        }
        values |= {key.replace("__", "."): value for key, value in training.items()}
        return [
            "distill",
            self.recipe,
            "--out",
            str(folder),
            "--threads",
            "1",
            *(part for key, value in values.items() for part in ("--set", f"{key}={value}")),
        ]


def made_up(network: str, side: int, classes: int) -> dict[str, str]:
    """Overrides that put an untrained network on made-up images in the place of a recipe's teacher
    and data.
    """
    return {
        "teacher": UNTRAINED % network,
        "data": MADE_UP["data"] % (side, side, classes),
        "evaluation.features": MADE_UP["evaluation.features"],
    }


WORKS = {
    "digits": Work("digits-diff-instruct", 64, 40),
    "emoji": Work("emoji32-diff-instruct", 16, 12, made_up(SMALL_EDM, 32, 9)),
}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "one process, half of the batch": (1, {"half": True}),
    "two that share nothing": (2, {"half": True}),
    "ddp": (2, {"distributed__mode": "ddp"}),
    "ddp, accumulate 2": (2, {"distributed__mode": "ddp", "training__accumulate": 2}),
    "fsdp": (2, {"distributed__mode": "fsdp"}),
}

# Those that only take apart what limits the others.
WAYS_APART = ("one process", "one process, half of the batch", "two that share nothing")


def seconds_a_step(folder: Path) -> float:
    """From a run's log, the first quarter left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = [(line["step"], line["seconds"]) for line in lines if "seconds" in line]
    (first, began), (last, ended) = timed[0], timed[-1]
    return (ended - began) / (last - first)


def timed(work: Work, processes: int, options: dict[str, Any]) -> float:
    """Seconds a step of one way to run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings = {key: value for key, value in options.items() if key != "half"}
    if "half" in options:
        settings["training__batch"] = work.batch // 2
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(index) for index in range(processes if "half" in options else 1)]
        launcher = (
            ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
            if processes > 1 and len(folders) == 1
            else []
        )
        commands = [
            [sys.executable, "-m", *launcher, "fewstep", *work.arguments(folder, **settings)] for folder in folders
        ]
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        for command, process in zip(commands, running, strict=True):
            _, error = process.communicate()
            if process.returncode:
                sys.exit(f"{' '.join(command)}\n{error[-2000:]}")
        return max(map(seconds_a_step, folders))


def two_of_two(work: Work, rounds: int) -> dict[str, Any]:
    """All ways in turn, so many times; medians, efficiency over one process, and what limits it."""
    found: list[dict[str, float]] = []
    for index in range(rounds):
        order = list(WAYS.items())
        found.append({name: timed(work, *way) for name, way in (reversed(order) if index % 2 else order)})
        print(
            f"  round {index + 1}: " + ", ".join(f"{name} {1e3 * found[-1][name]:.0f} ms" for name in WAYS), flush=True
        )

    def middle(of: Any) -> float:
        return statistics.median(map(of, found))

    one, half, alone = WAYS_APART
    figures: dict[str, Any] = {
        "batch": work.batch,
        "rounds": rounds,
        "ms": {name: 1e3 * middle(lambda each, name=name: each[name]) for name in WAYS},
    }
    figures["samples a second"] = {
        name: work.batch / figures["ms"][name] * 1e3 for name in WAYS if name not in (half, alone)
    }
    figures["efficiency"] = {
        name: middle(lambda each, name=name: each[one] / (2 * each[name]))
        for name in WAYS
        if name not in (one, half, alone)
    }
    # Of a step of two processes: what halving it would have left, and what it takes besides.
    figures["share of a ddp step"] = {
        "half of the work": middle(lambda each: each[one] / 2 / each["ddp"]),
        "small batches": middle(lambda each: (each[half] - each[one] / 2) / each["ddp"]),
        "contention": middle(lambda each: (each[alone] - each[half]) / each["ddp"]),
        "exchange": middle(lambda each: (each["ddp"] - each[alone]) / each["ddp"]),
    }
    return figures


@dataclass(frozen=True)
class Variant:
    """On a GPU: autocast's ``precision``, how networks are compiled (None: not; ``reduce-overhead``
    takes CUDA graphs), samples a step, and whether activations are computed again.
    """

    precision: str
    compiled: str | None
    batch: int
    recompute: bool = False


VARIANTS = [
    *(Variant(precision, None, batch) for precision in ("fp32", "bf16") for batch in (8, 32)),
    *(Variant("bf16", compiled, batch) for compiled in ("default", "reduce-overhead") for batch in (8, 32)),
    Variant("bf16", None, 128, recompute=True),
    Variant("bf16", "default", 128, recompute=True),
]


def on_gpu(variant: Variant, steps: int, tflops: float) -> dict[str, Any]:
    """Diff-Instruct on ADM at 64 pixels, untrained; runs in a process of its own."""
    from fewstep.planning.rehearsal import footprint_of, prior_of
    from fewstep.recipes import DistillRecipe, load_recipe
    from fewstep.recipes.building.distillation import build_distillation
    from fewstep.recipes.building.parts import build_settings
    from fewstep.training import Trainer
    from fewstep.training.layout import units

    settings = {
        **made_up(ADM, 64, 1000),
        **QUIET,
        "training.steps": steps,
        "training.batch": variant.batch,
        "training.log_every": steps // 4,
        "training.device": "cuda",
    }
    settings |= {"training.precision": variant.precision, "training.recompute": json.dumps(variant.recompute)}
    recipe = load_recipe("imagenet64-diff-instruct", [f"{key}={value}" for key, value in settings.items()])
    assert isinstance(recipe, DistillRecipe)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = build_distillation(recipe, folder)
        networks = units([parts.teacher, *(phase.network for stage in parts.stages for phase in stage.phases)])
        operations = footprint_of(parts.teacher, prior_of(parts.teacher, parts.prior.conditions)).operations
        if variant.compiled is not None:
            for network in networks:
                network.compile(mode=variant.compiled)
        torch.cuda.reset_peak_memory_stats()
        Trainer(folder, parts.stages, parts.average, build_settings(recipe.training)).fit()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        seconds = seconds_a_step(folder)
    evaluations = (lines[-1]["evaluations"] - lines[0]["evaluations"]) / (lines[-1]["step"] - lines[0]["step"])
    return {
        "images a second": variant.batch / seconds,
        "ms": 1e3 * seconds,
        "memory": torch.cuda.max_memory_allocated(),
        "share of the peak": evaluations * operations / seconds / (tflops * 1e12),
    }


def all_on_gpu(steps: int, tflops: float) -> dict[str, Any]:
    """Every variant; those of float32 are held against the same peak of bf16."""
    if not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU on this machine.")
    rows = []
    for variant in VARIANTS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            error = (future := pool.submit(on_gpu, variant, steps, tflops)).exception()
        figures = (
            {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            if error is not None
            else future.result()
        )
        rows.append({**vars(variant), **figures})
        print(rows[-1], flush=True)
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "tflops": tflops, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(WORKS), default=sorted(WORKS))
    parser.add_argument("--steps", type=int, default=40, help="Steps of a run on a GPU.")
    parser.add_argument("--tflops", type=float, default=989.0, help="The GPU's peak in bf16, dense.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.device == "cuda":
        found = all_on_gpu(options.steps, options.tflops)
    else:
        found = {"cores": os.cpu_count(), "torch": torch.__version__}
        for name in options.only:
            print(name)
            found[name] = two_of_two(WORKS[name], options.rounds)
            print(json.dumps(found[name], indent=1))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"throughput-{options.device}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
