"""The record of a run: ``metrics.jsonl``, one JSON object a line, written as the run goes and cut back when it resumes.

A line is appended with one write, so that an interruption leaves at most one incomplete line, which reading skips.
Fields named ``seconds`` are the only ones that two equal runs may differ in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.files import append_line, write_bytes


class Log:
    """The log in ``path``; ``lines`` is how many it holds."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = 0

    def cut(self, lines: int) -> None:
        """Keeps the first ``lines`` lines; what an undisturbed run would not have written yet goes."""
        kept = self.path.read_bytes().splitlines(keepends=True)[:lines] if self.path.is_file() else []
        write_bytes(self.path, b"".join(kept))
        self.lines = len(kept)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds one line."""
        append_line(self.path, json.dumps(entry))
        self.lines += 1


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; what is no JSON object is passed over."""
    found = (read_line(line) for line in path.read_bytes().splitlines()) if path.is_file() else ()
    return [entry for entry in found if entry is not None]


def read_line(line: bytes) -> dict[str, Any] | None:
    """The entry in a line, None when it is incomplete or damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
