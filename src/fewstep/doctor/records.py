"""What a run writes besides weights: its log, results, pictures and report.

Made again from the weights where they are damaged, all but the log.

A log line carries no checksum: a digit that was changed is not found. What is: lines that are no
JSON, a log shorter than its newest checkpoint says, and steps that go backwards.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.data.pixels import decode
from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.errors import UserError
from fewstep.keeping.checkpoints import Listing
from fewstep.keeping.run_folder import RunFolder
from fewstep.system.ledger import is_set_aside
from fewstep.training.reporting.log import read_line
from fewstep.training.saving.checkpoint_files import look_at

_COPY = "Restore it from a copy; the run can go on without, and reports leave out what cannot be read."


def check_log(folder: RunFolder, listing: Listing) -> Iterator[Finding]:
    """The findings of the log, and the warnings of the health probes in it."""
    path = folder.log
    if not path.is_file():
        yield (
            problem(path, "there is no such file.", _COPY)
            if listing.checkpoints
            else note(path, "there is no log: nothing was run here yet.")
        )
        return
    lines = path.read_bytes().splitlines(keepends=True)
    entries = [read_line(line) for line in lines]
    if lines and not lines[-1].endswith(b"\n"):
        yield note(
            path,
            f"line {len(lines)} is half a line: its writer was stopped.",
            "Nothing: it is passed over, and a resumed run cuts it off.",
        )
        lines, entries = lines[:-1], entries[:-1]
    bad = [number for number, entry in enumerate(entries, 1) if entry is None or not isinstance(entry.get("step"), int)]
    whole = [entry for entry in entries if entry is not None and isinstance(entry.get("step"), int)]
    if bad:
        yield problem(
            path, f"{len(bad)} of its {len(lines)} lines are damaged, the first of them line {bad[0]}.", _COPY
        )
    if any(later["step"] < earlier["step"] for earlier, later in pairwise(whole)):
        yield problem(path, "its steps go backwards.", _COPY)
    expected = _lines_of(folder, listing)
    if len(lines) < expected:
        yield problem(path, f"has {len(lines)} lines, and {expected} were written before {listing.resumes}.", _COPY)
    elif not bad:
        yield ok(path, f"has {len(lines)} lines, up to step {whole[-1]['step'] if whole else 0}.")
    yield from _warnings(path, whole)


def check_records(folder: RunFolder, resume: str) -> Iterator[Finding]:
    """The findings of results, pictures and report, of those that are there; ``resume``: the
    command that ends the run again.
    """
    results = {
        folder.evaluation: "evaluate",
        folder.evaluation_of("best"): "evaluate --best",
        folder.path / "shift.json": "shift",
    }
    for path, command in results.items():
        if path.is_file():
            yield _object(path, f"Measure it again: 'fewstep {command} {folder.path}'.")
    for path in sorted(each for each in folder.path.glob("measured-*.json") if not is_set_aside(each)):
        yield _object(path, f"Measure it again: 'fewstep measure {folder.path}'.")
    yield from _pictures(folder, resume)
    report = folder.path / "report.html"
    if report.is_file():
        yield _page(report, f"Write it again: 'fewstep report {folder.path}'.")


def _lines_of(folder: RunFolder, listing: Listing) -> int:
    """How many lines the log had when the checkpoint was written from which a run resumes."""
    if listing.resumes is None:
        return 0
    found = look_at(folder.path / listing.resumes, False).get("log_lines")
    return found if isinstance(found, int) else 0


def _warnings(path: Path, entries: list[dict[str, Any]]) -> Iterator[Finding]:
    """The newest health reading's warnings each, earlier ones counted."""
    health = [entry for entry in entries if entry.get("probe") == "health" and isinstance(entry.get("warnings"), list)]
    warned = [entry for entry in health if entry["warnings"]]
    remedy = "The report's section on health shows the readings over the run."
    if health and health[-1] is (warned[-1] if warned else None):
        for text in health[-1]["warnings"]:
            yield note(path, f"at step {health[-1]['step']}, {text}", remedy)
        warned = warned[:-1]
    if warned:
        yield note(
            path,
            f"{len(warned)} of {len(health)} health readings warned before, the last of them at step "
            f"{warned[-1]['step']}.",
            remedy,
        )


def _pictures(folder: RunFolder, resume: str) -> Iterator[Finding]:
    found = sorted(each for each in folder.samples.glob("*.png") if not is_set_aside(each))
    bad = [path for path in found if not _is_picture(path)]
    for path in bad:
        yield problem(
            path,
            "is no whole picture.",
            "Delete it: only the report shows it." if path.name.startswith("step-") else f"Draw it again: '{resume}'.",
        )
    if found and not bad:
        yield ok(folder.samples, f"{len(found)} pictures.")
    for words in sorted(each for each in folder.samples.glob("*.json") if not is_set_aside(each)):
        yield _object(words, f"Write it again: '{resume}'.")


def _is_picture(path: Path) -> bool:
    from PIL import Image

    # A link may lead to a device, which has no end.
    if not path.is_file():
        return False
    try:
        content = path.read_bytes()
        decode(content, str(path))
        # Decoding passes over the checksums of a PNG's parts.
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            picture.verify()
    except (UserError, OSError, SyntaxError, ValueError, struct.error, zlib.error):
        return False
    return True


def _object(path: Path, remedy: str) -> Finding:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return refused(path, f"is not readable JSON ({error}).", remedy)
    return ok(path, "is whole.") if isinstance(value, dict) else problem(path, "is JSON, but no object.", remedy)


def _page(path: Path, remedy: str) -> Finding:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return refused(path, f"is no page that can be read ({error}).", remedy)
    whole = text.lstrip().lower().startswith("<!doctype html") and text.rstrip().endswith("</html>")
    return ok(path, "is whole.") if whole else problem(path, "is no whole page.", remedy)
