"""A run's checkpoints: the newest ``keep`` stay, and the run goes on from the newest that it can.

One that cannot be read, is another run's, or holds values that are not finite (an older version
could write it) is set aside for the one before it, as is one from which a run ended at once in
values that are not finite: it keeps its content under another name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from fewstep.errors import NotFinite, UserError
from fewstep.system import distributed
from fewstep.system.files import write_tensors
from fewstep.system.ledger import set_aside
from fewstep.training.saving.checkpoint import NAME, Checkpoint, check_run_of
from fewstep.training.saving.checkpoint_files import (
    check_values,
    is_of_run,
    make_way,
    open_checkpoint,
    remove_checkpoint,
)

Why = Literal["unreadable", "another-run", "not-finite"]


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
        return sorted((self.folder / name for name in names if NAME.fullmatch(name)), reverse=True)

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


def _opened(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return open_checkpoint(path), ""
    except UserError as error:
        return None, str(error)


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
