"""Which recipe a run has, and whether its folder may be used for it: settled before anything is
written.

Nothing that a run did not write itself is ever removed or replaced. So a folder that holds anything
else than this recipe's own run is refused; what is in a run's folder and was not written by the run
keeps its content under another name (``ledger``). A folder is a run's where the ledger names its
recipe, or, for a run of an earlier version, where its log or a checkpoint has the form that ours
have. The recipe is written when everything has been built: a run that is refused leaves an empty
folder.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.keeping.origins import moved
from fewstep.keeping.run_folder import RunFolder
from fewstep.keeping.run_identity import (
    kept_as_known,
    paths_of,
    placed_alike,
    spread_alike,
    spread_like,
    with_steps_and_layout,
)
from fewstep.recipes import PretrainRecipe, Recipe, dump, load_recipe
from fewstep.recipes.config.section import first_difference
from fewstep.recipes.reading.places import anchored
from fewstep.recipes.reading.source import validate
from fewstep.system import distributed
from fewstep.system.files import write_text
from fewstep.system.ledger import NAME, is_ledger, keeping, noted_in
from fewstep.system.locks import locked
from fewstep.training.reporting.log import is_own_line, read_log
from fewstep.training.saving.checkpoint_files import is_checkpoint
from fewstep.training.saving.run_checkpoints import Checkpoints

# What a run that was stopped before it wrote anything leaves: its lock, and a file that it was
# about to write.
_LEFT = re.compile(r"lock|written\.jsonl|\..+\.\d+-\d+-\d+\.aside")


@contextlib.contextmanager
def held_for_run(folder: RunFolder, say: Callable[[str], None]) -> Iterator[None]:
    """The folder for this run alone, with its ledger; raises ``UserError``, having written nothing,
    where it is no run's.
    """
    distributed.together(lambda: _check_free(folder))
    with locked(folder.path), keeping(folder.path, say):
        yield


def _check_free(folder: RunFolder) -> None:
    path = folder.path
    if not path.exists():
        return
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be used as a folder ({error.strerror or error}); choose another with --out."
        ) from error
    known = is_ledger(path / NAME)
    ours = noted_in(path) if known else set()
    others = [name for name in names if name not in ours and not (_LEFT.fullmatch(name) and (known or name != NAME))]
    if folder.recipe.is_file() and (folder.recipe.name in ours or _is_older_run(folder)):
        return
    if others:
        shown = ", ".join(f"'{name}'" for name in others[:3]) + (
            f" and {len(others) - 3} more" if len(others) > 3 else ""
        )
        raise UserError(
            f"{path}: holds {shown}, and no run of fewstep's; nothing was written, choose another folder with --out."
        )


def _is_older_run(folder: RunFolder) -> bool:
    """Whether a run of a version without ledgers was here: its log or a checkpoint says so."""
    return any(is_own_line(entry) for entry in read_log(folder.log)) or any(
        is_checkpoint(path) for path in Checkpoints(folder.checkpoints).paths()
    )


def settle(folder: RunFolder, source: str | Path, overrides: Sequence[str], resume: bool, kind: type[Any]) -> Any:
    """The recipe of this run; raises ``UserError`` where the folder holds a run already, or another
    one than is to go on.
    """

    def settled() -> dict[str, Any]:
        return _settled(folder, source, overrides, resume, kind).model_dump(mode="json")

    return validate(distributed.together(settled), str(folder.recipe))


def write_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Writes the recipe into the run's folder, if another stands there: the same in other words
    stays as it is.
    """

    def write() -> None:
        if not folder.recipe.is_file() or folder.read_recipe() != recipe:
            write_text(folder.recipe, dump(recipe))

    distributed.together(write)


def _settled(folder: RunFolder, source: str | Path, overrides: Sequence[str], resume: bool, kind: type[Any]) -> Recipe:
    recipe = load_recipe(source, overrides)
    if not isinstance(recipe, kind):
        command = "pretrain" if isinstance(recipe, PretrainRecipe) else "distill"
        raise UserError(f"{source}: is a recipe for 'fewstep {command}', not for this command.")
    if not folder.recipe.is_file() or not _took_a_step(folder):
        return recipe
    if not resume:
        raise UserError(
            f"{folder.path}: holds a run already; go on with --resume, or choose another folder with --out."
        )
    made = [path for path in (folder.student, folder.model) if path.is_file()]
    if made and not Checkpoints(folder.checkpoints).paths():
        what = f"is finished, and {folder.checkpoints} holds no checkpoint to go on from"
        raise UserError(f"{made[0]}: {what}; put its checkpoints back, or start anew in another folder with --out.")
    return _resumed(folder, recipe, source, overrides)


def _took_a_step(folder: RunFolder) -> bool:
    """Whether there is anything of a run to go on from: not so where it was refused, or failed,
    before its first step.
    """
    if Checkpoints(folder.checkpoints).paths():
        return True
    return (
        folder.student.is_file()
        or folder.model.is_file()
        or any(entry.get("step") not in (None, 0) for entry in read_log(folder.log))
    )


def _resumed(folder: RunFolder, now: Recipe, source: str | Path, overrides: Sequence[str]) -> Recipe:
    """The saved recipe, with as many steps, and spread over processes and devices, as asked for
    now; the shares of its stages stay as they were laid out, only the end moves.
    """
    as_saved = folder.read_recipe()
    saved = moved(folder, anchored(as_saved), now)
    now = placed_alike(now, saved)
    continued = _continued(folder, spread_alike(saved), spread_alike(now), source, overrides)
    return kept_as_known(spread_like(continued, now), as_saved)


def _continued(
    folder: RunFolder, saved: Recipe, recipe: Recipe, source: str | Path, overrides: Sequence[str]
) -> Recipe:
    if recipe == saved:
        return saved
    asked = any(override.startswith("training.steps=") for override in overrides)
    steps = recipe.training.steps if asked else max(recipe.training.steps, saved.training.steps)
    if steps < saved.training.steps:
        raise UserError(
            f"--resume: 'training.steps' is {steps}, but the run in {folder.path} is for "
            f"{saved.training.steps}; it can only be raised."
        )
    planned = saved.training.laid_out_for or saved.training.steps
    as_planned = with_steps_and_layout(saved, planned, None)
    same = placed_alike(spread_alike(load_recipe(source, [*overrides, f"training.steps={planned}"])), saved)
    if as_planned not in (same, recipe):
        key = first_difference(same.model_dump(), as_planned.model_dump()) or ""
        raise UserError(
            f"--resume: the run in {folder.path} has another recipe ('{key}' "
            f"differs{paths_of(key, as_planned, same)}); only 'training.steps' may be raised."
        )
    return with_steps_and_layout(saved, steps, planned if steps > planned else None)
