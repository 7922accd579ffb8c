"""What a measurement of folders of pictures found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.errors import one_line

_AVERAGES = {"clip": "CLIP score", "diversity": "diversity a prompt", "target_distance": "distance to targets"}


def pictures_table(result: dict[str, Any]) -> str:
    """A line a folder, a column a figure; means with the half width of their interval of 95 %."""
    rows, protocol = result["sets"], result["protocol"]
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = []
    for name, heading in (("fd", "Frechet distance"), ("patch_fd", "of patches")):
        if any(name in row for row in rows):
            columns.append((heading, _distance(name)))
    columns += [(heading, _average_of(name)) for name, heading in _AVERAGES.items() if any(name in row for row in rows)]
    scores = dict.fromkeys(name for row in rows for name in row.get("scores", {}).get("means", {}))
    columns += [(one_line(name), _score(name)) for name in scores]
    cells = [[one_line(row["folder"]), f"{row['pictures']:,}", *(shown(row) for _, shown in columns)] for row in rows]
    return "\n".join(
        [
            grid([*left(""), *right("pictures", *(heading for heading, _ in columns))], cells),
            *_seen(protocol, rows),
            *_left_over(rows),
        ]
    )


def _distance(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row[name]:.2f}" if name in row else "-"


def _average_of(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: _average(row[name]) if name in row else "-"


def _score(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: _average(found) if (found := row.get("scores", {}).get("means", {}).get(name)) else "-"


def _average(value: dict[str, Any]) -> str:
    half = "" if value["high"] is None else f" +- {value['high'] - value['mean']:.2g}"
    return f"{value['mean']:.4f}{half}"


def _seen(protocol: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What the figures are of."""
    lines = []
    if protocol.get("space") is not None:
        size = "as they are" if protocol.get("size") is None else f"of {protocol['size']} pixels"
        patch = "" if protocol.get("patch") is None else f", patches of {protocol['patch']} pixels"
        lines.append(f"distances of pictures {size}{patch}, in the space '{one_line(str(protocol['space']))}'")
    if any("clip" in row for row in rows):
        lines.append("the CLIP score is the mean cosine; some print 100 times it")
    if any(name in row for name in (*_AVERAGES, "scores") for row in rows):
        lines.append("+- is the half width of an interval of 95 %")
    return lines


def _left_over(rows: list[dict[str, Any]]) -> list[str]:
    """Counts of what was cut and left out."""
    kinds = (
        ("clip", "cut", "captions of more tokens than CLIP reads were cut"),
        ("clip", "without_caption", "pictures without a caption have no CLIP score"),
        ("scores", "without_scores", "pictures have no row of scores"),
        ("scores", "without_a_picture", "rows of scores have no picture"),
    )
    return [
        f"{one_line(row['folder'])}: {row[part][name]:,} {what}."
        for row in rows
        for part, name, what in kinds
        if row.get(part, {}).get(name)
    ]
