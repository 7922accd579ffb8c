"""Whether the figures of runs may stand beside one another: taken in the same features, and against
the same data or the same teacher's samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fewstep.errors import UserError
from fewstep.keeping.origins import OriginsRecord, read_record
from fewstep.keeping.run_folder import RunFolder
from fewstep.recipes import Recipe
from fewstep.recipes.reading.places import named_in, with_names
from fewstep.training.saving.origin_checks import DATA, difference, exchanged

_FEATURES, _REFERENCE = "evaluation.features", "evaluation.reference"


def check_comparable(folders: Sequence[RunFolder]) -> Iterator[str]:
    """Sentences on what cannot be checked.

    Raises ``UserError`` where two runs were measured in other features or on other data.
    """
    first, *rest = [(folder, folder.read_recipe(), read_record(folder)) for folder in folders]
    for folder, recipe, record in (first, *rest):
        yield from _unknown(folder, recipe, record)
    for other in rest:
        _check_pair(first, other)


def _unknown(folder: RunFolder, recipe: Recipe, record: OriginsRecord | None) -> Iterator[str]:
    """What a run's record leaves open.

    Raises ``UserError`` where it says that the run's own figures are of two data sets.
    """
    if record is not None and DATA in record.changed:
        what = "its data changed while it was trained, so that its distances are of different data sets"
        raise UserError(f"{folder.path}: {what}; train it anew on either.")
    known = set() if record is None else record.digests.keys() - set(record.unknown)
    named = [each.key for each in named_in(recipe) if each.key.startswith(_FEATURES)]
    measured_on = [] if recipe.data is None else [DATA]
    lacking = [key for key in (*named, *measured_on) if key not in known]
    if lacking:
        what = f"has no checksum of {', '.join(lacking)}"
        yield f"{folder.path}: {what}, so that it is not sure to have been measured as the other runs were."


def _check_pair(
    one: tuple[RunFolder, Recipe, OriginsRecord | None], other: tuple[RunFolder, Recipe, OriginsRecord | None]
) -> None:
    (here, recipe, record), (there, recipe_there, record_there) = one, other
    where = f"{here.path} and {there.path} cannot be compared"
    if _settings(recipe) != _settings(recipe_there):
        raise UserError(f"{where}: '{_FEATURES}' differs in their recipes; train or measure both with the same.")
    if _reference(recipe) != _reference(recipe_there):
        raise UserError(f"{where}: '{_REFERENCE}' differs in their recipes; train or measure both with the same.")
    kind, kind_there = (None if each.data is None else each.data.kind for each in (recipe, recipe_there))
    if kind != kind_there and (record is None or record_there is None):
        what = f"'data.kind' is {kind} in the one and {kind_there} in the other"
        raise UserError(f"{where}: {what}; train both on the same data.")
    if record is None or record_there is None:
        return
    for key in exchanged(record.digests, record_there.digests):
        if key == DATA or key.startswith(_FEATURES) or (_reference(recipe) and key.startswith("teacher.")):
            digests = difference(key, record.digests, record_there.digests, ("in the first", "in the second"))
            raise UserError(f"{where}: their '{key}' is not the same ({digests}); train or measure both with the same.")


def _reference(recipe: Recipe) -> dict[str, Any]:
    """What decides the samples of a teacher that distances are to, besides the teacher; nothing
    where they are to the data.
    """
    choice = recipe.evaluation
    if choice.reference is None:
        return {}
    solver = choice.solver.model_dump()
    return {
        "samples": choice.reference.samples,
        "steps": choice.reference_steps,
        "guidance": choice.reference_guidance,
        "solver": solver,
    }


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What decides the features besides the files that are named."""
    features = recipe.evaluation.features
    return with_names(features, lambda named: named.value if named.mark.what == "shipped" else None).model_dump()
