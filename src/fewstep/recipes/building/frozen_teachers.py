"""From a recipe's teacher to a frozen denoiser, what it is asked for and what is around it: the
network in its file, or the same network without weights, on the meta device, for what only needs
its sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fewstep.condition import Classes, Conditions
from fewstep.data import Dataset, SampleSpace
from fewstep.data.latents import bounds_of, latents_of
from fewstep.data.prompts import EmbeddedPrompts, Unembedded
from fewstep.denoisers import Denoiser, NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks import Codec, build
from fewstep.recipes import config
from fewstep.recipes.building.prompting import asked_of, embedded, prompt_conditions, prompts_of
from fewstep.recipes.config.teachers import shapeless
from fewstep.recipes.reading.source import load_recipe
from fewstep.recipes.recipe import DistillRecipe, PretrainRecipe
from fewstep.zoo.pipelines import OpenedPipeline

TOKENS = 77
"""What a plan takes the length of prompts for where no pipeline says it."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen teacher.

    ``conditions``: what its samples may be asked to be. ``space``: what they look like. ``codec``:
    makes pictures of them where they are latents; None where they are pictures or points. ``data``:
    the recipe's data as samples of that space; None where there is no data.
    """

    denoiser: NetworkDenoiser
    conditions: Conditions
    space: SampleSpace
    codec: Codec | None = None
    data: Dataset | None = None

    def bound(self) -> float:
        """The largest absolute value that samples have: that of their range, and of latents, which
        have no range, the one that nearly all values of the data are within; infinite where nothing
        says it.
        """
        found = (self.space.low, self.space.high)
        if math.isinf(self.space.low) and self.data is not None:
            found = bounds_of(self.data)
        return max(map(abs, found))

    @property
    def pictured(self) -> SampleSpace:
        """What its samples look like to whoever sees them: a codec's pictures, or the samples."""
        return self.space if self.codec is None else pictures_of(self.codec, self.space)


def open_teacher(
    recipe: DistillRecipe, data: Dataset | None, device: torch.device, at_work: torch.device | None = None
) -> Teacher:
    """The recipe's teacher on a device, with its prompts embedded, where it is told prompts; the
    text encoder is let go. ``at_work``: where prompts are embedded and pictures encoded, which is
    done before the teacher is read; None for the same device.

    Raises ``UserError`` where teacher, prompts and data do not go together.
    """
    text = recipe.teacher.text_model()
    if text is None:
        _check_no_prompts(recipe)
        denoiser = build_teacher(recipe.teacher, data)
        space = space_of(recipe.teacher, denoiser) if data is None else data.space
        return Teacher(denoiser.to(device), Classes(denoiser.classes), space, data=data)
    if text.kind.is_told_classes:
        _check_no_prompts(recipe)
        return _of_classes(text, data, device, device if at_work is None else at_work)
    return _of_text(text, prompts_of(recipe), data, device, device if at_work is None else at_work)


def _of_classes(
    model: OpenedPipeline, pictures: Dataset | None, device: torch.device, at_work: torch.device
) -> Teacher:
    codec = model.codec().to(device)
    data = None if pictures is None else latents_of(pictures, codec, device=at_work)
    denoiser = model.denoiser()
    _check_shape(denoiser, data)
    if data is not None and data.classes not in (0, denoiser.classes):
        raise UserError(
            f"the teacher knows {denoiser.classes} classes, and the data has {data.classes}; take data of the "
            "teacher's classes, or without any."
        )
    return Teacher(denoiser.to(device), Classes(denoiser.classes), latent_space(denoiser), codec, data)


def _of_text(
    text: OpenedPipeline,
    choice: config.PromptsChoice,
    pictures: Dataset | None,
    device: torch.device,
    at_work: torch.device,
) -> Teacher:
    codec = text.codec().to(device)
    listed, data = choice.beside(None if pictures is None else latents_of(pictures, codec, device=at_work))
    # The encoder is let go before the network is read.
    around = Around(codec, embedded(text, listed, choice.too_long, at_work))
    denoiser = text.denoiser()
    _check_shape(denoiser, data)
    made = {name: shape[-1] for name, shape in around.prompts.shapes.items()}
    text.check_together(denoiser, made, codec.channels)
    return Teacher(denoiser.to(device), around.conditions(denoiser), latent_space(denoiser), codec, data)


def _check_shape(denoiser: NetworkDenoiser, data: Dataset | None) -> None:
    if data is not None and data.shape != denoiser.shape:
        raise UserError(
            f"the teacher makes latents of shape {denoiser.shape}, and those of the data's pictures have the shape "
            f"{data.shape}; set 'data.size' to the side of the teacher's pictures."
        )


@dataclass(frozen=True, eq=False)
class Around:
    """A text-to-image model besides its network: a ``codec``, and ``prompts``, embedded."""

    codec: Codec
    prompts: EmbeddedPrompts

    def conditions(self, denoiser: Denoiser) -> Conditions:
        """What the samples of a denoiser, latents of this codec, may be asked to be."""
        return prompt_conditions(self.prompts, denoiser, self.codec.factor)


def open_around(recipe: DistillRecipe, prompts: Sequence[str] | None, device: torch.device) -> Around:
    """What is around the teacher of a recipe, without the teacher's network; ``prompts`` in the
    place of the recipe's, unless None.

    Raises ``UserError`` where the teacher is no text-to-image model.
    """
    text = recipe.teacher.text_model()
    if text is None:
        raise UserError("the recipe's teacher is no text-to-image model, and the student draws what prompts say.")
    choice = prompts_of(with_prompts(recipe, prompts))
    return Around(text.codec().to(device), embedded(text, choice.alone(recipe.data), choice.too_long, device))


def codec_beside(recipe: DistillRecipe, device: torch.device) -> Codec | None:
    """What makes pictures of a student's samples where these are latents of classes; None where
    they are pictures or points themselves.
    """
    model = recipe.teacher.text_model()
    return None if model is None or not model.kind.is_told_classes else model.codec().to(device)


def with_prompts(recipe: DistillRecipe, prompts: Sequence[str] | None) -> DistillRecipe:
    """The recipe with other prompts, unless these are None.

    Raises ``UserError`` where its teacher is told no prompts.
    """
    if prompts is None:
        return recipe
    if recipe.prompts is None:
        raise UserError("the recipe's teacher is told no prompts; leave the prompts out.")
    listed = config.ListedPrompts(kind="list", texts=list(prompts), too_long=recipe.prompts.too_long)
    return recipe.model_copy(update={"prompts": listed})


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


def latent_space(denoiser: NetworkDenoiser) -> SampleSpace:
    """What latents look like: they have no range."""
    return SampleSpace(denoiser.shape, -math.inf, math.inf, denoiser.classes)


def pictures_of(codec: Codec, latents: SampleSpace) -> SampleSpace:
    """What the pictures of latents look like."""
    _, height, width = latents.shape
    return SampleSpace((3, height * codec.factor, width * codec.factor), -1.0, 1.0, latents.classes)


def sketched(recipe: DistillRecipe) -> Teacher:
    """The recipe's teacher on the meta device, where no prompt is embedded and no data is read."""
    text = recipe.teacher.text_sketch()
    denoiser = sketched_teacher(recipe.teacher, recipe.data) if text is None else text.sketch()
    shapes = asked_of(denoiser)
    if not shapes:
        _check_no_prompts(recipe)
        if text is not None:
            return Teacher(denoiser, Classes(denoiser.classes), latent_space(denoiser), text.codec_sketch())
        # Their range plays no part in sizes.
        return Teacher(denoiser, Classes(denoiser.classes), SampleSpace(denoiser.shape, -1.0, 1.0, denoiser.classes))
    prompts_of(recipe)
    codec = None if text is None else text.codec_sketch()
    tokens = TOKENS if text is None else text.kind.tokens
    conditions = Unembedded({**shapes, "text": (tokens, shapes["text"][-1])})
    return Teacher(denoiser, conditions, latent_space(denoiser), codec)


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


def _check_no_prompts(recipe: DistillRecipe) -> None:
    if recipe.prompts is not None:
        raise UserError(
            "the recipe has 'prompts', and its teacher is told no prompts; leave 'prompts' out, or use a text-to-image "
            "model by 'teacher.kind: pipeline'."
        )


def _data_of_maker(choice: config.TeacherChoice) -> config.DataChoice:
    """The data of the recipe that makes the teacher, for a run without data of its own."""
    recipe = None if choice.maker is None else load_recipe(choice.maker)
    if recipe is None or recipe.data is None:
        raise shapeless()
    return recipe.data
