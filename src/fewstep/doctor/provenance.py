"""Is what a run is made from still there as it was? Its record of checksums beside the files that
its recipe names.

Nothing is fetched and nothing converted: an address that was not fetched, an id of the hub and a
set of another library are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.errors import UserError
from fewstep.keeping.origins import read_record
from fewstep.keeping.run_folder import RunFolder
from fewstep.recipes import Recipe
from fewstep.recipes.building.checksums import digest_of_named, origins_of
from fewstep.recipes.reading.places import Named, named_in
from fewstep.system.locations import is_address, is_hub_id
from fewstep.training.saving.origin_checks import DATA, Origins, difference
from fewstep.zoo.download import cached_file


def check_record(folder: RunFolder, recipe: Recipe | None) -> Iterator[Finding]:
    """The findings of ``origins.json``, and of weights and data that were exchanged or are not
    there.
    """
    path = folder.origins
    try:
        record = read_record(folder)
    except UserError as error:
        yield refused(path, error)
        return
    if record is None:
        sentence = "is not there: the run was made before checksums were kept, and an exchanged file is not found."
        yield note(path, sentence, "Nothing: a resumed run writes it.")
        return
    yield ok(path, f"has checksums of {', '.join(record.digests)}.")
    if recipe is None:
        return
    now: dict[str, str] = {}
    for named in (each for each in named_in(recipe) if each.key in record.digests and _is_at_hand(each)):
        try:
            now[named.key] = digest_of_named(named) or ""
        except UserError as error:
            yield _missing(folder, named.key, error)
    if recipe.data is not None and recipe.data.is_local:
        try:
            now |= origins_of(recipe, (DATA,))
        except UserError as error:
            yield _missing(folder, DATA, error)
    yield from _exchanged(folder, record.digests, now)


def _missing(folder: RunFolder, key: str, error: UserError) -> Finding:
    """A file that is not there any more: a finished student does without it."""
    remedy = f"A finished student does without it; to resume or to evaluate, put back what '{key}' names."
    return note(folder.origins, f"'{key}': {str(error).removesuffix('.')}.", remedy)


def _is_at_hand(named: Named) -> bool:
    if named.mark.what == "shipped":
        return True
    if named.value is None or (named.mark.hub is not None and is_hub_id(named.value, named.mark.hub)):
        return False
    return not is_address(named.value) or cached_file(named.value).is_file()


def _exchanged(folder: RunFolder, before: Origins, now: Origins) -> Iterator[Finding]:
    for key in (key for key in now if before.get(key) not in (None, now[key])):
        what = f"what '{key}' names was exchanged since ({difference(key, before, now)})"
        if key == DATA:
            yield note(
                folder.origins,
                f"{what}.",
                "Put it back as it was; else a resumed run goes on with the data as it is now.",
            )
        else:
            yield problem(folder.origins, f"{what}, and the run cannot go on with it.", "Put it back as it was.")
