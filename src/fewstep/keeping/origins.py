"""What a run is made from, by content, as its folder keeps it in ``origins.json``; checkpoints keep
it besides.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from fewstep.data import Dataset
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.keeping.run_identity import OUTSIDE
from fewstep.recipes import Recipe
from fewstep.recipes.building.checksums import digest_of_named, origins_of
from fewstep.recipes.reading.places import Named, named_in, with_names
from fewstep.system import distributed
from fewstep.system.files import write_text
from fewstep.system.locations import same_place
from fewstep.training.saving.origin_checks import DATA, Origins, difference, exchanged
from fewstep.training.saving.run_checkpoints import Checkpoints

MEASURED = OUTSIDE
"""The sections by which measurements are decided."""

_DIGEST = re.compile("[0-9a-f]{64}")
_REMEDY = "restore it from a copy, or delete it: the run then goes on, and what was exchanged before is not found"


@dataclass(frozen=True)
class OriginsRecord:
    """``digests`` by the recipe's keys; ``changed``: keys whose content changed while the run went
    on.

    ``unknown``: keys of which there was no checksum when the run began.
    """

    digests: Origins = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def read_record(folder: RunFolder) -> OriginsRecord | None:
    """The record of a run; None for a run that was made before there were any.

    Raises ``UserError`` for a damaged file.
    """
    path = folder.origins
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        digests = {str(key): str(value) for key, value in values["digests"].items()}
        if any(_DIGEST.fullmatch(digest) is None for digest in digests.values()):
            raise ValueError("a digest is no SHA-256")
        changed, unknown = (tuple(str(key) for key in values[name]) for name in ("changed", "unknown"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path.absolute()}: cannot be read as checksums ({error}); {_REMEDY}.") from error
    return OriginsRecord(digests, changed, unknown)


def settle_origins(
    folder: RunFolder,
    recipe: Recipe,
    data: Dataset | None,
    resume: bool,
    sections: Collection[str] | None = None,
) -> Origins:
    """The origins of a run that begins or goes on, having written them into its folder.

    Raises ``UserError`` where the run has other weights than it began with.
    """

    def settle() -> dict[str, str]:
        now = origins_of(recipe, sections, data)
        began = resume and bool(Checkpoints(folder.checkpoints).paths())
        record = _gone_on(folder, read_record(folder) or OriginsRecord(), now) if began else OriginsRecord(now)
        write_text(folder.origins, json.dumps(asdict(record), indent=2) + "\n")
        return now

    return distributed.together(settle)


def _gone_on(folder: RunFolder, before: OriginsRecord, now: Origins) -> OriginsRecord:
    changed = exchanged(before.digests, now)
    for key in (key for key in changed if key != DATA):
        what = f"the run in {folder.path} was made with another '{key}' ({difference(key, before.digests, now)})"
        raise UserError(f"--resume: {what}; put it back as it was, or start a new run with --out.")
    unknown = sorted({*before.unknown, *(now.keys() - before.digests.keys())})
    return OriginsRecord(now, tuple(sorted({*before.changed, *changed})), tuple(unknown))


def moved(folder: RunFolder, saved: Recipe, now: Recipe) -> Recipe:
    """The saved recipe with the paths of ``now`` where these lead to the same content as when the
    run was made.

    Not so the paths by which the run's checkpoints know it.
    """
    record = read_record(folder)
    known = {} if record is None else record.digests
    given = {each.key: each for each in named_in(now)}

    def value_of(named: Named) -> str | None:
        other = given.get(named.key)
        if named.value is None or other is None or other.value is None:
            return named.value
        if named.key.partition(".")[0] not in OUTSIDE or same_place(named.value, other.value):
            return named.value
        with contextlib.suppress(UserError):
            if named.mark.what == "data":
                same = DATA in known and origins_of(now, (DATA,)) == {DATA: known[DATA]}
                return other.value if same else named.value
            if digest_of_named(other) == known.get(named.key, ""):
                return other.value
        return named.value

    return with_names(saved, value_of)


def measured_origins(
    folder: RunFolder, recipe: Recipe, data: Dataset | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """The origins of what is measured now, as a result's file has them.

    ``say`` is told what is not as it was when the run was trained. A student's start plays no part
    any more.
    """
    now = distributed.together(lambda: origins_of(recipe, MEASURED, data))
    record = read_record(folder) or OriginsRecord()
    changed = exchanged(record.digests, now)
    for key in changed:
        what = f"what '{key}' names was exchanged since the run was trained ({difference(key, record.digests, now)})"
        say(f"{what}: it is measured as it is now.")
    unknown = sorted(now.keys() - record.digests.keys())
    if unknown:
        what = f"has no checksum of {', '.join(unknown)} from its training"
        say(f"{folder.path}: {what}, so that an exchange since cannot be found.")
    return {"digests": now, "exchanged": changed}
