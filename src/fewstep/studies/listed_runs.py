"""Which runs are below a folder, and how far each is: what ``fewstep runs`` shows.

A run's folder is known by its ``recipe.yaml``. Nothing is written, and no weights are read. What
cannot be read is listed with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.recipes import DistillRecipe, Recipe
from fewstep.recipes.config.section import kind_of_section
from fewstep.system.locks import in_use
from fewstep.training.reporting.log import read_log

DEEPEST = 4
"""Folders below the one that was asked for in which runs are looked for."""


@dataclass(frozen=True)
class ListedRun:
    """A run: ``folder``; ``method`` and ``steps`` of its recipe; ``at``, the last step of its log;
    ``evaluations``, network evaluations of one sample until then; ``distance``, the last Frechet
    distance that it measured; ``changed``, seconds since 1970 of its last line; ``problem``: why it
    cannot be read. What is not known is None.

    ``state``: a process works in it; it is finished; it has begun; or it cannot be read.
    """

    folder: str
    state: Literal["works", "finished", "begun", "unreadable"]
    method: str | None = None
    steps: int | None = None
    at: int | None = None
    evaluations: int | None = None
    distance: float | None = None
    changed: float | None = None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_runs(folder: Path | str) -> list[ListedRun]:
    """The runs in and below ``folder``, by name.

    Raises ``UserError`` for a folder that is not there.
    """
    top = Path(folder)
    if not top.is_dir():
        raise UserError(f"{top.absolute()}: there is no such folder; runs are made by 'fewstep distill'.")
    return sorted(_below(top, DEEPEST), key=lambda run: run.folder)


def _below(folder: Path, depth: int) -> Iterator[ListedRun]:
    try:
        if RunFolder(folder).recipe.is_file():
            # What a run keeps inside is its own.
            yield _listed(folder)
            return
        inner = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except (OSError, UserError) as error:
        yield ListedRun(str(folder), "unreadable", problem=str(error))
        return
    for each in inner if depth else ():
        yield from _below(each, depth - 1)


def _listed(folder: Path) -> ListedRun:
    run = RunFolder(folder)
    recipe, log = run.read_recipe(), read_log(run.log)
    trained = [line for line in log if "stage" in line]
    measured = [line["fd"] for line in log if line.get("probe") == "evaluation" and isinstance(line.get("fd"), float)]
    last = trained[-1] if trained else {}
    return ListedRun(
        str(folder),
        "works" if in_use(folder) else "finished" if _result(run, recipe).is_file() else "begun",
        kind_of_section(type(recipe.method)),
        recipe.training.steps,
        last.get("step"),
        last.get("evaluations"),
        measured[-1] if measured else None,
        run.log.stat().st_mtime if run.log.is_file() else None,
    )


def _result(run: RunFolder, recipe: Recipe) -> Path:
    return run.student if isinstance(recipe, DistillRecipe) else run.model
