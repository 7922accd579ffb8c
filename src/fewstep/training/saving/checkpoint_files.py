"""Checkpoints on disk, one file or a folder of shards: opened, looked at, made way for, removed.

Only what reads as a checkpoint of a run is ever removed or written over.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.system.files import check_finite, read_metadata, verify_tensors
from fewstep.system.ledger import set_aside
from fewstep.training.saving.checkpoint import Checkpoint, FileCheckpoint, check_run_of, is_folder, place_of
from fewstep.training.saving.shard_folder import FolderCheckpoint, check_shard, is_part, read_manifest


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file or a folder, its checksums compared; raises ``UserError`` when it is
    not whole.
    """
    return FolderCheckpoint(path) if is_folder(path) else FileCheckpoint(path)


def look_at(path: Path, verify: bool) -> dict[str, Any]:
    """The state in a checkpoint; its checksums are compared if asked, else it is only seen to be
    complete. Raises ``UserError`` when it is not whole, or no checkpoint.
    """
    if not is_folder(path):
        return verify_tensors(path) if verify else read_metadata(path)
    manifest = read_manifest(path)
    for name, mark in sorted(manifest["files"].items()):
        check_shard(path / name, mark, verify)
    state: dict[str, Any] = manifest["state"]
    return state


def is_checkpoint(path: Path) -> bool:
    """Whether a path reads as a checkpoint of whichever run, without its values."""
    try:
        place_of(path, look_at(path, verify=False))
    except UserError:
        return False
    return True


def is_of_run(path: Path, run: str) -> bool:
    """Whether a path says of itself that it is a complete checkpoint of ``run``, of the step in its
    name, and holds nothing else.
    """
    if path.is_symlink():
        return False
    try:
        state = look_at(path, verify=False)
        place_of(path, state)
        check_run_of(path, state, run)
        return not is_folder(path) or not _strays(path)
    except UserError:
        return False


def _strays(folder: Path) -> list[str]:
    """What is in a folder of shards and is no part of it."""
    named = set(read_manifest(folder)["files"])
    return sorted(
        name for name in os.listdir(folder) if name not in named and (not is_part(name) or name.startswith("shard-"))
    )


def check_values(path: Path, first: int = 0, every: int = 1) -> None:
    """Raises ``NotFinite`` for a checkpoint with a value that is not finite, looking at every
    ``every``-th of its files from ``first`` on.
    """
    for file in (sorted(path.glob("*.safetensors")) if is_folder(path) else [path])[first::every]:
        check_finite(file)


def make_way(path: Path, run: str) -> None:
    """Gives what is at the place of a checkpoint that is to be written another name, unless it is
    one of ``run``. This process alone.
    """
    if os.path.lexists(path) and not is_of_run(path, run):
        set_aside(path, "set-aside")


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint that the caller knows to be the run's; a folder is renamed first, so
    that what is half removed is no checkpoint.

    Raises ``UserError``, having removed nothing, where a folder holds what is no part of a
    checkpoint, or it cannot be removed.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        others = [name for name in sorted(os.listdir(path)) if not is_part(name)]
        if others:
            raise UserError(
                f"{path / others[0]}: is no part of a checkpoint, and its folder was not removed; move it away."
            )
        gone = path
        # What is aside already has no other name.
        if not path.name.startswith("."):
            gone = path.with_name(f".{path.name}.removed.aside")
            remove_checkpoint(gone)
            path.rename(gone)
        for name in sorted(os.listdir(gone)):
            (gone / name).unlink()
        gone.rmdir()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be removed ({error.strerror or error}); change the permissions of its folder."
        ) from error
