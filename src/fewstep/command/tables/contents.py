"""What an image set, a file of weights or a run's folder holds, and what is wrong with it."""

from __future__ import annotations

import json
import textwrap
import time
from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.command.tables.figures import shown_bytes
from fewstep.errors import one_line


def images_table(described: dict[str, Any]) -> str:
    """What an image set holds: a line, and one a class."""
    channels, height, width = described["shape"]
    classes = [[str(each["images"]), one_line(each["name"])] for each in described["classes"]]
    lines = [
        (
            f"{one_line(described['path'])}: {described['images']} images of {width} x {height}, "
            f"{'RGB' if channels == 3 else 'grey'}, {len(classes) or 'no'} classes"
        ),
        *([textwrap.indent(grid([*right(""), *left("")], classes), "  ")] if classes else []),
        *(one_line(remark) for remark in described.get("remarks", [])),
        *([described["sheet"]] if "sheet" in described else []),
    ]
    return "\n".join(lines)


def inspection_table(found: dict[str, Any]) -> str:
    """A line a figure; nested ones as JSON."""
    return grid(left("", ""), [[key, _inspected(value)] for key, value in found.items()])


def _inspected(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return one_line(value) if isinstance(value, str) else json.dumps(value)


def runs_table(found: list[dict[str, Any]], folder: str) -> str:
    """A line a run; below, a line for each that cannot be read."""
    read = [run for run in found if run["problem"] is None]
    rows = [
        [
            one_line(run["folder"]),
            str(run["method"]),
            run["state"],
            f"{run['at'] or 0:,}/{run['steps']:,}",
            "" if run["evaluations"] is None else f"{run['evaluations']:,}",
            "" if run["distance"] is None else f"{run['distance']:.4g}",
            "" if run["changed"] is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(run["changed"])),
        ]
        for run in read
    ]
    headings = [*left("run", "method", "state"), *right("step", "evaluations", "distance"), *left("last")]
    lines = [grid(headings, rows)] if rows else [f"{one_line(folder)}: has no runs that can be read."]
    return "\n".join(lines + [f"unreadable: {one_line(run['problem'])}" for run in found if run["problem"] is not None])


def checkpoints_table(found: dict[str, Any]) -> str:
    """What was removed, and a line a checkpoint."""
    run = one_line(found["run"])
    headings = [*left(""), *right(""), *left(""), *right(""), *left("")]
    rows = [_checkpoint(each, found["resumes"]) for each in found["checkpoints"]]
    lines = [
        *(f"removed {run}/{one_line(name)}" for name in found["removed"]),
        grid(headings, rows) if rows else f"{run}: has no checkpoints.",
        *(
            f"{run}/{one_line(name)}: half a file of a writer that was killed; --prune removes it."
            for name in found["leftovers"]
        ),
    ]
    if rows and not found["verified"]:
        lines.append("Headers and lengths only were looked at; --verify compares checksums.")
    return "\n".join(lines)


def _checkpoint(each: dict[str, Any], resumes: str | None) -> list[str]:
    if each["state"] != "whole":
        return ["", "-", each["state"], shown_bytes(each["bytes"]), one_line(each["why"])]
    stage = each["name"] or f"stage {each['stage'] + 1}"
    return [
        "*" if each["file"] == resumes else "",
        str(each["step"]),
        f"step {each['stage_step']} of {one_line(stage)}",
        shown_bytes(each["bytes"]),
        one_line(each["file"]),
    ]


def findings_table(findings: list[dict[str, str]]) -> str:
    """A line a finding, what to do below it, and their number."""
    rows = []
    for each in findings:
        rows.append([each["level"], one_line(f"{each['place']}: {each['sentence']}")])
        rows += [["", f"  {one_line(each['remedy'])}"]] if each["remedy"] else []
    problems, notes = (sum(each["level"] == level for each in findings) for level in ("problem", "note"))
    number = (
        f"{problems or 'no'} problem{'' if problems == 1 else 's'}, {notes or 'no'} note{'' if notes == 1 else 's'}."
    )
    return "\n".join([*([grid(left("", ""), rows)] if rows else []), number])
