"""What a run wrote into its folder, so that nothing else is ever replaced there.

A name is not ownership: somebody may have put a file of his own where a run writes. A folder has a ledger,
``written.jsonl``, with a line for each file that was written under ``keeping``: its name and the SHA-256 of its content.
The line comes before the file, so that a run which is killed between the two knows its file all the same. A file about to
be replaced whose content no line of its name has was not written here: it gets another name, and that is said. A run of
an earlier version has no ledger: what its folder holds is taken for its own when it is next written to.

Lines are only added, each with a single write: a run and a command that measures it may write at the same moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fewstep import distributed

NAME = "written.jsonl"
# A log grows line by line and is cut by its run; a checkpoint says itself whose it is (see ``training.checkpoint``).
_SPEAK_FOR_THEMSELVES = (NAME, "metrics.jsonl", "lock", "checkpoints")
_kept: dict[Path, Ledger] = {}


def print_sentence(sentence: str) -> None:
    """Says it to whoever started the command."""
    print(sentence, file=sys.stderr, flush=True)


@contextlib.contextmanager
def keeping(folder: Path, say: Callable[[str], None] = print_sentence) -> Iterator[None]:
    """Within it, ``folder`` has a ledger for this process; ``say`` is told of each file that was given another name."""
    folder = Path(folder).absolute()
    if folder in _kept:
        yield
        return
    _kept[folder] = Ledger(folder, say)
    try:
        if distributed.first():
            _kept[folder].adopt()
        yield
    finally:
        del _kept[folder]


def noted_in(folder: Path) -> set[str]:
    """The first parts of the names in a folder's ledger: what a run has written, or was about to write."""
    return {Path(line["file"]).parts[0] for line in _lines_of(Path(folder) / NAME)}


def ledger_of(path: Path) -> Ledger | None:
    """The ledger that ``path`` is subject to, None where there is none."""
    path = Path(path).absolute()
    for folder, ledger in _kept.items():
        if folder in path.parents and path.relative_to(folder).parts[0] not in _SPEAK_FOR_THEMSELVES:
            return ledger
    return None


class Ledger:
    """The ledger of ``folder``, made with its first line."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print_sentence):
        self.folder = folder
        self._say = say
        self._path = folder / NAME

    def about_to_replace(self, path: Path, aside: Path) -> None:
        """Notes that ``aside``, a whole file, is to become ``path``; what stands there and is not known gets another name."""
        digest = _digest(aside)
        known = list(_lines_of(self._path))
        if os.path.lexists(path) and not self._knows(path, digest, known):
            self._say(f"{path}: was not written by this run; it is kept as {set_aside(path, 'set-aside').name}.")
        if self._line(path, digest) not in known:
            self._add(path, digest)

    def adopt(self) -> None:
        """Where there is no ledger yet, notes all files that are there."""
        if not self._path.exists():
            for path in sorted(self.folder.rglob("*")):
                if path.is_file() and not path.is_symlink() and ledger_of(path) is self:
                    self._add(path, _digest(path))

    def _knows(self, path: Path, new: str, known: Sequence[Mapping[str, str]]) -> bool:
        if path.is_symlink() or not path.is_file():
            return False
        digest = _digest(path)
        return digest == new or self._line(path, digest) in known

    def _add(self, path: Path, digest: str) -> None:
        line = json.dumps(self._line(path, digest))
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            # Begins a line of its own, whatever was cut short before it.
            os.write(handle, f"\n{line}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _line(self, path: Path, digest: str) -> dict[str, str]:
        return {"file": Path(path).absolute().relative_to(self.folder).as_posix(), "sha256": digest}


def set_aside(path: Path, why: str) -> Path:
    """Gives a file, a link or a folder another name beside the old one, which says ``why``; returns it. Raises ``OSError``."""
    # A folder of shards has a name without a suffix, a file's suffix says how to read it.
    suffix = "" if path.is_dir() else path.suffix
    stem = path.name.removesuffix(suffix)
    names = (path.with_name(f"{stem}.{why}{number}{suffix}") for number in ("", *(f"-{n}" for n in range(2, 10_000))))
    new = next(name for name in names if not os.path.lexists(name))
    path.rename(new)
    return new


def _lines_of(path: Path) -> Iterator[dict[str, str]]:
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        # A line that was cut short by a crash need not be the last: lines are added after it.
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("file"), str):
                yield entry


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
