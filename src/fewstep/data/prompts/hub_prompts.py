"""Prompts in a data set of the Hugging Face hub, or in a folder that its library reads."""

from __future__ import annotations

from pathlib import Path

from fewstep.data.conversion.hub import commit_of, is_commit
from fewstep.data.prompts.columns import Columns
from fewstep.data.prompts.read import Prompts, collected
from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.locations import folder_or_id


def read_hub_prompts(
    name: str, split: str = "train", column: str | None = None, revision: str | None = None
) -> Prompts:
    """The prompts of a data set's ``split`` in its order, from the ``column``, None for the first
    of ``prompt``, ``caption`` and ``text`` that is there; needs the extra ``data``.

    ``revision``: of the hub's set, None for its newest; a commit pins it.

    Raises ``UserError`` for a set that cannot be loaded, a column that is not there, and what
    ``read_prompts`` refuses of its rows.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "'prompts.kind: huggingface' needs the datasets library: pip install 'fewstep[data]'."
        ) from error
    place = folder_or_id(name, "data sets")
    source, remarks = f"data set '{name}', split '{split}'", list[str]()
    # An absolute folder is its own place.
    commit = None if Path(place).is_dir() else distributed.together(lambda: commit_of(name, revision))
    try:
        rows = datasets.load_dataset(place, split=split, revision=commit or revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: cannot be loaded ({error}); check 'prompts.name', 'prompts.split' and 'prompts.revision'."
        ) from error
    (chosen,) = Columns(column, remarks.append).among(rows.column_names, source)
    if commit is not None and not is_commit(revision):
        which = "its newest commit" if revision is None else f"revision {revision}"
        remarks.append(f"{source}: {which} is {commit}; set 'prompts.revision' to it, so that it stays the same.")
    return collected(enumerate(rows[chosen], 1), source, "row", remarks)
