"""A distillation on 8, 64 and 1,024 GPUs, on paper: what fits, what a step takes, what failures
cost. No GPU, no weights and no data are needed; nothing here was measured.

    # DisBack on ImageNet 64 with EDM's teacher (296 M), and with one of the same kind and 12 B
    # parameters
    python benchmarks/scaling_model.py
    python benchmarks/scaling_model.py --recipe ffhq64-disback --each 64 --together 4096

The model is ``fewstep.planning.scaling``; its assumptions about the cluster are the defaults of
``Cluster``, and stand in the JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewstep.planning.cluster import Cluster
from fewstep.planning.scaling import ClusterLayout, Estimate, Load, estimate, load_of
from fewstep.recipes import DistillRecipe, load_recipe

GIB = 2**30
GPUS = (8, 64, 1024)
# ADM at 64 pixels with 1,216 channels for 192: 11.8 B parameters.
TWELVE = (
    "teacher={kind: untrained, model: {kind: denoiser, schedule: {kind: karras-ve}, prediction: {kind: edm}, "
    "network: {kind: dhariwal-unet, img_resolution: 64, model_channels: 1216, channel_mult: [1, 2, 3, 4], "
    "num_blocks: 3, attn_resolutions: [32, 16, 8]}}}"
)


def micro_batches(batch: int) -> Iterator[int]:
    """In how many a GPU's batch can be taken, the fewest first."""
    return (count for count in range(1, batch + 1) if batch % count == 0)


def ways(gpus: int) -> list[tuple[str, int]]:
    """Modes and numbers of copies: replicated, one copy over all, over a node, and over eight
    nodes.
    """
    return [("ddp", 1), ("fsdp", 1), *(("fsdp", gpus // group) for group in (8, 64) if gpus > group)]


def best(load: Load, cluster: Cluster, way: tuple[str, int], batch: int) -> tuple[ClusterLayout, Estimate]:
    """The fastest way to take ``batch`` samples a GPU that fits: with or without computing again,
    in so many micro-batches; where none fits, the one that takes the least memory.
    """
    mode, copies = way
    layouts = (
        ClusterLayout(mode, batch, count, again, copies) for again in (False, True) for count in micro_batches(batch)
    )
    tried = [(layout, estimate(load, cluster, layout)) for layout in layouts]
    fitting = [pair for pair in tried if pair[1].fits]
    return min(fitting, key=lambda pair: pair[1].seconds) if fitting else min(tried, key=lambda pair: pair[1].memory)


def rows(load: Load, each: int | None, together: int | None) -> list[dict[str, Any]]:
    """The best layout of each way on each number of GPUs, for ``each`` samples a GPU or for so many
    ``together``.
    """
    found = []
    for gpus in GPUS:
        batch = each or max(1, (together or gpus) // gpus)
        for way in ways(gpus):
            layout, figures = best(load, Cluster(gpus), way, batch)
            found.append({"gpus": gpus, **asdict(layout), **asdict(figures)})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| GPUs | mode | a GPU | computed again | memory a GPU | fits | a step | exchanges | images a second | "
        "efficiency | a checkpoint, every | lost |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in found:
        batch = f"{row['batch']}" if row["accumulate"] == 1 else f"{row['batch']} in {row['accumulate']}"
        mode = row["mode"] if row["replicas"] == 1 else f"{row['mode']}, {row['replicas']} replicas"
        start = (
            f"| {row['gpus']:,} | {mode} | {batch} | {'yes' if row['recompute'] else 'no'} | "
            f"{row['memory'] / GIB:.1f} GiB |"
        )
        if not row["fits"]:
            lines.append(f"{start} **no** | | | | | | |")
            continue
        figures = (
            f"{row['seconds']:.3f} s | {row['exchanging']:.3f} s | {row['images']:,.0f} | "
            f"{100 * row['efficiency']:.0f} %"
        )
        lines.append(
            f"{start} yes | {figures} | {row['save']:.1f} s, {row['interval'] / 60:.0f} min | "
            f"{100 * row['lost']:.1f} % |"
        )
    return "\n".join(lines)


def examined(recipe: DistillRecipe, name: str, each: int, together: int) -> dict[str, Any]:
    """All figures of one recipe, printed as they are made."""
    load = load_of(recipe, name)
    passes = f"{load.trained + load.untrained:.2f} passes a step, of which {load.trained:.2f} trained"
    print(
        f"\n{name}: {load.parameters / 1e9:.2f} B parameters a network, {load.state / GIB:,.0f} GiB in all, {passes}",
        flush=True,
    )
    weak, strong = rows(load, each, None), rows(load, None, together)
    print(f"\n{each} samples a GPU\n\n{table(weak)}\n\n{together:,} samples together\n\n{table(strong)}")
    sizes = {key: value for key, value in asdict(load).items() if key != "blocks"}
    sizes |= {"parameters": load.parameters, "operations": load.operations, "blocks": len(load.blocks)}
    return {**sizes, "each": {"batch": each, "rows": weak}, "together": {"batch": together, "rows": strong}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", help="Another recipe, alone; nothing is written.")
    parser.add_argument("--each", type=int, default=8, help="Samples a GPU.")
    parser.add_argument("--together", type=int, default=1024, help="Samples a step.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.recipe is not None:
        recipe = load_recipe(options.recipe)
        assert isinstance(recipe, DistillRecipe), "a recipe for distillation"
        examined(recipe, options.recipe, options.each, options.together)
        return
    content: dict[str, Any] = {"cluster": {key: value for key, value in asdict(Cluster(8)).items() if key != "gpus"}}
    for name, overrides in (("imagenet64-disback", []), ("imagenet64-disback, 12 B", [TWELVE])):
        recipe = load_recipe("imagenet64-disback", overrides)
        assert isinstance(recipe, DistillRecipe)
        content[name] = examined(recipe, name, options.each, options.together)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "scaling_model.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
