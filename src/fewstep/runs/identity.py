"""What a run is, apart from how far and on what it is computed: by it a resumed run knows its recipe and its checkpoints."""

from __future__ import annotations

import hashlib

from fewstep.recipes import Recipe, config


def run_of(recipe: Recipe) -> str:
    """A short hash of the recipe less what a resumed run may change (steps, device, portions, processes), and less the sections that name files, which may have been moved."""
    plain = with_steps(spread_alike(recipe), 1, None).model_dump_json(exclude={"teacher", "data", "evaluation"})
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
