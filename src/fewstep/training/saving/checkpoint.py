"""A checkpoint: everything a run needs to go on as if it had never stopped.

A checkpoint holds the weights of every trained network, the average, the optimizers of the current
stage, and as JSON the position (stage, step), counters and the state of every ``Resumable`` object.
No random state is needed: draws are a function of place (see ``random``). It is one checksummed
file, or a folder of shards (``shard_folder``); a run goes on from either, whatever wrote it and in
however many processes.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.system.files import read_tensors

CHECKPOINTS = "checkpoints"
"""The folder of them, in a run's."""
NAME = re.compile(r"step-(\d{8})(\.safetensors)?")
"""A checkpoint's own name, of a file or a folder: the step that it is of."""


class Checkpoint(abc.ABC):
    """A whole checkpoint on disk; ``state`` of JSON values."""

    state: dict[str, Any]

    @abc.abstractmethod
    def read(self, prefix: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors whose names begin with ``prefix``, by what follows it.

        Those that ``like`` has in a sharded form may come in that form, or whole.
        """


class FileCheckpoint(Checkpoint):
    """One file; raises ``UserError`` naming it when it is damaged or no checkpoint."""

    def __init__(self, path: Path):
        self._tensors, self.state = read_tensors(path)
        place_of(path, self.state)

    def read(self, prefix: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in self._tensors.items() if name.startswith(prefix)}


def is_folder(path: Path) -> bool:
    """Whether a path is that of a checkpoint in shards."""
    match = NAME.fullmatch(path.name)
    return match is not None and match.group(2) is None and path.is_dir() and not path.is_symlink()


def place_of(path: Path, state: Mapping[str, Any]) -> tuple[int, int, int]:
    """(stage, steps in it, steps in all) of a checkpoint's file; raises ``UserError`` when
    ``state`` is not a checkpoint's, or that of another step than the file's name says.
    """
    try:
        progress = state["progress"]
        place = tuple(int(progress[key]) for key in ("stage", "stage_step", "step"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a checkpoint but another file of fewstep's; move it away.") from error
    match = NAME.fullmatch(path.name)
    if match and int(match.group(1)) != place[2]:
        raise UserError(
            f"{path}: is the checkpoint of step {place[2]}, as its name should say; rename it, or move it away."
        )
    return place[0], place[1], place[2]


def check_run_of(path: Path, state: Mapping[str, Any], run: str) -> None:
    """Raises ``UserError`` for the checkpoint of another run, where both say which."""
    if run and state.get("run") and state["run"] != run:
        raise UserError(f"{path}: is a checkpoint of another run, whose recipe differs from this one's; move it away.")
