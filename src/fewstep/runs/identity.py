"""What a run is, apart from how far and on what it is computed: by it a resumed run knows its recipe and its checkpoints."""

from __future__ import annotations

import hashlib

from fewstep.locations import same_place
from fewstep.recipes import Recipe, config
from fewstep.recipes.places import Named, anchored, named_in, renamed

OUTSIDE = frozenset({"teacher", "data", "evaluation"})
"""The sections by which a run is not known: the files that they name may be moved."""


def run_of(recipe: Recipe) -> str:
    """A short hash of the recipe less what a resumed run may change (steps, device, portions, processes), and less the sections that name files, which may have been moved."""
    plain = with_steps(spread_alike(recipe), 1, None).model_dump_json(exclude=set(OUTSIDE))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def spread_like(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe with what of ``other`` changes where it is computed and not what."""
    training = recipe.training.model_copy(update={"device": other.training.device, "accumulate": other.training.accumulate})
    return recipe.model_copy(update={"training": training, "distributed": other.distributed})


def spread_alike(recipe: Recipe) -> Recipe:
    """The recipe as one for any number of processes, on any device."""
    training = recipe.training.model_copy(update={key: config.Training.model_fields[key].default for key in ("device", "accumulate")})
    return recipe.model_copy(update={"training": training, "distributed": config.Distributed()})


def with_steps(recipe: Recipe, steps: int, laid_out_for: int | None) -> Recipe:
    """The recipe with another number of steps; ``laid_out_for``: what the shares of its stages were made for, where that differs."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": steps, "laid_out_for": laid_out_for})})


def placed_alike(recipe: Recipe, saved: Recipe) -> Recipe:
    """The recipe with the saved one's paths where both lead to one file: a link and what it leads to are one."""
    known = {each.key: each.value for each in named_in(saved)}

    def value_of(named: Named) -> str | None:
        other = known.get(named.key)
        is_path = named.mark.what in ("weights", "data") and named.value is not None and other is not None
        return other if is_path and same_place(str(named.value), str(other)) else named.value

    return renamed(recipe, value_of)


def kept_as_known(recipe: Recipe, saved: Recipe) -> Recipe:
    """The resumed recipe as its folder has it: paths are absolute, but for what the run's checkpoints are known by.

    Runs of earlier versions have relative paths there, which must stay.
    """
    known = {each.key: each.value for each in named_in(saved)}

    def value_of(named: Named) -> str | None:
        return named.value if named.key.partition(".")[0] in OUTSIDE else known.get(named.key, named.value)

    return renamed(anchored(recipe, OUTSIDE), value_of)


def paths_of(key: str, saved: Recipe, now: Recipe) -> str:
    """Both values of a key that names something, for a sentence; nothing of another key."""
    there, here = ({each.key: each.value for each in named_in(recipe)}.get(key) for recipe in (saved, now))
    return "" if there is None or here is None else f": {there} in the run, {here} now"
