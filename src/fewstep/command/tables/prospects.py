"""What a recipe goes with, and what it will take: ``recipes --matrix`` and ``plan``."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.command.tables.figures import shown_bytes, shown_count, shown_hours
from fewstep.errors import UserError, one_line


def matrix_table(name: str | None, as_json: bool) -> str:
    """What goes with what: a line a recipe, or one recipe and its reasons; raises ``UserError`` for
    a recipe without axes.
    """
    from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
    from fewstep.recipes.legality import columns, matrix_row

    names = shipped_names() if name is None else [name]
    loaded = [(each, load_recipe(each)) for each in names]
    rows = [matrix_row(each, recipe.method) for each, recipe in loaded if isinstance(recipe, DistillRecipe)]
    if not rows:
        raise UserError(
            f"{name}: is a recipe for 'fewstep pretrain', which has no axes; give one for 'fewstep distill'."
        )
    if as_json:
        return json.dumps({each.name: each.cells for each in rows})
    headings = left("", *(column.split()[1] for column in columns()))
    cells = [
        [one_line(each.name), *("yes" if each.cells[column] is None else "-" for column in columns())] for each in rows
    ]
    reasons = [] if name is None else [f"- {reason}" for reason in rows[0].cells.values() if reason is not None]
    return "\n".join([grid(headings, cells), *reasons])


def plan_table(plan: dict[str, Any], memory: float | None) -> str:
    """A plan: networks, what a step takes, and a line a setting."""
    steps = ", ".join(f"{name} {count:,}" for name, count in plan["steps"].items())
    work = [
        (
            f"a forward keeps {shown_bytes(plan['kept'])} a sample for the backward, at most "
            f"{plan['graphs']:.1f} of them at once"
        ),
        f"on disk: the path {shown_bytes(plan['path_bytes'])}, each checkpoint {shown_bytes(plan['checkpoint_bytes'])}",
        f"work: {plan['evaluations']:.3g} network evaluations of {plan['operations']:.3g} operations",
        *(
            [f"offloaded, phases that take a turn each carry {shown_bytes(plan['carried'])} between GPU and host"]
            if plan["carried"]
            else []
        ),
        *([f"state by device: {_by_device(plan['by_device'])}"] if plan["by_device"] else []),
        *plan["notes"],
    ]
    lines = [
        f"{one_line(plan['recipe'])}: {sum(plan['steps'].values()):,} steps ({steps}), batch {plan['batch']}",
        textwrap.indent("\n".join([_parts(plan["parts"]), *work]), "  "),
        "",
        _settings(plan["settings"], plan["cheapest"], memory),
        *_conclusion(plan, memory),
    ]
    return "\n".join(lines)


def _by_device(state: dict[str, int]) -> str:
    return ", ".join(f"{name} {shown_bytes(size)}" for name, size in state.items())


def _parts(parts: list[dict[str, Any]]) -> str:
    apart = any(each["device"] for each in parts)
    return grid(
        [*left("", ""), *right("", ""), *(left("") if apart else [])],
        [
            [
                *(each["role"], each["kind"]),
                *(f"{shown_count(each['parameters'])} parameters", shown_bytes(each["bytes"])),
                *([each["device"]] if apart else []),
            ]
            for each in parts
        ],
    )


def _settings(settings: list[dict[str, Any]], cheapest: dict[str, Any] | None, memory: float | None) -> str:
    asked = [] if memory is None else right("fits", "most")
    headings = [*right("batch a GPU", "state", "activations", "memory"), *asked, *right("time")]
    rows = [
        [
            f"{'*' if each == cheapest else ' '} {_named(each)}",
            str(each["batch"]),
            shown_bytes(each["state"]),
            shown_bytes(each["activations"]),
            shown_bytes(each["memory"]),
            *([] if memory is None else [_fits(each, memory), str(each["largest_batch"])]),
            shown_hours(each["hours"]),
        ]
        for each in settings
    ]
    return grid([*left("setting"), *headings], rows)


def _named(setting: dict[str, Any]) -> str:
    how = f"{setting['gpus']} x " if setting["gpus"] > 1 else ""
    besides = [word for key, word in (("recompute", ", recomputed"), ("offload", ", offloaded")) if setting[key]]
    return f"{how}{setting['mode']}, {setting['precision']}{''.join(besides)}"


def _fits(setting: dict[str, Any], memory: float) -> str:
    return "yes" if setting["memory"] <= memory * 2**30 else "no"


def _conclusion(plan: dict[str, Any], memory: float | None) -> list[str]:
    """What to choose, or what to do where nothing fits."""
    if plan["cheapest"] is not None:
        chosen_from = "there are" if memory is None else "fit"
        return [f"* the fewest GPU-hours of those that {chosen_from}: {_advice(plan['cheapest'])}"]
    if memory is None:
        return []
    leanest = max(plan["settings"], key=lambda each: each["largest_batch"] * each["gpus"])
    most = leanest["largest_batch"] * leanest["gpus"]
    advice = (
        f"with --set training.batch={most} the leanest of these does: {_advice(leanest)}."
        if most
        else "more GPUs, or larger ones, are needed."
    )
    return [f"nothing fits into {memory:g} GiB; {advice}"]


def _advice(setting: dict[str, Any]) -> str:
    options = [
        f"--set training.precision={setting['precision']}",
        *(["--set training.recompute=true"] if setting["recompute"] else []),
        *(["--set training.offload=true"] if setting["offload"] else []),
    ]
    by = "as placed" if setting["mode"] == "placed" else f"by {setting['mode']}"
    gpus = "one GPU" if setting["gpus"] == 1 else f"{setting['gpus']} GPUs {by}"
    return f"{gpus}, {' '.join(options)}"
