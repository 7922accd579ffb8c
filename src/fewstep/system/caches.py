"""The cache folder, and what a file holds as one number.

A cache entry is named by the content that decides it, never by a path: a file that was exchanged
under its old name is another file. ``content_digest`` is the SHA-256 of that content. Reading a
large set for it takes minutes, so the digest of a file is remembered in the cache folder by
absolute path, size, time of change (nanoseconds) and inode. What is at an address is known by what
its server says of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.system.files import write_alone
from fewstep.system.ledger import NAME, file_digest, keeping_file, print_sentence
from fewstep.system.locks import InUse, locked

# A file that changed so lately may change again without another time of change: clocks of file
# systems are coarse.
_SETTLED_NS = 2_000_000_000
_SECONDS, _PAUSE = 10.0, 0.2


def cache_folder() -> Path:
    """$FEWSTEP_CACHE, or ``~/.cache/fewstep``."""
    chosen = os.environ.get("FEWSTEP_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fewstep"


def output(path: Path | str, say: Callable[[str], None] = print_sentence) -> contextlib.AbstractContextManager[None]:
    """Around the writing of a file that a command was told to write: what stands there and no
    command wrote is kept under another name.

    What commands have written is noted in the cache folder.
    """
    return keeping_file(Path(path), cache_folder() / NAME, say)


def content_digest(path: Path | str) -> str:
    """The SHA-256, 64 hexadecimal digits, of a file's bytes, or of a folder's relative names with
    their digests.

    Links are followed; a link to a folder that contains it ends there. Raises ``UserError`` naming
    what cannot be read.
    """
    path = Path(path).expanduser().absolute()
    with _said(path):
        if not path.is_dir():
            return _of_file(path)
        with _remembered(path) as digest_of:
            return _of_folder(path, (), digest_of)


def content_digests(folder: Path | str, names: Iterable[str]) -> list[str]:
    """The SHA-256 of each named file of a folder.

    What is remembered of them is one file of the cache. Raises as ``content_digest`` does.
    """
    folder = Path(folder).expanduser().absolute()
    with _said(folder), _remembered(folder) as digest_of:
        return [digest_of(folder / name) for name in names]


def address_marks(url: str) -> dict[str, str] | None:
    """What the server of an http address says by which a change of its content is seen.

    They are its strong ETag and its length, whichever it says. None where it cannot be asked.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS) as answer:
            tag, length = answer.headers.get("ETag", ""), answer.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        # A server that does not answer this question may well answer the next.
        return {} if error.code in (403, 405, 501) else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return {**({"etag": tag} if tag and not tag.startswith("W/") else {}), **({"length": length} if length else {})}


@contextlib.contextmanager
def held_cache(folder: Path) -> Iterator[None]:
    """Holds a folder of the cache as ``locks.locked`` does, having waited for another process that
    holds it.
    """
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except InUse:
                # Whether it is still held is not asked: it may have been let go since, and is ours.
                time.sleep(_PAUSE)
        yield


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"{error.filename or path}: cannot be read ({why}); check the path and its permissions."
        ) from error


def _of_folder(folder: Path, above: tuple[Path, ...], digest_of: Callable[[Path], str]) -> str:
    real = folder.resolve()
    if real in above:
        return "loop"
    sha = hashlib.sha256(b"folder\n")
    for entry in sorted(folder.iterdir(), key=lambda entry: os.fsencode(entry.name)):
        digest = _of_folder(entry, (*above, real), digest_of) if entry.is_dir() else digest_of(entry)
        sha.update(os.fsencode(entry.name) + b"\0" + digest.encode() + b"\n")
    return sha.hexdigest()


@contextlib.contextmanager
def _remembered(folder: Path) -> Iterator[Callable[[Path], str]]:
    """What gives the digests of a folder's files, all of which are remembered in one file of the
    cache.
    """
    memory = _memory(folder)
    known = _read(memory).get("files", {})
    known = known if isinstance(known, dict) else {}
    found: dict[str, list[int | str]] = {}

    def digest_of(path: Path) -> str:
        name, before = str(path.relative_to(folder)), _marks(path)
        entry = known.get(name)
        if isinstance(entry, list) and entry[:-1] == before and _is_digest(entry[-1]):
            found[name] = entry
            return str(entry[-1])
        digest, settled = _digest(path, before)
        if settled:
            found[name] = [*before, digest]
        return digest

    yield digest_of
    if any(known.get(name) != entry for name, entry in found.items()):
        _write(memory, {"of": str(folder), "files": {**known, **found}})


def _of_file(path: Path) -> str:
    before = _marks(path)
    known, memory = [str(path), *before], _memory(path)
    entry = _read(memory)
    if entry.get("of") == known and _is_digest(entry.get("sha256")):
        return str(entry["sha256"])
    digest, settled = _digest(path, before)
    if settled:
        _write(memory, {"of": known, "sha256": digest})
    return digest


def _marks(path: Path) -> list[int | str]:
    """What changes with a file's content: its size, the time of its change, its inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _digest(path: Path, before: list[int | str]) -> tuple[str, bool]:
    """The SHA-256 of a file, and whether what was seen of it before will tell a later change."""
    digest = file_digest(path)
    after = _marks(path)
    return digest, after == before and time.time_ns() - int(after[1]) > _SETTLED_NS


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _memory(path: Path) -> Path:
    return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _read(memory: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        entry = json.loads(memory.read_text(encoding="utf-8"))
        return entry if isinstance(entry, dict) else {}
    return {}


def _write(memory: Path, entry: dict[str, Any]) -> None:
    # A cache folder that cannot be written costs time, and no result.
    with contextlib.suppress(UserError, OSError):
        write_alone(memory, json.dumps(entry).encode())
