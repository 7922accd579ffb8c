"""The record of a run: ``metrics.jsonl``, one JSON object a line, written as the run goes and cut
back when it resumes.

A line is appended with one write, so that an interruption leaves at most one incomplete line, which
reading skips. Only lines of a log's own form are ever cut; a file that holds others is kept under
another name. Fields named ``seconds`` are the only ones that two equal runs may differ in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.files import append_line, why_not_written, write_bytes
from fewstep.system.ledger import set_aside

_BEGINS = b'{"step": '


class Log:
    """The log in ``path``; ``lines`` is how many it holds."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = 0

    def begin(self) -> None:
        """Empties a log in which no step was made; raises ``UserError`` for another, and for a file
        that is no log.
        """

        def check() -> None:
            if not _holds_no_step(self.path):
                raise UserError(
                    f"{self.path}: is the log of a run already, or somebody's own; go on with the run "
                    "(resume), or choose another folder."
                )

        distributed.together(check)
        self._keep(0)

    def cut(self, lines: int, say: Callable[[str], None]) -> None:
        """Keeps the first ``lines`` lines; what an undisturbed run would not have written yet goes.

        Where that is anything but a log's lines, the whole file is kept under another name, and
        ``say`` is told.
        """
        aside = distributed.together(lambda: self._kept_aside(lines))
        if aside:
            say(f"{self.path}: held lines that no run wrote; the file as it was is kept as {aside}.")
        self._keep(lines)

    def last_step(self) -> int:
        """The last step of which there is a line, 0 when there is none."""

        def look() -> int:
            steps = (entry["step"] for entry in read_log(self.path) if "stage" in entry)
            return max((step for step in steps if isinstance(step, int)), default=0)

        return distributed.together(look)

    def _kept_aside(self, lines: int) -> str:
        content = self.path.read_bytes() if self.path.is_file() else b""
        if _are_own(content.splitlines(keepends=True)[lines:]):
            return ""
        try:
            new = set_aside(self.path, "set-aside")
        except OSError as error:
            raise UserError(why_not_written(self.path, error)) from error
        write_bytes(self.path, content)
        return new.name

    def _keep(self, lines: int) -> None:
        kept = self.path.read_bytes().splitlines(keepends=True)[:lines] if self.path.is_file() else []
        write_bytes(self.path, b"".join(kept))
        self.lines = len(kept)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds one line."""
        append_line(self.path, json.dumps(entry))
        self.lines += 1


def _holds_no_step(path: Path) -> bool:
    """Whether a log is absent, empty, or has nothing but what was measured before the first
    step.
    """
    if not path.is_file():
        return not os.path.lexists(path)
    lines = path.read_bytes().splitlines(keepends=True)
    return _are_own(lines) and not any((read_line(line) or {}).get("step") for line in lines)


def is_own_line(entry: Mapping[str, Any]) -> bool:
    """Whether an entry has the form of a log's."""
    return {"step", "evaluations"} <= entry.keys()


def _are_own(lines: Sequence[bytes]) -> bool:
    """Whether lines have a log's form; the last may be half a line."""
    if lines and not lines[-1].endswith(b"\n") and lines[-1][: len(_BEGINS)] == _BEGINS[: len(lines[-1])]:
        lines = lines[:-1]
    return all(is_own_line(read_line(line) or {}) for line in lines)


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
