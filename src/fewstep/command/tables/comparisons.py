"""What ``compare`` found: which run needs how much to reach which level."""

from __future__ import annotations

from itertools import islice
from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.command.tables.figures import shown_factor, shown_figure
from fewstep.errors import one_line


def comparison_table(comparison: dict[str, Any]) -> str:
    """A line a run, and below a line a level at which one is sooner than another."""
    kept = any("best" in entry for entry in comparison.values())
    breadth = [name for name in _BREADTH if any(name in entry.get("breadth", {}) for entry in comparison.values())]
    rows = [
        [
            one_line(name),
            f"{entry['level']:.2f}",
            *([_best(entry.get("best"))] if kept else []),
            *(shown_figure(entry.get("breadth", {}), key) for key in breadth),
            str(entry["steps"]),
            str(entry["evaluations"]),
            "; ".join(_reached(other, found) for other, found in entry["reaches"].items()),
        ]
        for name, entry in comparison.items()
    ]
    found = ("level", *(["best student"] if kept else []), *(_BREADTH[key] for key in breadth))
    headings = [*left("run"), *right(*found, "steps", "evaluations"), *left("reaches")]
    unknown = [
        f"{one_line(name)}: has no evaluation that can be read, so that the diversity of its samples is not known; "
        "'fewstep evaluate' measures it."
        for name, entry in comparison.items()
        if not entry.get("breadth")
    ]
    says = [_SHARE] if "diversity_ratio" in breadth else []
    return "\n".join([grid(headings, rows), *says, *unknown, *_speed_ups(comparison)])


_BREADTH = {"recall": "recall", "coverage": "coverage", "diversity_ratio": "of the teacher's diversity"}
_SHARE = "of the teacher's diversity: the mean distance within a prompt or class, over the teacher's, by 'evaluate'"


def _best(found: dict[str, Any] | None) -> str:
    """The distance of the best student that a run kept, and of which step it is."""
    return "-" if found is None else f"{found['fd']:.2f} at {found['step']}"


def _reached(other: str, found: dict[str, Any] | None) -> str:
    needed = "never" if found is None else f"{found['steps']} steps, {found['evaluations']} evaluations"
    return f"{one_line(other)}: {needed}"


def _speed_ups(comparison: dict[str, Any]) -> list[str]:
    """How many times sooner each run reaches fixed levels than the others; beside it what the paper
    says of such a pair.
    """
    pairs = [
        (name, other, found, entry.get("published", {}).get(other))
        for name, entry in comparison.items()
        for other, found in entry.get("speed_up", {}).items()
    ]
    titled = []
    for name, other, found, published in pairs:
        # Of a pair the faster run has the rows; both where it depends on the level.
        rows = [
            ["", f"{each['level']:.4g}", shown_factor(each["steps"]), shown_factor(each["evaluations"])]
            for each in found
            if each["evaluations"] is not None and (each["evaluations"] > 1 or published is not None)
        ]
        if rows:
            says = "" if published is None else f" (the paper's Fig. 1: {published:g} times, in iterations)"
            titled.append((f"{one_line(name)} than {one_line(other)}{says}", rows))
    if not titled:
        return []
    headings = [*left("sooner than"), *right("at level", "in steps", "in evaluations")]
    heading, *lines = grid(headings, [row for _, rows in titled for row in rows]).split("\n")
    # A title is longer than the column that it would widen.
    left_over = iter(lines)
    return [heading, *(line for title, rows in titled for line in (title, *islice(left_over, len(rows))))]
