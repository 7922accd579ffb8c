"""The cache folder, and what a file holds as one number.

A cache entry is named by the content that decides it, never by a path: a file that was exchanged under its old name is
another file. ``content_digest`` is the SHA-256 of that content. Reading a large set for it takes minutes, so the digest of
a file is remembered in the cache folder by absolute path, size, time of change (nanoseconds) and inode.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from fewstep.errors import UserError
from fewstep.files import write_alone

# A file that changed so lately may change again without another time of change: clocks of file systems are coarse.
_SETTLED_NS = 2_000_000_000


def cache_folder() -> Path:
    """$FEWSTEP_CACHE, or ``~/.cache/fewstep``."""
    chosen = os.environ.get("FEWSTEP_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fewstep"


def content_digest(path: Path | str) -> str:
    """The SHA-256, 64 hexadecimal digits, of a file's bytes, or of a folder's relative names with their digests.

    Links are followed; a link to a folder that contains it ends there. Raises ``UserError`` naming what cannot be read.
    """
    path = Path(path).expanduser().absolute()
    try:
        return _of_folder(path, ()) if path.is_dir() else _of_file(path)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{error.filename or path}: cannot be read ({why}); check the path and its permissions.") from error


def _of_folder(folder: Path, above: tuple[Path, ...]) -> str:
    real = folder.resolve()
    if real in above:
        return "loop"
    sha = hashlib.sha256(b"folder\n")
    for entry in sorted(folder.iterdir(), key=lambda entry: os.fsencode(entry.name)):
        digest = _of_folder(entry, (*above, real)) if entry.is_dir() else _of_file(entry)
        sha.update(os.fsencode(entry.name) + b"\0" + digest.encode() + b"\n")
    return sha.hexdigest()


def _of_file(path: Path) -> str:
    before = path.stat()
    known = [str(path), before.st_size, before.st_mtime_ns, before.st_ino]
    memory = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        entry = json.loads(memory.read_text(encoding="utf-8"))
        if entry["of"] == known and len(entry["sha256"]) == 64:
            return str(entry["sha256"])
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    after = path.stat()
    unchanged = (after.st_size, after.st_mtime_ns, after.st_ino) == tuple(known[1:])
    if unchanged and time.time_ns() - after.st_mtime_ns > _SETTLED_NS:
        # A cache folder that cannot be written costs time, and no result.
        with contextlib.suppress(UserError, OSError):
            write_alone(memory, json.dumps({"of": known, "sha256": digest}).encode())
    return digest
