"""What a run is made from, by content: a checksum of the weights and the data that its recipe
names.

A file that was exchanged under its old name has another checksum, and a file that was moved has the
same. Fields are found by their marks (``config.Names``), so that a section with a new file is in it
without more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from fewstep.data import Dataset
from fewstep.recipes.config.teachers import TeacherSection
from fewstep.recipes.reading.places import Named, named_in
from fewstep.recipes.recipe import DistillRecipe, Recipe
from fewstep.system.caches import content_digest
from fewstep.system.locations import absolute, is_address
from fewstep.training.saving.origin_checks import DATA
from fewstep.zoo.download import local_file
from fewstep.zoo.shipped import shipped_weights

PROMPTS = "prompts"
"""The key of the prompts among a run's origins."""


def origins_of(recipe: Recipe, sections: Collection[str] | None = None, data: Dataset | None = None) -> dict[str, str]:
    """The origins of a recipe, of its ``sections`` alone where they are given.

    ``data``: the data set, where it is built already. Raises ``UserError`` for what cannot be read.
    """
    chosen = set(type(recipe).model_fields if sections is None else sections)
    named = [each for each in named_in(recipe) if each.key.partition(".")[0] in chosen]
    found = {each.key: digest for each in named if (digest := digest_of_named(each)) is not None}
    if DATA in chosen and recipe.data is not None:
        found[DATA] = (recipe.data.open() if data is None else data).identity
    if PROMPTS in chosen and isinstance(recipe, DistillRecipe) and recipe.prompts is not None:
        digest = recipe.prompts.digest()
        found |= {} if digest is None else {PROMPTS: digest}
    return dict(sorted(found.items()))


def digest_of_named(named: Named) -> str | None:
    """The checksum of what a field names; None where it names nothing, and for data, which is more
    than its files.
    """
    if isinstance(named.owner, TeacherSection) and named.value is not None and (files := named.owner.files()):
        return _of_files(files)
    if named.mark.what == "shipped" and named.value is not None:
        with shipped_weights(named.mark.file or named.value) as path:
            return content_digest(path)
    if named.mark.what != "weights":
        return None
    if named.mark.read is not None:
        return content_digest(named.mark.read(named.value))
    if named.value is None:
        return None
    # One address may have served several files; the recipe says which.
    sha256 = named.owner.model_dump().get("sha256")
    path = local_file(named.value, sha256) if is_address(named.value) else Path(absolute(named.value))
    return content_digest(path if named.mark.within is None else named.mark.within(path))


def _of_files(files: Mapping[str, Path]) -> str:
    listed = "".join(f"{name}\0{content_digest(path)}\n" for name, path in sorted(files.items()))
    return hashlib.sha256(listed.encode()).hexdigest()
