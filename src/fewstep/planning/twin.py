"""A recipe's twin: the same file, with tiny networks of random weights on made-up 16x16 images.

It runs through the same stages, phases, states and objectives as the recipe, in seconds on any
machine and without the recipe's files: a rehearsal counts on it what a step of each stage takes,
and a test sees that a recipe for many GPUs trains, resumes and samples. What it makes means
nothing. Recipes on digits, on scenes and in the plane are small as they are: they keep teacher and
data. A recipe with prompts gets the text-to-image model that ships, of whatever family its own is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from fewstep.recipes import config
from fewstep.recipes.building.frozen_teachers import pretrained_model
from fewstep.recipes.config.section import fields_of, is_section, saved
from fewstep.recipes.reading.places import Named, with_names
from fewstep.recipes.reading.source import scaled_to_steps, validate
from fewstep.recipes.recipe import DistillRecipe, PretrainRecipe, Recipe
from fewstep.timesteps import DiscreteGrid
from fewstep.values import Costly

SIDE = 16
CLASSES = 3
_TIMESTEPS = 1000
"""Of every published discrete schedule."""
AnyRecipe = TypeVar("AnyRecipe", DistillRecipe, PretrainRecipe)
_TEXT_TEACHER = {"kind": "shipped", "name": "scenes"}
"""Small as it is."""
_HIGHEST_LEVEL = 14.0
"""Of noise, within what it was trained for; students of flows begin far above."""
_PROMPTS = ["a red seven at the left", "a blue three", "a green zero in the middle", "an orange one at the top"]
_EDM = {"schedule": {"kind": "karras-ve"}, "prediction": {"kind": "edm"}}


def twin(recipe: AnyRecipe, steps: int = 20, batch: int = 2) -> AnyRecipe:
    """The twin, of about ``steps`` steps (at least one for each stage and node), with ``batch``
    samples each.
    """
    values = recipe.model_dump(mode="json")
    own = _has_small_teacher(recipe) if recipe.data is None else recipe.data.is_small
    method = _without_starts(recipe.method)
    values["method"], values["training"] = small(method), _training(values["training"], batch)
    if isinstance(recipe, DistillRecipe):
        values["states"] = small(recipe.states)
        values["student"] = _student(saved(_without_starts(recipe.student)))
        if recipe.prompts is not None:
            values["student"] = _below_highest(values["student"])
            values["teacher"] = dict(_TEXT_TEACHER)
            values["prompts"] = {"kind": "list", "texts": _PROMPTS} if recipe.data is None else {"kind": "captions"}
        elif not own:
            values["teacher"] = {
                "kind": "untrained",
                "model": {"kind": "denoiser", "network": _teacher_network(recipe.teacher), **_process(recipe)},
            }
    elif not own:
        values["model"]["network"] = tiny(values["model"]["network"])
    if isinstance(recipe, DistillRecipe) and recipe.prompts is not None:
        values["data"] = None if recipe.data is None else {"kind": "scenes", "count": 16}
    elif not own:
        values["data"] = {"kind": "waves", "shape": [3, SIDE, SIDE], "classes": CLASSES if _labelled(recipe) else 0}
    features = {"kind": "fourier", "count": 4, "bandwidth": 10.0} if not own else values["evaluation"]["features"]
    values["evaluation"] |= {"features": features, "samples": 8, "draws": 1, "every": 1_000_000, "teacher_steps": [2]}
    # Nothing is measured, and the twin's teacher may know no conditions to be guided by.
    values["evaluation"] |= {"guidance": None, "reference": None}
    made = scaled_to_steps(validate(values, "the recipe's twin"), steps)
    assert isinstance(made, type(recipe))
    return made


def tiny(network: Mapping[str, Any]) -> dict[str, Any]:
    """A network of the same kind for 16x16 images of three channels."""
    kind = network["kind"]
    if kind in ("song-unet", "dhariwal-unet"):
        # ADM's attention heads have 64 channels.
        channels, mult = (8, [1, 2]) if kind == "song-unet" else (16, [1, 4])
        sizes = {
            "img_resolution": SIDE,
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": channels,
            "channel_mult": mult,
            "num_blocks": 1,
            "attn_resolutions": [8],
        }
        return {key: value for key, value in {**network, **sizes}.items() if key not in ("augment_dim", "classes")}
    sizes = {"channels": 3, "width": 8, "depth": 1, "embedding": 16, "size": SIDE, "features": 8, "latent": 8}
    return {key: sizes.get(key, value) for key, value in network.items()}


def _has_small_teacher(recipe: Recipe) -> bool:
    return isinstance(recipe, DistillRecipe) and recipe.teacher.is_small


def _teacher_network(teacher: config.TeacherChoice) -> dict[str, Any]:
    if teacher.published is not None:
        return tiny(teacher.published)
    model = pretrained_model(teacher)
    if model is not None:
        return tiny(model.network.model_dump(mode="json"))
    # A file that need not be there does not say what it holds.
    return tiny({"kind": "small-unet", "channels": 3, "width": 8, "depth": 1, "embedding": 16, "patch": 2})


def _labelled(recipe: Recipe) -> bool:
    """Whether the twin's data has classes: where the published teacher has, and where nothing says
    that there are none.
    """
    published = recipe.teacher.published if isinstance(recipe, DistillRecipe) else None
    if published is not None:
        return bool(published["classes"] > 0)
    return recipe.data is None or recipe.data.may_have_classes


def _process(recipe: DistillRecipe) -> dict[str, Any]:
    """Schedule and prediction of the twin's teacher: of as many timesteps as the recipe speaks of,
    where it does, and EDM's otherwise.
    """
    spoken = [timestep for grid in _discrete_grids(recipe) for timestep in (0, *grid.named)]
    if not isinstance(recipe.student, config.GeneratorStudent) and recipe.student.first_timestep is not None:
        spoken.append(recipe.student.first_timestep)
    if not spoken:
        return _EDM
    return {
        "schedule": {"kind": "discrete-vp", "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        | {"steps": max(_TIMESTEPS, *(timestep + 1 for timestep in spoken))},
        "prediction": {"kind": "eps"},
    }


def _discrete_grids(section: Any) -> Iterator[DiscreteGrid]:
    for name in fields_of(type(section)):
        value = getattr(section, name)
        if isinstance(value, DiscreteGrid):
            yield value
        elif is_section(value):
            yield from _discrete_grids(value)


def _without_starts(section: Any) -> Any:
    """The section with its usual starts for those that it names."""

    def value_of(named: Named) -> str | None:
        if named.mark.within is None:
            return named.value
        usual: str | None = fields_of(type(named.owner))[named.key.rpartition(".")[2]].default
        return usual

    return with_names(section, value_of)


def _student(student: dict[str, Any]) -> dict[str, Any]:
    """Tiny, FastGAN thin."""
    if student["kind"] == "network":
        return {**student, "network": tiny(student["network"])}
    return {**student, "width": 8, "latent": 8} if student["kind"] == "fastgan" else student


def _below_highest(student: dict[str, Any]) -> dict[str, Any]:
    """The student, whose samples begin at a level that the shipped text-to-image model knows."""
    level = student.get("first_sigma")
    return student if level is None else {**student, "first_sigma": min(level, _HIGHEST_LEVEL)}


def _training(training: dict[str, Any], batch: int) -> dict[str, Any]:
    return {
        **training,
        "batch": batch,
        "accumulate": 1,
        "precision": "fp32",
        "device": "cpu",
        "offload": False,
        "placement": {},
        "log_every": 1,
        "checkpoint_every": 7,
        "health_every": 1_000_000,
        "laid_out_for": None,
    }


def small(section: Any) -> Any:
    """The plain values of a section with no count above the most that its mark allows
    (``Costly``).
    """
    values = saved(section)
    for name, field in fields_of(type(section)).items():
        value = getattr(section, name)
        most = next((mark.most for mark in field.marks if isinstance(mark, Costly)), None)
        # A value that is said by its name alone has nothing to make small.
        if is_section(value) and isinstance(values.get(name), dict):
            values[name] = small(value)
        elif most is not None and isinstance(value, int):
            values[name] = min(value, most)
    return values
