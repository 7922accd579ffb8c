"""Folders that are whole or absent: made aside, on the disk before they get their name, and never
put where something is already.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fewstep.errors import UserError
from fewstep.system.files import sync_folder, why_not_written


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """An empty folder, which becomes ``path`` when the context ends well, atomically and durably;
    otherwise it is removed, and nothing is at ``path``.

    Raises ``UserError`` where ``path`` is a file or a folder that is not empty, also one that came
    meanwhile, when the disk is full, and when writing is not permitted.
    """
    # A link is followed: renaming would put the folder in the place of the link.
    path = Path(os.path.realpath(path))
    _check_free(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}.aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        try:
            yield aside
            _sync(aside)
            _check_free(path)
            # Onto an empty folder, which it replaces, or onto nothing; a folder that is not empty
            # is refused by the system.
            os.rename(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(why_not_written(path, error)) from error


def copy_file(source: Path, target: Path) -> None:
    """Copies the bytes of a file, making the target's folder; a link is followed.

    Raises ``UserError`` naming a source that cannot be read; errors of writing are ``OSError``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            read = stack.enter_context(open(source, "rb"))
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"{source}: cannot be read ({why}); check the path and its permissions.") from error
        shutil.copyfileobj(read, stack.enter_context(open(target, "xb")), 1 << 20)


def _check_free(path: Path) -> None:
    if path.is_dir():
        held = next(iter(sorted(each.name for each in path.iterdir())), None)
        if held is not None:
            raise UserError(f"{path}: is a folder that holds '{held}' already; give a new folder, or an empty one.")
    elif os.path.lexists(path):
        raise UserError(f"{path}: is there already and is no folder; give a new folder.")


def _sync(folder: Path) -> None:
    """Puts a folder's files and names on the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(Path(place) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(place))
