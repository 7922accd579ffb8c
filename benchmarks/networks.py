"""What our EDM networks cost: forward, and forward with backward, against plain PyTorch code of the
same layers.

    OMP_NUM_THREADS=1 python benchmarks/networks.py [--only ddpm++-32 adm-192 ...] [--seconds 40]

The plain code is ``plain_networks.py``. Both networks have the very same weights. Before anything
is timed, their outputs and their gradients at the input must agree to 1e-4 of their size.

A pair runs both networks one after the other, every second pair in the other order. What is counted
is the process' CPU seconds, so that other work on the machine hits both alike. The ratio is the
geometric mean of ours / plain over pairs, with Student's 95 % interval. ``--seconds`` is what one
measurement may take; three pairs it takes in any case.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.networks import build
from fewstep.networks.edm import SETTINGS
from paired import ratio
from plain_networks import PlainDhariwal, PlainSong

AGREE, WANTED, LEAST = 1e-4, 1.03, 3
# The released settings without labels. ADM at 32 pixels and one block a level, or a run would take
# an hour.
SETTING: dict[str, Mapping[str, Any]] = {
    "ddpm++": {**SETTINGS["cifar10-ddpmpp"], "augment_dim": 0},
    "ncsn++": {**SETTINGS["cifar10-ncsnpp"], "augment_dim": 0},
    "adm": {**SETTINGS["imagenet64-adm"], "img_resolution": 32, "num_blocks": 1},
}
CHANNELS = {"ddpm++": (32, 128), "ncsn++": (32, 128), "adm": (32, 192)}
CELLS = {f"{kind}-{channels}": (kind, channels) for kind, both in CHANNELS.items() for channels in both}


def randomise(network: nn.Module) -> None:
    """Draws all weights, since a fresh network's blocks end in zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(value[0].numel()))
            else:
                centre = float("norm" in name and name.endswith("weight"))
                value.copy_(centre + 0.1 * torch.randn(value.shape, generator=generator))


def pair_of(kind: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """Ours and the plain one, with the same tensors as weights."""
    setting = {**SETTING[kind], "model_channels": channels}
    ours = build(setting)
    randomise(ours)
    plain = (PlainDhariwal if kind == "adm" else PlainSong)(setting)
    plain.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    return ours, plain


def check(runs: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor) -> float:
    """The largest difference of outputs and of gradients at the input, over their size.

    Ends the script where it is above ``AGREE``.
    """
    found = {}
    for name, run in runs.items():
        given = x.clone().requires_grad_()
        output = run(given)
        found[name] = (output.detach(), torch.autograd.grad(output.square().mean(), given)[0])
    largest = 0.0
    for ours, plain in zip(found["ours"], found["plain"], strict=True):
        largest = max(largest, float((ours - plain).abs().max() / plain.square().mean().sqrt()))
    if largest > AGREE:
        raise SystemExit(f"the two networks differ by {largest:.1e} of their size: there is nothing to compare.")
    return largest


def timed(runs: Mapping[str, Callable[[], None]], pairs: int, seconds: float) -> dict[str, list[float]]:
    """CPU seconds of each run, pair by pair, for ``pairs`` pairs or until ``seconds`` are over."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    began = time.process_time()
    for index in range(pairs):
        if index >= LEAST and time.process_time() - began > seconds:
            break
        for name in sorted(runs, reverse=bool(index % 2)):
            start = time.process_time()
            runs[name]()
            found[name].append(time.process_time() - start)
    return found


def measured(kind: str, channels: int, batch: int | None, pairs: int, seconds: float) -> dict[str, Any]:
    """One network's figures: the differences, and for each measurement milliseconds (medians) and
    the ratio.
    """
    ours, plain = pair_of(kind, channels)
    batch = batch or (8 if channels == 32 else 1)
    generator = torch.Generator().manual_seed(1)
    size = SETTING[kind]["img_resolution"]
    x, level = torch.randn(batch, 3, size, size, generator=generator), torch.randn(batch, generator=generator)
    condition = Condition()
    runs = {"ours": lambda x: ours(x, level, condition), "plain": lambda x: plain(x, level)}
    parameters = list(ours.parameters())

    def forward(name: str) -> None:
        with torch.no_grad():
            runs[name](x)

    def both(name: str) -> None:
        torch.autograd.grad(runs[name](x).square().mean(), parameters)

    result: dict[str, Any] = {"batch": batch, "difference": check(runs, x)}
    for what, run in (("forward", forward), ("forward and backward", both)):
        found = timed({name: partial(run, name) for name in runs}, pairs, seconds)
        ms = {name: 1e3 * statistics.median(values) for name, values in found.items()}
        result[what] = {"ms": ms, "ratio": ratio(found["ours"], found["plain"])}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS), help="networks and their channels")
    parser.add_argument("--batch", type=int, help="samples a call; default 8 at 32 channels, 1 at full width")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = {}
    print(f"{'':<12} {'batch':>5} {'':<21} {'ours, ms':>9} {'plain, ms':>9}  {'ratio (95 %)':<24} {'pairs':>5}")
    for name in options.only:
        cells[name] = measured(*CELLS[name], options.batch, options.pairs, options.seconds)
        for what in ("forward", "forward and backward"):
            ms, found = cells[name][what]["ms"], cells[name][what]["ratio"]
            between = "" if found["low"] is None else f"({found['low']:.3f} to {found['high']:.3f})"
            times = f"{ms['ours']:>9.1f} {ms['plain']:>9.1f}"
            verdict = "" if found["mean"] <= WANTED else f"  above {WANTED}"
            line = f"{name:<12} {cells[name]['batch']:>5} {what:<21} {times}  {found['mean']:.3f} {between:<18}"
            print(f"{line} {found['pairs']:>5}{verdict}", flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {
        "torch": torch.__version__,
        "threads": 1,
        "seconds": options.seconds,
        "wanted": WANTED,
        "networks": cells,
    }
    (options.results / "networks.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
