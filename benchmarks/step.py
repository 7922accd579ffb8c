"""What the frame costs: our training step against a hand-written loop of the same passes,
interleaved in one run.

    python benchmarks/step.py [--pairs 40] [--threads 1]

Both do a distribution-matching step on the digits teacher at batch 64: student forward and
backward, target and fake score forward, fake score forward and backward, two optimizer steps and
the average. Blocks of steps alternate between the two, and the median of the ratios of neighbouring
blocks is reported: what else the machine does hits both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import fewstep as fs
from fewstep.condition import Classes
from fewstep.training import Stage

BATCH = 64


def by_hand(teacher: fs.denoisers.NetworkDenoiser) -> Callable[[int], None]:
    """The loop that one would write in a notebook, with torch's own random numbers."""
    student, fake, average = (fs.denoisers.copy_of(teacher) for _ in range(3))
    adam = partial(torch.optim.AdamW, lr=1e-4, betas=(0.0, 0.999), weight_decay=0.0, fused=True)
    optimizers = [adam(model.parameters()) for model in (student, fake)]
    first = torch.full((BATCH,), 2.5 / 80, dtype=torch.float64)

    def noisy(x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sigma = torch.exp(1.2 * torch.randn(BATCH, dtype=torch.float64) - 0.4)
        return x0 + sigma.float()[:, None, None, None] * torch.randn_like(x0), sigma / 80, sigma

    def run(steps: int) -> None:
        for _ in range(steps):
            labels = torch.randint(0, 10, (BATCH,))
            x0 = student(2.5 * torch.randn(BATCH, 1, 8, 8), first, labels)
            with torch.no_grad():
                x_t, t, _ = noisy(x0)
                gradient = fake(x_t, t, labels) - teacher(x_t, t, labels)
            optimizers[0].zero_grad()
            ((gradient * x0).sum() / BATCH).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizers[0].step()
            samples = x0.detach()
            x_t, t, sigma = noisy(samples)
            weight = ((sigma**2 + 0.5625) / (sigma * 0.75) ** 2).float()[:, None, None, None]
            optimizers[1].zero_grad()
            (weight * (fake(x_t, t, labels) - samples) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_(fake.parameters(), 1.0)
            optimizers[1].step()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 0.01)

    return run


def ours(teacher: fs.denoisers.NetworkDenoiser, folder: Path) -> Callable[[int], None]:
    """The same steps by the trainer, logging every 20 steps."""
    student, fake = fs.denoisers.copy_of(teacher), fs.denoisers.copy_of(teacher)
    prior = fs.states.Prior(teacher.schedule, teacher.shape, 2.5 / 80, conditions=Classes(10))
    times = fs.times.LogNormalTimes(-0.4, 1.2)
    target = fs.targets.Fixed(teacher)
    match = fs.objectives.DistributionMatching(student, fake, target, times, fs.objectives.DiffInstructWeight())
    fit = fs.objectives.ScoreMatching(fake, student, times, fs.objectives.EDMWeight(0.75))
    Phase, Term = fs.training.Phase, fs.training.Term
    phases = [Phase("student", student, [Term(match, prior)]), Phase("fake", fake, [Term(fit, prior)])]
    stage = Stage("distill", 10**9, phases)
    return fs.training.Trainer(folder, [stage], student, fs.training.Settings(batch=BATCH)).advance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher = fs.zoo.digits()
    with tempfile.TemporaryDirectory() as folder:
        runs = {"by hand": by_hand(teacher), "fewstep": ours(teacher, Path(folder))}
        for run in runs.values():
            run(options.block)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for pair in range(options.pairs):
            # The order alternates too.
            for name in sorted(runs, reverse=bool(pair % 2)):
                began = time.perf_counter()
                runs[name](options.block)
                seconds[name].append((time.perf_counter() - began) / options.block)
    ratios = sorted(a / b for a, b in zip(seconds["fewstep"], seconds["by hand"], strict=True))
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    result = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print(f"{'':<10} {'ms a step (median)':>20}")
    for name, value in result.items():
        print(f"{name:<10} {value:>20.1f}")
    print(
        f"ratio: {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}, {options.pairs} pairs "
        f"of {options.block} steps, {options.threads} threads)"
    )
    options.results.mkdir(parents=True, exist_ok=True)
    content = {
        "ms": result,
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
        "pairs": options.pairs,
        "block": options.block,
        "threads": options.threads,
    }
    (options.results / "step.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
