"""Writes a checkpoint as a folder of shards, by torch's distributed checkpoint (DCP): each process
writes what it holds.

The folder is made aside and renamed once everything in it is on the disk: it is complete or absent.
``shard_folder`` says what is in it.

Writing may go on in the background (``begin``, ``finish``): tensors are copied to the CPU at once,
the run goes on, and the folder gets its name at a later step, when all processes are done.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch import distributed as dist

from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.files import sync_folder, why_not_written, write_text
from fewstep.system.ledger import set_aside
from fewstep.training.saving.checkpoint_files import make_way, remove_checkpoint
from fewstep.training.saving.shard_folder import (
    FORMAT,
    MANIFEST,
    alone_on_purpose,
    fingerprint,
    is_folder_of_shards,
    manifest_digest,
)


@dataclass(frozen=True)
class Writing:
    """A folder that is being written: its final ``path``, the ``state`` for its manifest, and the
    ``outcome`` in this process.
    """

    path: Path
    state: Mapping[str, Any]
    outcome: Future[Any]

    @property
    def done(self) -> bool:
        """Whether this process has written its part."""
        return self.outcome.done()


class ShardWriter:
    """Writes folders one after another; all processes take part in each call."""

    def __init__(self) -> None:
        # A background writer exchanges plans while the run goes on exchanging other things: not in
        # one group.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        if self._group is None:
            alone_on_purpose()

    def begin(self, path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Writing:
        """Copies ``tensors`` to the CPU and begins to write them."""
        from torch.distributed.checkpoint import HuggingFaceStorageWriter, async_save

        aside = _aside(path)
        distributed.together(lambda: _emptied(aside))
        writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
        # DCP copies the tensors before it gives control back; the state is ours to copy.
        plain = {name: value.detach() for name, value in tensors.items()}
        outcome = async_save(plain, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        assert isinstance(outcome, Future)
        return Writing(path, json.loads(json.dumps(state)), outcome)

    def finish(self, writing: Writing) -> Path:
        """Waits for all processes, and gives the folder its manifest and its name.

        Raises ``UserError`` where one could not write; the folder is then absent.
        """
        aside, problem = _aside(writing.path), ""
        files: dict[str, Any] = {}
        try:
            with _as_sentence(writing.path):
                _written(writing)
                files = {
                    path.name: _synced(path) for path in sorted(aside.glob(f"shard-{distributed.rank() + 1:05d}-*"))
                }
        except UserError as error:
            problem = str(error)
        parts: list[tuple[str, dict[str, Any]]] = distributed.everyones((problem, files))
        problems = [each for each, _ in parts if each]
        if problems:
            raise UserError(problems[0])
        content = {
            "format": FORMAT,
            "state": dict(writing.state),
            "files": {name: mark for _, marks in parts for name, mark in marks.items()},
        }
        text = json.dumps({"digest": manifest_digest(content), **content}, sort_keys=True, indent=1)
        write_text(aside / MANIFEST, text)

        def rename() -> None:
            with _as_sentence(writing.path):
                sync_folder(aside)
                old = writing.path.with_name(f".{writing.path.name}.old.aside")
                if os.path.lexists(old):
                    _removed_or_set_aside(old)
                make_way(writing.path, str(writing.state.get("run", "")))
                if os.path.lexists(writing.path):
                    # Renamed before it is removed: the tensors of one of the two are on the disk at
                    # any moment.
                    writing.path.rename(old)
                aside.rename(writing.path)
                sync_folder(writing.path.parent)
                if old.is_dir():
                    _removed_or_set_aside(old)

        distributed.together(rename)
        return writing.path


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.aside")


def _emptied(aside: Path) -> None:
    with _as_sentence(aside):
        if os.path.lexists(aside):
            _removed_or_set_aside(aside)
        aside.mkdir(parents=True)


def _removed_or_set_aside(path: Path) -> None:
    """Removes a folder of shards that was begun, or is replaced; anything else under its name gets
    another name.
    """
    if is_folder_of_shards(path):
        remove_checkpoint(path)
    else:
        set_aside(path, "set-aside")


@contextlib.contextmanager
def _as_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(why_not_written(path, error)) from error


def _written(writing: Writing) -> None:
    """Waits for the writer; raises the first process' ``OSError``."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        writing.outcome.result()
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from error
        raise


def _synced(path: Path) -> dict[str, Any]:
    """Puts a shard on the disk, and gives its fingerprint."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    return fingerprint(path)
