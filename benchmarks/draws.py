"""What a draw of normals costs: float32 against the float64 of before, and torch's own.

    python benchmarks/draws.py [--pairs 40] [--threads 1] [--shapes 32x3x256x256]

CPU milliseconds of one draw, the ways in turn, in an order that alternates; medians. ``before`` is
``Key.lasting``, which drew all normals once. The ratio is the geometric mean of now over before,
pair by pair, with Student's interval. ``words`` is Philox alone: as many words as a draw takes now.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.random import Key
from fewstep.system.normals import WORDS_A_BLOCK, blocks_a_sample
from paired import gain

SHAPES = ("32x3x64x64", "16x3x256x256", "32x3x256x256")
SEED = Key(0, "benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows, then the dimensions of a sample: 32x3x64x64")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    content = {"threads": options.threads, "a draw": a_draw(options.shapes, options.pairs)}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "draws.json").write_text(json.dumps(content, indent=1) + "\n")


# A draw


def a_draw(shapes: Sequence[str], pairs: int) -> list[dict[str, Any]]:
    """Before, now and torch's own, for each shape."""
    print(f"{'CPU ms a draw':<16} {'before':>8} {'now':>8} {'words':>8} {'randn':>8}   now / before (95 %)")
    found = []
    for name in shapes:
        row = of_shape(name, pairs)
        found.append(row)
        between = f"({row['low']:.3f} to {row['high']:.3f})" if pairs > 1 else ""
        times = " ".join(f"{row['ms'][way]:>8.2f}" for way in ("before", "now", "words", "randn"))
        print(f"{name:<16} {times}   {row['ratio']:.3f} {between}", flush=True)
    return found


def of_shape(name: str, pairs: int) -> dict[str, Any]:
    shape = tuple(map(int, name.split("x")))
    rows, size = shape[0], math.prod(shape[1:])
    ways: dict[str, Callable[[Key], object]] = {
        "before": lambda key: key.lasting("noise", shape),
        "now": lambda key: key.normal("noise", shape),
        "words": lambda key: np.random.Philox(key=key.step).random_raw(rows * blocks_a_sample(size) * WORDS_A_BLOCK),
        "randn": lambda key: torch.randn(shape),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    # The first round warms up.
    for pair in range(pairs + 1):
        key = SEED.at(pair)
        for way in sorted(ways, reverse=bool(pair % 2)):
            began = time.process_time()
            ways[way](key)
            taken[way].append(1e3 * (time.process_time() - began))
    taken = {way: values[1:] for way, values in taken.items()}
    lower = gain(taken["now"], taken["before"])
    low, high = (None if lower[end] is None else 1 - lower[end] / 100 for end in ("high", "low"))
    return {
        "shape": shape,
        "pairs": pairs,
        "ms": {way: statistics.median(values) for way, values in taken.items()},
        "ratio": 1 - lower["mean"] / 100,
        "low": low,
        "high": high,
    }


if __name__ == "__main__":
    main()
