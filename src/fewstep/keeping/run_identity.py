"""What a run is, apart from how far and on what it is computed: by it a resumed run knows its
recipe and its checkpoints.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic_core import to_json

from fewstep.recipes import Recipe, config
from fewstep.recipes.reading.places import Named, anchored, named_in, with_names
from fewstep.system.locations import same_place

OUTSIDE = frozenset({"teacher", "data", "evaluation"})
"""The sections by which a run is not known: the files that they name may be moved."""
_WHERE = ("device", "accumulate", "offload", "placement")


def run_of(recipe: Recipe) -> str:
    """A short hash of the recipe less what a resumed run may change (steps, devices, portions, what
    waits, processes), and less the sections that name files, which may have been moved.
    """
    plain = with_steps_and_layout(spread_alike(recipe), 1, None).model_dump(mode="json", exclude=set(OUTSIDE))
    return hashlib.sha256(to_json(_as_first_spelled(plain))).hexdigest()[:16]


_FIRST_SPELLED = {
    "adam": ("kind", "lr", "betas", "weight_decay", "warmup", "decay", "decay_along", "clip"),
    "sgd": ("kind", "lr", "betas", "weight_decay", "warmup", "decay", "decay_along", "clip"),
    **dict.fromkeys(
        ("song-unet", "dhariwal-unet"),
        (
            *("img_resolution", "in_channels", "out_channels", "model_channels", "channel_mult", "channel_mult_emb"),
            *("num_blocks", "attn_resolutions", "kind"),
            *(
                "embedding_type",
                "encoder_type",
                "decoder_type",
                "channel_mult_noise",
                "resample_filter",
                "adaptive_scale",
            ),
        ),
    ),
}
"""The order of the keys by which runs have been known from the first, of sections whose own order
is another now.
"""


def _as_first_spelled(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_as_first_spelled(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    values = {key: _as_first_spelled(value) for key, value in plain.items()}
    if values.get("kind") == "sgd":
        # It was spelled with Adam's, which it does not have.
        values["betas"] = [0.0, 0.999]
    first = _FIRST_SPELLED.get(str(values.get("kind")), ())
    return {**{key: values[key] for key in first if key in values}, **values}


def spread_like(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe with what of ``other`` changes where it is computed and not what."""
    training = recipe.training.model_copy(update={key: getattr(other.training, key) for key in _WHERE})
    return recipe.model_copy(update={"training": training, "distributed": other.distributed})


def spread_alike(recipe: Recipe) -> Recipe:
    """The recipe as one for any number of processes, on any device."""
    training = recipe.training.model_copy(update={key: config.Training.model_fields[key].default for key in _WHERE})
    return recipe.model_copy(update={"training": training, "distributed": config.Distributed()})


def with_steps_and_layout(recipe: Recipe, steps: int, laid_out_for: int | None) -> Recipe:
    """The recipe with another number of steps; ``laid_out_for``: what the shares of its stages were
    made for, where that differs.
    """
    return recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"steps": steps, "laid_out_for": laid_out_for})}
    )


def placed_alike(recipe: Recipe, saved: Recipe) -> Recipe:
    """The recipe with the saved one's paths where both lead to one file: a link and what it leads
    to are one.
    """
    known = {each.key: each.value for each in named_in(saved)}

    def value_of(named: Named) -> str | None:
        other = known.get(named.key)
        is_path = named.mark.what in ("weights", "data") and named.value is not None and other is not None
        return other if is_path and same_place(str(named.value), str(other)) else named.value

    return with_names(recipe, value_of)


def kept_as_known(recipe: Recipe, saved: Recipe) -> Recipe:
    """The resumed recipe as its folder has it: paths are absolute, but for what the run's
    checkpoints are known by.

    Runs of earlier versions have relative paths there, which must stay.
    """
    known = {each.key: each.value for each in named_in(saved)}

    def value_of(named: Named) -> str | None:
        return named.value if named.key.partition(".")[0] in OUTSIDE else known.get(named.key, named.value)

    return with_names(anchored(recipe, OUTSIDE), value_of)


def paths_of(key: str, saved: Recipe, now: Recipe) -> str:
    """Both values of a key that names something, for a sentence; nothing of another key."""
    there, here = ({each.key: each.value for each in named_in(recipe)}.get(key) for recipe in (saved, now))
    return "" if there is None or here is None else f": {there} in the run, {here} now"
