"""What a run wrote into its folder, so that nothing else is ever replaced there.

A name is not ownership: somebody may have put a file of his own where a run writes. A folder has a
ledger, ``written.jsonl``, with a line for each file that was written under ``keeping``: its name
and the SHA-256 of its content. The line comes before the file, so that a run which is killed
between the two knows its file all the same. A file about to be replaced whose content no line of
its name has was not written here: it gets another name, and that is said. A run of an earlier
version has no ledger: of what its folder holds nothing is known, so that what is written again and
differs is kept once. A finished model is kept also where it is the run's own and another is to take
its place.

A file that a command was told to write (``sample --out``) may lie anywhere: ``keeping_file`` has a
ledger for it elsewhere.

Lines are only added, each with a single write: a run and a command that measures it may write at
the same moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

NAME = "written.jsonl"
# A log grows line by line and is cut by its run; a checkpoint says itself whose it is (see
# ``training.saving.checkpoint_files``).
_SPEAK_FOR_THEMSELVES = (NAME, "metrics.jsonl", "lock", "checkpoints")
_BEGINS = b'{"file": '
_ASIDE = re.compile(r"\.(set-aside|earlier)(-\d+)?(\.[^.]*)?$")
_MODELS = ("student.safetensors", "adapter.safetensors", "model.safetensors")
_kept: dict[Path, Ledger] = {}


def print_sentence(sentence: str) -> None:
    """Says it to whoever started the command."""
    print(sentence, file=sys.stderr, flush=True)


@contextlib.contextmanager
def keeping(folder: Path, say: Callable[[str], None] = print_sentence) -> Iterator[None]:
    """Within it, ``folder`` has a ledger for this process; ``say`` is told of each file that was
    given another name.
    """
    folder = Path(folder).absolute()
    if folder in _kept:
        yield
        return
    _kept[folder] = Ledger(folder, folder / NAME, say)
    try:
        yield
    finally:
        del _kept[folder]


@contextlib.contextmanager
def keeping_file(path: Path, ledger: Path, say: Callable[[str], None] = print_sentence) -> Iterator[None]:
    """Within it, the one file ``path``, wherever it is, is subject to the ledger in the file
    ``ledger``.
    """
    path = Path(path).absolute()
    if path in _kept:
        yield
        return
    _kept[path] = _Elsewhere(Path(path.anchor), ledger, say)
    try:
        yield
    finally:
        del _kept[path]


def is_ledger(path: Path) -> bool:
    """Whether a file is a ledger, or is not there; a line of it may have been cut short."""
    if not os.path.lexists(path):
        return True
    if not path.is_file() or path.is_symlink():
        return False
    lines = [line for line in path.read_bytes().splitlines() if line]
    return all(line.startswith(_BEGINS[: len(line)]) for line in lines)


def noted_in(folder: Path) -> set[str]:
    """The first parts of the names in a folder's ledger: what a run has written, or was about to
    write.
    """
    return {Path(line["file"]).parts[0] for line in _lines_of(Path(folder) / NAME)}


def ledger_of(path: Path) -> Ledger | None:
    """The ledger that ``path`` is subject to, None where there is none."""
    path = Path(path).absolute()
    for folder, ledger in _kept.items():
        if folder in path.parents and path.relative_to(folder).parts[0] not in _SPEAK_FOR_THEMSELVES:
            return ledger
    return _kept.get(path)


class Ledger:
    """The ledger of what is in ``folder``, in the file ``path``, made with its first line."""

    def __init__(self, folder: Path, path: Path, say: Callable[[str], None]):
        self.folder = folder
        self._say = say
        self._path = path

    def about_to_replace(self, path: Path, aside: Path) -> None:
        """Notes that ``aside``, a whole file, is to become ``path``; what stands there and is not
        known gets another name.
        """
        digest = file_digest(aside)
        known = list(_lines_of(self._path))
        if os.path.lexists(path) and not self._is(path, digest):
            if not self._knows(path, known):
                self._say(f"{path}: was not written by this run; it is kept as {set_aside(path, 'set-aside').name}.")
            elif path.name in _MODELS and path.absolute().parent == self.folder:
                self._say(
                    f"{path}: differs from the one that takes its place; it is kept as "
                    f"{set_aside(path, 'earlier').name}."
                )
        if self._line(path, digest) not in known:
            self._add(path, digest)

    @staticmethod
    def _is(path: Path, digest: str) -> bool:
        return path.is_file() and not path.is_symlink() and file_digest(path) == digest

    def _knows(self, path: Path, known: Sequence[Mapping[str, str]]) -> bool:
        return path.is_file() and not path.is_symlink() and self._line(path, file_digest(path)) in known

    def _add(self, path: Path, digest: str) -> None:
        line = json.dumps(self._line(path, digest))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            # Begins a line of its own, whatever was cut short before it.
            os.write(handle, f"\n{line}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _line(self, path: Path, digest: str) -> dict[str, str]:
        return {"file": Path(path).absolute().relative_to(self.folder).as_posix(), "sha256": digest}


class _Elsewhere(Ledger):
    """A ledger that is not among what it notes: where it cannot be written, what a command wrote is
    kept at the next time.
    """

    def _add(self, path: Path, digest: str) -> None:
        with contextlib.suppress(OSError):
            super()._add(path, digest)


def set_aside(path: Path, why: str) -> Path:
    """Gives a file, a link or a folder another name beside the old one, which says ``why``; returns
    it. Raises ``OSError``.
    """
    # A folder of shards has a name without a suffix, a file's suffix says how to read it.
    suffix = "" if path.is_dir() else path.suffix
    stem = path.name.removesuffix(suffix)
    names = (path.with_name(f"{stem}.{why}{number}{suffix}") for number in ("", *(f"-{n}" for n in range(2, 10_000))))
    new = next(name for name in names if not os.path.lexists(name))
    path.rename(new)
    return new


def is_set_aside(path: Path) -> bool:
    """Whether a name is one that a ledger gave to a file which stood in the way."""
    return _ASIDE.search(path.name) is not None


def _lines_of(path: Path) -> Iterator[dict[str, str]]:
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        # A line that was cut short by a crash need not be the last: lines are added after it.
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("file"), str):
                yield entry


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
