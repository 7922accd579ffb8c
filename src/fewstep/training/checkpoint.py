"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint holds the weights of every trained network, the average, the optimizers of the current stage, and as JSON the position (stage, step), counters and the state of every
``Stateful`` object. No random state is needed: draws are a function of place (see ``random``). It is one checksummed file, or a folder of shards (``sharded``); a run goes on from either,
whatever wrote it and in however many processes. The newest ``keep`` stay; one that is cut short or damaged is passed over, with a warning, for the one before it.

A checkpoint whose values are not finite (an older version could write one), and one from which a run
ended at once in such values, is set aside: it keeps its content under another name.
"""

from __future__ import annotations

import abc
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import distributed
from fewstep.errors import NotFinite, UserError
from fewstep.files import check_finite, read_metadata, read_tensors, verify_tensors, write_tensors

_NAME = re.compile(r"step-(\d{8})(\.safetensors)?")


class Checkpoint(abc.ABC):
    """A whole checkpoint on disk; ``state`` of JSON values."""

    state: dict[str, Any]

    @abc.abstractmethod
    def read(self, prefix: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors whose names begin with ``prefix``, by what follows it. Those that ``like`` has in a sharded form may come in that form, or whole."""


class FileCheckpoint(Checkpoint):
    """One file; raises ``UserError`` naming it when it is damaged or no checkpoint."""

    def __init__(self, path: Path):
        self._tensors, self.state = read_tensors(path)
        place_of(path, self.state)

    def read(self, prefix: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in self._tensors.items() if name.startswith(prefix)}


class Checkpoints:
    """The checkpoints in ``folder``; those that say of another run than ``run`` are passed over, where both say anything."""

    def __init__(self, folder: Path, keep: int = 2, run: str = ""):
        self.folder = folder
        self.keep = keep
        self.run = run

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of global step ``step`` into one file and then removes those beyond the newest ``keep``."""
        path = self.folder / f"step-{step:08d}.safetensors"
        write_tensors(path, tensors, dict(state))
        self.prune()
        return path

    def prune(self) -> None:
        """Removes all beyond the newest ``keep``."""

        def remove() -> None:
            for old in self.paths()[self.keep :]:
                remove_checkpoint(old)

        distributed.together(remove)

    def paths(self) -> list[Path]:
        """The files and folders, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest that reads whole, None when there is none; ``warn`` is told of each that was passed over.

        Raises ``UserError`` where there are whole ones and all are another run's: beginning anew would write over them.
        """
        others, not_finite = "", ""
        for name in distributed.together(lambda: [path.name for path in self.paths()]):
            found, problem = _opened(self.folder / name)
            # Whole for one process and not for another is not whole.
            problems = [each for each in distributed.everyones(problem) if each]
            if found is None or problems:
                warn(f"passed over a checkpoint that cannot be read: {problems[0]}")
                continue
            try:
                check_run_of(self.folder / name, found.state, self.run)
            except UserError as error:
                others = str(error)
                warn(f"passed over a checkpoint: {error}")
                continue
            if wrong := _wrong_values(self.folder / name):
                not_finite = wrong
                warn(f"passed over a checkpoint, which was set aside as {self.set_aside(self.folder / name).name}: {wrong}")
                continue
            return found
        if others:
            raise UserError(f"{self.folder}: holds no checkpoint of this run, but some of another, whose recipe differs; restore the run's recipe.yaml, or choose another folder with --out.")
        if not_finite:
            raise UserError(f"{self.folder}: no checkpoint is left whose values are finite ({not_finite.removesuffix('.')}); start anew in another folder, with a lower learning rate.")
        return None

    def set_aside(self, path: Path) -> Path:
        """Gives a checkpoint a name under which no run goes on from it, and returns that; its content stays."""

        def rename() -> str:
            new = next(name for name in _set_aside_names(path) if not name.exists())
            try:
                path.rename(new)
            except OSError as error:
                raise UserError(f"{path}: cannot be renamed ({error.strerror or error}); change the permissions of its folder.") from error
            return new.name

        return self.folder / distributed.together(rename)

    def was_set_aside(self, step: int) -> bool:
        """Whether a checkpoint of this step was set aside before."""
        return distributed.together(lambda: any(path.name.startswith(f"step-{step:08d}.") for path in set_aside_in(self.folder)))

    def remove_after(self, step: int) -> None:
        """Removes checkpoints of later steps than ``step``: damaged ones that were passed over."""

        def remove() -> None:
            for path in self.paths():
                match = _NAME.fullmatch(path.name)
                if match and int(match.group(1)) > step:
                    remove_checkpoint(path)

        distributed.together(remove)


def set_aside_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were set aside, oldest first."""
    return sorted(folder.glob("step-*.not-finite*")) if folder.is_dir() else []


def _set_aside_names(path: Path) -> Iterator[Path]:
    """Names for a checkpoint that is set aside, the plain one first."""
    suffix = path.suffix if path.suffix == ".safetensors" else ""
    stem = path.name.removesuffix(suffix)
    yield from (path.with_name(f"{stem}.not-finite{number}{suffix}") for number in ("", *(f"-{n}" for n in range(2, 1000))))


def _wrong_values(path: Path) -> str:
    """The sentence for values that are not finite in a checkpoint, each process having looked at its share of the files; empty where all are finite."""
    problem = ""
    try:
        check_values(path, distributed.rank(), distributed.size())
    except NotFinite as error:
        problem = str(error)
    return next((each for each in distributed.everyones(problem) if each), "")


def check_values(path: Path, first: int = 0, every: int = 1) -> None:
    """Raises ``NotFinite`` for a checkpoint with a value that is not finite, looking at every ``every``-th of its files from ``first`` on."""
    for file in (sorted(path.glob("*.safetensors")) if is_folder(path) else [path])[first::every]:
        check_finite(file)


def _opened(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return open_checkpoint(path), ""
    except UserError as error:
        return None, str(error)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file or a folder, its checksums compared; raises ``UserError`` when it is not whole."""
    from fewstep.training.sharded import FolderCheckpoint

    return FolderCheckpoint(path) if is_folder(path) else FileCheckpoint(path)


def check_run_of(path: Path, state: Mapping[str, Any], run: str) -> None:
    """Raises ``UserError`` for the checkpoint of another run, where both say which."""
    if run and state.get("run") and state["run"] != run:
        raise UserError(f"{path}: is a checkpoint of another run, whose recipe differs from this one's; move it away.")


def look_at(path: Path, verify: bool) -> dict[str, Any]:
    """The state in a checkpoint; its checksums are compared if asked, else it is only seen to be complete. Raises ``UserError`` when it is not whole, or no checkpoint."""
    from fewstep.training.sharded import check_shard, read_manifest

    if not is_folder(path):
        return verify_tensors(path) if verify else read_metadata(path)
    manifest = read_manifest(path)
    for name, mark in sorted(manifest["files"].items()):
        check_shard(path / name, mark, verify)
    state: dict[str, Any] = manifest["state"]
    return state


def is_folder(path: Path) -> bool:
    """Whether a path is that of a checkpoint in shards."""
    match = _NAME.fullmatch(path.name)
    return match is not None and match.group(2) is None and path.is_dir() and not path.is_symlink()


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, a folder by renaming it first, so that what is half removed is no checkpoint. Raises ``UserError`` when it cannot be removed."""
    try:
        if path.is_dir() and not path.is_symlink():
            # What is aside already is nobody's.
            gone = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.removed.aside"))
            shutil.rmtree(gone)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror or error}); change the permissions of its folder.") from error


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


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, checkpoint: Checkpoint) -> None:
    """The inverse of ``optimizer_tensors``; what is shaped like its parameter is laid out like it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.read(f"{prefix}/", _MomentsLike(parameters)).items():
        index, key = name.split("/")
        parameter = parameters[int(index)]
        state.setdefault(int(index), {})[key] = distributed.like(value, parameter) if value.shape == parameter.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class _MomentsLike(Mapping[str, Tensor]):
    """Each parameter, under any name that begins with its index."""

    def __init__(self, parameters: list[Tensor]):
        self._parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._parameters[int(name.split("/", maxsplit=1)[0])]
        except (ValueError, IndexError) as error:
            raise KeyError(name) from error

    def __iter__(self) -> Any:
        return iter(str(index) for index in range(len(self._parameters)))

    def __len__(self) -> int:
        return len(self._parameters)
