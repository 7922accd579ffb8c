"""Which checkpoints a run has, which of them are whole, and the room that old ones take: what
``fewstep checkpoints`` does.

A checkpoint is *whole* when a run can go on from it: its checksum is right, and it is a checkpoint
of the step that its name says. Without reading it through, only its header and its length are
looked at: a file that was cut short is found, a flipped byte is not.

Pruning is the one command that removes what training made. It works under the run's lock, so that
no trainer is writing; it reads every file through first, and removes nothing unless a whole
checkpoint stays. It removes whole checkpoints of this run, which say so themselves, and files that
writers which crashed had begun. What is damaged may be worth something to somebody, and stays, as
does what is something else than a checkpoint under a checkpoint's name; a checkpoint that the disk
does not give stops the command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep.errors import NotFinite, UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.keeping.run_identity import run_of
from fewstep.system.locks import locked
from fewstep.training.reporting.log import read_log
from fewstep.training.saving.checkpoint import check_run_of, is_folder, place_of
from fewstep.training.saving.checkpoint_files import check_values, is_of_run, look_at, remove_checkpoint
from fewstep.training.saving.run_checkpoints import Checkpoints
from fewstep.training.saving.shard_folder import is_folder_of_shards

State = Literal["whole", "damaged", "foreign", "unreadable", "not finite"]
# What only the holder of the run's lock writes; reports and measurements are written without it.
_HELD = {
    "": r"recipe\.yaml|origins\.json|metrics\.jsonl|((student|adapter)(\.best)?|model|pairs[\w-]*)\.safetensors",
    "path": r"manifest\.json|node-\d+\.safetensors",
    "checkpoints": r"step-\d{8}\.safetensors",
}
# The folders that ``training.saving.sharded`` makes, and nothing else.
_BEGUN = re.compile(r"\.step-\d{8}(\.old|\.removed)?\.aside")


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk, a file or shards in a folder, of ``bytes`` bytes: ``stage`` (from 0),
    ``stage_step`` steps into it, ``step`` in all; ``name`` of the stage where the log tells.

    ``state``: "whole"; "damaged"; "foreign", no checkpoint or not of that step; "unreadable", when
    the disk and not the content is in the way; "not finite", whole but for values that are no
    numbers, as is seen when it is read through. ``why`` no run goes on from it.
    """

    file: str
    bytes: int
    state: State
    stage: int | None = None
    stage_step: int | None = None
    step: int | None = None
    name: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Listing:
    """A run's checkpoints, newest first.

    ``resumes``: the file that a resumed run goes on from, None when it would begin anew;
    ``verified``: whether checksums were compared; ``leftovers``: what writers that crashed left
    behind; ``removed``: what pruning has removed. Files are paths relative to ``run``.
    """

    run: str
    checkpoints: list[CheckpointFile]
    resumes: str | None
    verified: bool
    leftovers: list[str]
    removed: list[str]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_checkpoints(run: Path | str, verify: bool = False) -> Listing:
    """The checkpoints of a run; with ``verify`` each is read through and its checksum compared.

    Raises ``UserError`` when the folder holds no run.
    """
    folder = RunFolder(Path(run))
    kept = Checkpoints(folder.checkpoints)
    if not folder.recipe.is_file() and not folder.log.is_file() and not kept.paths():
        raise UserError(
            f"{run}: is not a run folder (it has no recipe, no log and no checkpoints); give the folder "
            "that 'fewstep distill' or 'fewstep pretrain' wrote."
        )
    log = read_log(folder.log)
    run_now = _run_of(folder)
    found = [_looked_at(path, folder.path, verify, log, run_now) for path in kept.paths()]
    resumes = next((each.file for each in found if each.state == "whole"), None)
    return Listing(
        str(run), found, resumes, verify, [_relative(path, folder.path) for path in _leftovers(folder.path)], []
    )


def prune_checkpoints(run: Path | str, keep: int) -> Listing:
    """Removes all but the newest ``keep`` >= 1 whole checkpoints, and what crashed writers left
    behind; the listing of what stays, and what was ``removed``.

    Raises ``UserError``, having removed nothing, when another process works in the folder, no
    checkpoint is whole, or one cannot be read.
    """
    if keep < 1:
        raise UserError(f"--prune {keep}: at least 1 checkpoint must be kept, or the run could not go on.")
    folder = RunFolder(Path(run))
    list_checkpoints(run)
    with locked(folder.path):
        before = list_checkpoints(run, verify=True)
        for each in before.checkpoints:
            if each.state == "unreadable":
                raise UserError(
                    f"{Path(run) / each.file}: cannot be read, and nothing was removed; repair the disk or "
                    "the permissions, or move it away."
                )
        if before.checkpoints and before.resumes is None:
            raise UserError(
                f"{run}: none of its {len(before.checkpoints)} checkpoints is whole, and nothing was "
                "removed; restore one from a copy, or delete the folder to begin anew."
            )
        gone = [
            each
            for each in before.checkpoints
            if each.state == "whole" and is_of_run(folder.path / each.file, _run_of(folder))
        ][keep:]
        removed = [*(each.file for each in gone), *before.leftovers]
        for name in removed:
            remove_checkpoint(Path(run) / name)
    return Listing(
        before.run, [each for each in before.checkpoints if each not in gone], before.resumes, True, [], removed
    )


def _looked_at(path: Path, run: Path, verify: bool, log: list[dict[str, Any]], run_now: str) -> CheckpointFile:
    file, size = _relative(path, run), _size(path)
    if not path.is_file() and not is_folder(path):
        return CheckpointFile(file, size, "unreadable", why=f"{path}: is not a file; move it away.")
    try:
        metadata = look_at(path, verify)
    except UserError as error:
        return CheckpointFile(file, size, _state(error), why=str(error))
    try:
        stage, stage_step, step = place_of(path, metadata)
        check_run_of(path, metadata, run_now)
        if verify:
            check_values(path)
    except NotFinite as error:
        return CheckpointFile(file, size, "not finite", stage, stage_step, step, why=str(error))
    except UserError as error:
        return CheckpointFile(file, size, "foreign", why=str(error))
    return CheckpointFile(file, _size(path), "whole", stage, stage_step, step, _stage_name(log, step, stage_step))


def _run_of(folder: RunFolder) -> str:
    """By what its checkpoints are known; where the recipe does not say it, what the newest of them
    says.
    """
    try:
        return run_of(folder.read_recipe())
    except UserError:
        return next((run for run in map(_said_by, Checkpoints(folder.checkpoints).paths()) if run), "")


def _said_by(path: Path) -> str:
    try:
        return str(look_at(path, False).get("run", ""))
    except UserError:
        return ""


def _size(path: Path) -> int:
    return (
        sum(each.stat().st_size for each in path.iterdir() if each.is_file())
        if is_folder(path)
        else path.stat(follow_symlinks=path.is_file()).st_size
    )


def _state(error: UserError) -> State:
    """What is the matter with a file, from what stopped its reading: the disk, a header that is not
    ours, or else its content.
    """
    if isinstance(error.__cause__, OSError):
        return "unreadable"
    return (
        "foreign"
        if isinstance(error.__cause__, (KeyError, TypeError, ValueError, AttributeError, RecursionError))
        else "damaged"
    )


def _stage_name(log: list[dict[str, Any]], step: int, stage_step: int) -> str | None:
    """What the stage is called: any line that it has written by then says so."""
    steps = range(step - stage_step + 1, step + 1)
    return next((str(entry["stage"]) for entry in log if "stage" in entry and entry.get("step") in steps), None)


def _leftovers(run: Path) -> Iterator[Path]:
    for name, held in _HELD.items():
        # As ``files.replacing`` names them.
        begun = re.compile(rf"\.({held})\.\d+-\d+(-\d+)?\.aside")
        for path in sorted((run / name).glob(".*.aside")):
            file = begun.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()
            if file or (
                name == "checkpoints" and _BEGUN.fullmatch(path.name) is not None and is_folder_of_shards(path)
            ):
                yield path


def _relative(path: Path, run: Path) -> str:
    return path.relative_to(run).as_posix()
