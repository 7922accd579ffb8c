"""Results of earlier measurements beside those of now, where both were computed from the same.

Each figure has conditions: what of the protocol, and which files by content, decide it besides the
pictures. Figures under other conditions are not set beside one another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.data.prompts.formats import check_size
from fewstep.errors import UserError
from fewstep.runs.protocols.measured_sets import FIGURES, PictureProtocol, SetsMeasurer
from fewstep.system.caches import output
from fewstep.system.files import readable, write_text
from fewstep.training import Listener
from fewstep.training.listeners import Several

MOST_BYTES = 2**24
_IN_FEATURES = ("protocol.space", "origins.features")
_CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "fd": ("protocol.size", *_IN_FEATURES, "origins.real", "origins.reference"),
    "patch_fd": ("protocol.patch", *_IN_FEATURES, "origins.real"),
    "clip": ("protocol.clip_size", "protocol.clip_prefix", "origins.clip"),
    "diversity": ("protocol.size", *_IN_FEATURES),
    "target_distance": ("protocol.size", *_IN_FEATURES, "origins.targets"),
}
_AVERAGES = ("clip", "diversity", "target_distance")


def measure_pictures(
    folders: Sequence[Path],
    protocol: PictureProtocol,
    scores: Sequence[Path] = (),
    beside: Sequence[Path] = (),
    out: Path | None = None,
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """What ``SetsMeasurer`` finds of folders of pictures, with the results in the files ``beside``;
    written to ``out`` without these, where that is given.
    """
    earlier = [_read(file) for file in beside]
    if out is not None and out.suffix.lower() != ".json":
        raise UserError(f"{out}: the result is written as JSON; give a name that ends in .json.")
    result = SetsMeasurer(protocol, Several(listeners))(folders, scores)
    if out is not None:
        with output(out):
            write_text(out, json.dumps(result, indent=2) + "\n")
    return with_earlier(result, dict(zip(beside, earlier, strict=True)))


def with_earlier(result: dict[str, Any], files: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    """A result with the rows of earlier ones below its own, each with the file that it is ``from``.

    Raises ``UserError`` where a figure that both have was taken under other conditions.
    """
    rows = list(result["sets"])
    for file, earlier in files.items():
        ours, theirs = _figures(result["sets"]), _figures(earlier["sets"])
        for figure in (name for name in FIGURES if name in ours & theirs):
            for condition in _CONDITIONS.get(figure, ()):
                now, then = _at(result, condition), _at(earlier, condition)
                if now != then:
                    raise UserError(
                        f"{file}: its '{figure}' cannot stand beside the one of now: '{condition}' is "
                        f"{_shown(then)} there and {_shown(now)} now; measure both alike."
                    )
        rows += [{**row, "from": str(file)} for row in earlier["sets"]]
    return {**result, "sets": rows}


def _figures(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {name for row in rows for name in FIGURES if name in row}


def _at(result: Mapping[str, Any], condition: str) -> Any:
    part, _, name = condition.partition(".")
    return result[part].get(name)


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)[:120]


def _read(path: Path) -> dict[str, Any]:
    """A result that was written by ``--out``."""
    check_size(path, MOST_BYTES, "it is no result of a measurement")
    with readable(path):
        content = path.read_bytes()
    try:
        found = json.loads(content)
        _check(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: is no result of 'fewstep measure --pictures ... --out FILE'; give such a file."
        ) from error
    result: dict[str, Any] = found
    return result


def _check(found: Any) -> None:
    """Raises ``ValueError``, ``KeyError``, ``TypeError`` or ``AttributeError`` unless all that a
    table shows is of the kind that it shows.
    """
    parts = [found["protocol"], found["origins"], *found["sets"]]
    if not all(isinstance(part, dict) for part in parts) or not found["sets"]:
        raise ValueError("no objects")
    for row in found["sets"]:
        averages = [row[name] for name in _AVERAGES if name in row]
        averages += list(row["scores"]["means"].values()) if "scores" in row else []
        numbers = [row[name] for name in ("fd", "patch_fd") if name in row] + [each["mean"] for each in averages]
        numbers += [end for each in averages for end in (each["low"], each["high"]) if end is not None]
        if not isinstance(row["folder"], str) or type(row["pictures"]) is not int:
            raise ValueError("no folder")
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError("no number")
