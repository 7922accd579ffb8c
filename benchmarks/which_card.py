"""Which recipe fits which card: the table of docs/plan.md. No GPU, no weights and no data are
needed; nothing here was measured on a GPU.

    python benchmarks/which_card.py
    python benchmarks/which_card.py --recipes sd15-disback-lora --cards 8 12

For each recipe of a text-to-image model whose sizes are known: the state, and the largest batch a
GPU that fits in bf16 and recomputed, as ``fewstep plan`` says them, with all networks on the GPU
and with those waiting that are not used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.planning import plan_recipe
from fewstep.planning.gpu_settings import GIB
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names

CARDS = (8, 12, 16, 24, 48, 80)


def text_recipes() -> list[str]:
    """The shipped recipes whose teacher is a published text-to-image model."""
    found = ((name, load_recipe(name)) for name in shipped_names())
    return [name for name, recipe in found if isinstance(recipe, DistillRecipe) and recipe.teacher.kind == "pipeline"]


def row_of(name: str, cards: Sequence[int]) -> dict[str, Any]:
    """State and batches of a recipe on one GPU, by whether idle networks wait."""
    plan = plan_recipe(name, ["training.device=cpu"])
    settings = [each for each in plan.settings if each.precision == "bf16" and each.recompute]
    return {
        "recipe": name,
        "parameters": plan.parts[0].parameters,
        "batch": plan.batch,
        "ways": {
            "offloaded" if each.offload else "all there": {
                "state": each.state / GIB,
                "most": {str(card): each.most(card * GIB) for card in cards},
            }
            for each in settings
        },
    }


def lines_of(row: dict[str, Any]) -> list[str]:
    """The rows of the table."""
    lines = []
    for way, found in row["ways"].items():
        name = f"`{row['recipe']}`" if way == "all there" else "the same, offloaded"
        most = " | ".join(str(value) for value in found["most"].values())
        lines.append(f"| {name} | {found['state']:.1f} GiB | {most} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", help="all of text-to-image models unless given")
    parser.add_argument("--cards", nargs="+", type=int, default=CARDS, help="memory in GiB")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    first, *others = (f"{card}" for card in options.cards)
    print(f"| recipe | state | {' | '.join([f'{first} GiB', *others])} |", flush=True)
    print("|" + "---|" * (2 + len(options.cards)), flush=True)
    rows = []
    for name in options.recipes or text_recipes():
        rows.append(row_of(name, options.cards))
        print("\n".join(lines_of(rows[-1])), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "which-card.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
