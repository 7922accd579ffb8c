"""From a recipe's teacher to a frozen denoiser: the network in its file, or the same network
without weights, on the meta device, for what only needs its sizes.
"""

from __future__ import annotations

import torch

from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.recipes import config
from fewstep.recipes.config.teachers import shapeless
from fewstep.recipes.reading.source import load_recipe
from fewstep.recipes.recipe import PretrainRecipe


def build_teacher(choice: config.TeacherChoice, data: Dataset | None) -> NetworkDenoiser:
    """The frozen teacher, checked against the data where there is data."""
    teacher = choice.load(data)
    if data is None:
        return teacher
    if teacher.shape != data.shape or teacher.classes not in (0, data.classes):
        null = choice.last_may_be_none and teacher.classes == data.classes + 1
        remedy = (
            f"set 'teacher.classes' to {data.classes} if its last embedding is 'no class', or set "
            if null and data.classes
            else "set "
        )
        raise UserError(
            f"the teacher makes samples of shape {teacher.shape} in {teacher.classes} classes, the data has "
            f"shape {data.shape} and {data.classes} classes; "
            f"{remedy}'teacher' or 'data' so that they agree."
        )
    return teacher


def space_of(choice: config.TeacherChoice, teacher: NetworkDenoiser) -> SampleSpace:
    """What samples look like, from the teacher alone: images are in [-1, 1], and a file of ours or
    a shipped one says the range of other samples.

    Raises ``UserError`` where nothing says it.
    """
    low, high = (-1.0, 1.0) if len(teacher.shape) == 3 else choice.sample_range()
    return SampleSpace(teacher.shape, low, high, teacher.classes)


def sketched_teacher(choice: config.TeacherChoice, data: config.DataChoice | None) -> NetworkDenoiser:
    """The teacher on the meta device.

    Files that need not be there are not read: a published network is known by its name, a
    pretrained one by its recipe.
    """
    sketch = choice.sketch()
    if sketch is not None:
        return sketch
    model = pretrained_model(choice)
    if model is None:
        return choice.load(None).to("meta")
    shape, classes = (data or _data_of_maker(choice)).announced()
    with torch.device("meta"):
        network = build(model.network.description(classes=classes))
    # The schedule and what the network is fed are computed with numbers, so that only the network
    # is built there.
    return freeze(model.around(network, shape, classes))


def pretrained_model(choice: config.TeacherChoice) -> config.DenoiserModel | None:
    """The model section of a teacher that has random weights, or whose file is not there while its
    recipe is; None for others.
    """
    if choice.maker is None:
        return choice.random_model
    recipe = load_recipe(choice.maker)
    if not isinstance(recipe, PretrainRecipe) or not isinstance(recipe.model, config.DenoiserModel):
        raise UserError(
            f"'teacher.recipe' is '{choice.maker}', which does not pretrain a denoiser; name the recipe "
            f"that makes {choice.model_dump()['path']}."
        )
    return recipe.model


def _data_of_maker(choice: config.TeacherChoice) -> config.DataChoice:
    """The data of the recipe that makes the teacher, for a run without data of its own."""
    recipe = None if choice.maker is None else load_recipe(choice.maker)
    if recipe is None or recipe.data is None:
        raise shapeless()
    return recipe.data
