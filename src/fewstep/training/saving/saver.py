"""Where a run's checkpoints go: one file, shards, or shards in the background."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fewstep.training.saving.run_checkpoints import Checkpoints
from fewstep.training.saving.sharded import ShardWriter, Writing

Kind = Literal["file", "shards", "background"]


class Saver:
    """Writes ``checkpoints`` as ``kind`` says; at most one is on its way.

    All processes call all methods.
    """

    def __init__(self, folder: Path, keep: int, run: str, kind: Kind):
        self.checkpoints = Checkpoints(folder, keep, run)
        self.kind = kind
        self._shards: ShardWriter | None = None
        self._writing: Writing | None = None

    @property
    def busy(self) -> bool:
        """Whether this process is still writing in the background."""
        return self._writing is not None and not self._writing.done

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes the checkpoint of global step ``step``, or begins to; the one before it, if it is
        on its way, is finished first.
        """
        self.finish()
        if self.kind == "file":
            self.checkpoints.save(step, tensors, state)
            return
        # Made when it is needed, which is at the same moment in all processes: it makes a group.
        self._shards = self._shards or ShardWriter()
        self._writing = self._shards.begin(self.checkpoints.folder / f"step-{step:08d}", tensors, state)
        if self.kind == "shards":
            self.finish()

    def finish(self) -> None:
        """Waits for the checkpoint that is on its way, if one is, and gives it its name."""
        if self._writing is not None and self._shards is not None:
            writing, self._writing = self._writing, None
            self._shards.finish(writing)
            self.checkpoints.prune()
