"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint holds the weights of every trained network, the average, the optimizers of the current
stage, and as JSON the position (stage, step), counters and the state of every ``Resumable`` object.
No random state is needed: draws are a function of place (see ``random``). It is one checksummed
file, or a folder of shards (``sharded``); a run goes on from either, whatever wrote it and in
however many processes. The newest ``keep`` of the run stay. One that cannot be read, is another
run's, or holds values that are not finite (an older version could write it) is set aside for the
one before it, as is one from which a run ended at once in values that are not finite: it keeps its
content under another name. Only what reads as a checkpoint of this run is ever removed or written
over.
"""

from __future__ import annotations

import abc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fewstep.errors import NotFinite, UserError
from fewstep.system import distributed
from fewstep.system.files import check_finite, read_metadata, read_tensors, verify_tensors, write_tensors
from fewstep.system.ledger import set_aside

CHECKPOINTS = "checkpoints"
"""The folder of them, in a run's."""
Why = Literal["unreadable", "another-run", "not-finite"]
_NAME = re.compile(r"step-(\d{8})(\.safetensors)?")


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


class Checkpoints:
    """The checkpoints in ``folder``; those that say of another run than ``run`` are passed over,
    where both say anything.
    """

    def __init__(self, folder: Path, keep: int = 2, run: str = ""):
        self.folder = folder
        self.keep = keep
        self.run = run

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of global step ``step`` into one file and then removes those beyond
        the newest ``keep``.
        """
        path = self.folder / f"step-{step:08d}.safetensors"
        distributed.together(lambda: make_way(path, self.run))
        write_tensors(path, tensors, dict(state))
        self.prune()
        return path

    def prune(self) -> None:
        """Removes this run's beyond the newest ``keep``; what cannot be read, or is another's,
        stays.
        """

        def remove() -> None:
            for old in [path for path in self.paths() if is_of_run(path, self.run)][self.keep :]:
                remove_checkpoint(old)

        distributed.together(remove)

    def paths(self) -> list[Path]:
        """The files and folders, newest first.

        Raises ``UserError`` where their folder is there and cannot be listed.
        """
        if not os.path.lexists(self.folder):
            return []
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            what = f"cannot be listed ({error.strerror or error})"
            raise UserError(
                f"{self.folder}: {what}; mount it or mend its permissions, or choose another folder with --out."
            ) from error
        return sorted((self.folder / name for name in names if _NAME.fullmatch(name)), reverse=True)

    def check_none(self) -> None:
        """Raises ``UserError`` where there is any, whoever's it is and whether or not it can be
        read.
        """
        if distributed.together(lambda: bool(self.paths())):
            raise UserError(
                f"{self.folder.parent}: holds a run already; go on with it (resume), or choose another folder."
            )

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest that reads whole, None when there is no file or folder of a checkpoint's name.

        What is newer and no run can go on from is set aside once a whole one is found: it keeps its
        content under another name, and ``warn`` is told. Raises ``UserError`` where there are some
        and none can be gone on from.
        """
        problems: list[tuple[Path, Why, str]] = []
        for name in distributed.together(lambda: [path.name for path in self.paths()]):
            found, why, problem = self._tried(self.folder / name)
            if found is None:
                problems.append((self.folder / name, why, problem))
                continue
            for path, why, problem in problems:
                warn(f"passed over a checkpoint, which is kept as {self.set_aside(path, why).name}: {problem}")
            return found
        if problems:
            raise UserError(self._none_left(problems))
        return None

    def _tried(self, path: Path) -> tuple[Checkpoint | None, Why, str]:
        """A checkpoint that a run can go on from; else why not, in a word and in a sentence."""
        found, problem = _opened(path)
        # Whole for one process and not for another is not whole.
        problem = next((each for each in distributed.everyones(problem) if each), "")
        if found is None or problem:
            return None, "unreadable", problem
        try:
            check_run_of(path, found.state, self.run)
        except UserError as error:
            return None, "another-run", str(error)
        wrong = _wrong_values(path)
        return (None, "not-finite", wrong) if wrong else (found, "unreadable", "")

    def _none_left(self, problems: Sequence[tuple[Path, Why, str]]) -> str:
        """The sentence where no checkpoint is left to go on from."""
        kinds = {why for _, why, _ in problems}
        detail = problems[0][2].removesuffix(".")
        if "another-run" in kinds:
            return (
                f"{self.folder}: holds no checkpoint of this run, but some of another, whose recipe differs; "
                "restore the run's recipe.yaml, or choose another folder with --out."
            )
        if kinds == {"not-finite"}:
            lower = "start anew in another folder, with a lower learning rate"
            return f"{self.folder}: no checkpoint is left whose values are finite ({detail}); {lower}."
        return (
            f"{self.folder}: none of its {len(problems)} checkpoints can be gone on from ({detail}), and "
            "nothing was changed; "
            "restore one from a copy, or start anew in another folder with --out."
        )

    def set_aside(self, path: Path, why: Why = "not-finite") -> Path:
        """Gives a checkpoint a name under which no run goes on from it, and returns that; its
        content stays.
        """

        def rename() -> str:
            try:
                return set_aside(path, why).name
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be renamed ({error.strerror or error}); change the permissions of its folder."
                ) from error

        return self.folder / distributed.together(rename)

    def was_set_aside(self, step: int) -> bool:
        """Whether a checkpoint of this step was set aside before."""
        return distributed.together(
            lambda: any(
                path.name.startswith(f"step-{step:08d}.") for path in set_aside_in(self.folder, ("not-finite",))
            )
        )


def set_aside_in(folder: Path, why: Sequence[Why] = get_args(Why)) -> list[Path]:
    """The checkpoints in a folder that were set aside, for any of these reasons, oldest first."""
    return sorted(path for each in why for path in folder.glob(f"step-*.{each}*")) if folder.is_dir() else []


def make_way(path: Path, run: str) -> None:
    """Gives what is at the place of a checkpoint that is to be written another name, unless it is
    one of ``run``. This process alone.
    """
    if os.path.lexists(path) and not is_of_run(path, run):
        set_aside(path, "set-aside")


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


def is_checkpoint(path: Path) -> bool:
    """Whether a path reads as a checkpoint of whichever run, without its values."""
    try:
        place_of(path, look_at(path, verify=False))
    except UserError:
        return False
    return True


def _strays(folder: Path) -> list[str]:
    """What is in a folder of shards and is no part of it."""
    from fewstep.training.saving.sharded import is_part, read_manifest

    named = set(read_manifest(folder)["files"])
    return sorted(
        name for name in os.listdir(folder) if name not in named and (not is_part(name) or name.startswith("shard-"))
    )


def _wrong_values(path: Path) -> str:
    """The sentence for values that are not finite in a checkpoint, each process having looked at
    its share of the files; empty where all are finite.
    """
    problem = ""
    try:
        check_values(path, distributed.rank(), distributed.size())
    except NotFinite as error:
        problem = str(error)
    return next((each for each in distributed.everyones(problem) if each), "")


def check_values(path: Path, first: int = 0, every: int = 1) -> None:
    """Raises ``NotFinite`` for a checkpoint with a value that is not finite, looking at every
    ``every``-th of its files from ``first`` on.
    """
    for file in (sorted(path.glob("*.safetensors")) if is_folder(path) else [path])[first::every]:
        check_finite(file)


def _opened(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return open_checkpoint(path), ""
    except UserError as error:
        return None, str(error)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file or a folder, its checksums compared; raises ``UserError`` when it is
    not whole.
    """
    from fewstep.training.saving.sharded import FolderCheckpoint

    return FolderCheckpoint(path) if is_folder(path) else FileCheckpoint(path)


def check_run_of(path: Path, state: Mapping[str, Any], run: str) -> None:
    """Raises ``UserError`` for the checkpoint of another run, where both say which."""
    if run and state.get("run") and state["run"] != run:
        raise UserError(f"{path}: is a checkpoint of another run, whose recipe differs from this one's; move it away.")


def look_at(path: Path, verify: bool) -> dict[str, Any]:
    """The state in a checkpoint; its checksums are compared if asked, else it is only seen to be
    complete. Raises ``UserError`` when it is not whole, or no checkpoint.
    """
    from fewstep.training.saving.sharded import check_shard, read_manifest

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
    """Removes a checkpoint that the caller knows to be the run's; a folder is renamed first, so
    that what is half removed is no checkpoint.

    Raises ``UserError``, having removed nothing, where a folder holds what is no part of a
    checkpoint, or it cannot be removed.
    """
    from fewstep.training.saving.sharded import is_part

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


def place_of(path: Path, state: Mapping[str, Any]) -> tuple[int, int, int]:
    """(stage, steps in it, steps in all) of a checkpoint's file; raises ``UserError`` when
    ``state`` is not a checkpoint's, or that of another step than the file's name says.
    """
    try:
        progress = state["progress"]
        place = tuple(int(progress[key]) for key in ("stage", "stage_step", "step"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a checkpoint but another file of fewstep's; move it away.") from error
    match = _NAME.fullmatch(path.name)
    if match and int(match.group(1)) != place[2]:
        raise UserError(
            f"{path}: is the checkpoint of step {place[2]}, as its name should say; rename it, or move it away."
        )
    return place[0], place[1], place[2]


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as flat named tensors."""
    return {
        f"{prefix}/{index}/{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, checkpoint: Checkpoint) -> None:
    """The inverse of ``optimizer_tensors``; what is shaped like its parameter is laid out like
    it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.read(f"{prefix}/", _MomentsLike(parameters)).items():
        index, key = name.split("/")
        parameter = parameters[int(index)]
        state.setdefault(int(index), {})[key] = (
            distributed.like(value, parameter) if value.shape == parameter.shape else value
        )
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
