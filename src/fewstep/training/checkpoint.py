"""Checkpoints: everything a run needs to go on as if it had never stopped, in one checksummed file.

A checkpoint holds the weights of every trained network, the average, the optimizers of the current stage, and as JSON the position (stage, step), counters and the state of every
``Stateful`` object. No random state is needed: draws are a function of place (see ``random``). The newest ``keep`` files stay; a file that is cut short or damaged is passed over,
with a warning, for the one before it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.files import read_tensors, write_tensors

_NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """``tensors`` by name; ``state`` of JSON values."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints in ``folder``."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of global step ``step`` and then removes those beyond the newest ``keep``."""
        path = self.folder / f"step-{step:08d}.safetensors"
        write_tensors(path, tensors, dict(state))
        for old in self.paths()[self.keep :]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
        return path

    def paths(self) -> list[Path]:
        """The files, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest that reads whole, None when there is none; ``warn`` is told of each that was passed over."""
        for path in self.paths():
            try:
                tensors, state = read_tensors(path)
                place_of(path, state)
                return Checkpoint(tensors, state)
            except UserError as error:
                warn(f"passed over a checkpoint that cannot be read: {error}")
        return None

    def remove_after(self, step: int) -> None:
        """Removes checkpoints of later steps than ``step``: damaged ones that were passed over."""
        for path in self.paths():
            match = _NAME.fullmatch(path.name)
            if match and int(match.group(1)) > step:
                path.unlink()


def place_of(path: Path, state: Mapping[str, Any]) -> tuple[int, int, int]:
    """(stage, steps in it, steps in all) of a checkpoint's file; raises ``UserError`` when ``state`` is not a checkpoint's, or that of another step than the file's name says."""
    try:
        progress = state["progress"]
        place = tuple(int(progress[key]) for key in ("stage", "stage_step", "step"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a checkpoint but another file of fewstep's; move it away.") from error
    match = _NAME.fullmatch(path.name)
    if match and int(match.group(1)) != place[2]:
        raise UserError(f"{path}: is the checkpoint of step {place[2]}, as its name should say; rename it, or move it away.")
    return place[0], place[1], place[2]


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as flat named tensors."""
    return {f"{prefix}/{index}/{key}": value for index, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "/"):
            index, key = name[len(prefix) + 1 :].split("/")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
