"""From a recipe's teacher to a frozen denoiser: the network in its file, or the same network
without weights, on the meta device, for what only needs its sizes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import EDMInputs, NetworkDenoiser, freeze, load_model
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.prediction import EDM
from fewstep.recipes import config
from fewstep.recipes.building.parts import around, build_denoiser
from fewstep.recipes.reading.source import load_recipe
from fewstep.recipes.recipe import PretrainRecipe
from fewstep.schedule import KarrasVE
from fewstep.system.files import read_tensors
from fewstep.system.locations import absolute
from fewstep.zoo import consistency_models, diffusers_models, nvidia, shipped_denoiser
from fewstep.zoo.shipped import SHIPPED_RANGES

SIGMA_DATA = 0.5
"""Of every published EDM network."""


def build_teacher(choice: config.TeacherChoice, data: Dataset | None) -> NetworkDenoiser:
    """The frozen teacher, checked against the data where there is data."""
    teacher = _loaded(choice, data)
    if data is None:
        return teacher
    if teacher.shape != data.shape or teacher.classes not in (0, data.classes):
        null = isinstance(choice, config.DiffusersTeacher) and teacher.classes == data.classes + 1
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


def remarks_on(choice: config.TeacherChoice) -> tuple[str, ...]:
    """Sentences on what was chosen among a teacher's files, and on what of them is left out."""
    if not isinstance(choice, config.DiffusersTeacher):
        return ()
    return diffusers_models.remarks_of(choice.path, choice.revision, choice.variant, choice.subfolder, choice.classes)


def space_of(choice: config.TeacherChoice, teacher: NetworkDenoiser) -> SampleSpace:
    """What samples look like, from the teacher alone: images are in [-1, 1], and a file of ours or
    a shipped one says the range of other samples.

    Raises ``UserError`` where nothing says it.
    """
    low, high = (-1.0, 1.0) if len(teacher.shape) == 3 else _range_of(choice)
    return SampleSpace(teacher.shape, low, high, teacher.classes)


def _range_of(choice: config.TeacherChoice) -> tuple[float, float]:
    if isinstance(choice, config.ShippedTeacher):
        return SHIPPED_RANGES[choice.name]
    if isinstance(choice, config.FileTeacher) and Path(choice.path).is_file():
        stated = read_tensors(Path(choice.path))[1].get("range")
        if (
            isinstance(stated, list)
            and len(stated) == 2
            and all(isinstance(value, int | float) for value in stated)
            and stated[0] < stated[1]
        ):
            return float(stated[0]), float(stated[1])
        raise UserError(
            f"{choice.path}: does not say in which range its samples are, and the recipe has no 'data' "
            "section; add one."
        )
    raise UserError(
        f"'teacher.kind: {choice.kind}' does not say in which range its samples are, and the recipe has no "
        "'data' section; add one."
    )


def sketched_teacher(choice: config.TeacherChoice, data: config.DataChoice | None) -> NetworkDenoiser:
    """The teacher on the meta device.

    Files that need not be there are not read: a published network is known by its name, a
    pretrained one by its recipe.
    """
    if isinstance(choice, (config.NvidiaTeacher, config.ConsistencyModelsTeacher)):
        with torch.device("meta"):
            network = build(choice.description)
        side = choice.description["img_resolution"]
        return freeze(
            NetworkDenoiser(
                network, KarrasVE(), EDM(SIGMA_DATA), EDMInputs(SIGMA_DATA), (3, side, side), choice.classes
            )
        )
    model = pretrained_model(choice)
    if model is None:
        assert isinstance(choice, (config.ShippedTeacher, config.FileTeacher, config.DiffusersTeacher))
        return _stored(choice).to("meta")
    shape, classes = _announced(data or _data_of_recipe(choice))
    with torch.device("meta"):
        network = build(model.network.description(classes=classes))
    # The schedule and what the network is fed are computed with numbers, so that only the network
    # is built there.
    return freeze(around(network, model, shape, classes))


def pretrained_model(choice: config.TeacherChoice) -> config.DenoiserModel | None:
    """The model section of a teacher that has random weights, or whose file is not there while its
    recipe is; None for others.
    """
    if isinstance(choice, config.UntrainedTeacher):
        return choice.model
    if not isinstance(choice, config.FileTeacher) or choice.recipe is None or Path(absolute(choice.path)).is_file():
        return None
    recipe = load_recipe(choice.recipe)
    if not isinstance(recipe, PretrainRecipe) or not isinstance(recipe.model, config.DenoiserModel):
        raise UserError(
            f"'teacher.recipe' is '{choice.recipe}', which does not pretrain a denoiser; name the recipe "
            f"that makes {choice.path}."
        )
    return recipe.model


def _data_of_recipe(choice: config.TeacherChoice) -> config.DataChoice:
    """The data of the recipe that makes the teacher, for a run without data of its own."""
    recipe = (
        load_recipe(choice.recipe) if isinstance(choice, config.FileTeacher) and choice.recipe is not None else None
    )
    if recipe is None or recipe.data is None:
        raise _shapeless()
    return recipe.data


def _shapeless() -> UserError:
    return UserError(
        "'teacher.kind: untrained' takes its shape and classes from data, and the recipe has no 'data' "
        "section; add one, or use another teacher."
    )


def _announced(data: config.DataChoice) -> tuple[tuple[int, ...], int]:
    """Shape and classes of data, read from the recipe where it says them, from the data where
    not.
    """
    if isinstance(data, config.ImagesData) and data.size is not None and data.classes is not None:
        return (data.channels, data.size, data.size), data.classes
    found = data.open()
    return found.shape, found.classes


def _loaded(choice: config.TeacherChoice, data: Dataset | None) -> NetworkDenoiser:
    if isinstance(choice, config.UntrainedTeacher):
        if data is None:
            raise _shapeless()
        return freeze(build_denoiser(choice.model, data.shape, data.classes, choice.seed))
    if isinstance(choice, (config.NvidiaTeacher, config.ConsistencyModelsTeacher)):
        return _published(choice)
    return _stored(choice)


def _published(choice: config.NvidiaTeacher | config.ConsistencyModelsTeacher) -> NetworkDenoiser:
    if isinstance(choice, config.ConsistencyModelsTeacher):
        # A state dict tells nothing of its network: it is read as the one that the recipe names,
        # strictly.
        return consistency_models.load_as(choice.path, choice.description, EDM(SIGMA_DATA), choice.sha256)
    teacher = nvidia.load(choice.path, sha256=choice.sha256)
    _check_published(choice, teacher)
    return teacher


def _stored(choice: config.ShippedTeacher | config.FileTeacher | config.DiffusersTeacher) -> NetworkDenoiser:
    if isinstance(choice, config.ShippedTeacher):
        return shipped_denoiser(choice.name)
    if isinstance(choice, config.DiffusersTeacher):
        return diffusers_models.load(choice.path, choice.revision, choice.variant, choice.subfolder, choice.classes)
    path = Path(absolute(choice.path))
    if choice.recipe is not None and not path.is_file():
        raise UserError(
            f"{path}: there is no such file; make it by 'fewstep pretrain {choice.recipe}', or correct 'teacher.path'."
        )
    loaded, _ = load_model(path)
    if not isinstance(loaded, NetworkDenoiser):
        raise UserError(
            f"{choice.path}: holds a {type(loaded).__name__.lower()}; a teacher must be a denoiser around one network."
        )
    return freeze(loaded)


def _check_published(choice: config.NvidiaTeacher, teacher: NetworkDenoiser) -> None:
    """A file that holds another network than the recipe says would make its plan wrong."""
    with torch.device("meta"):
        expected = {name: value.shape for name, value in build(choice.description).state_dict().items()}
    found = {name: value.shape for name, value in teacher.network.state_dict().items()}
    different = next(
        (name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)), None
    )
    if different is not None:
        raise UserError(
            f"{choice.path}: is not the network '{choice.network}' with {choice.classes} classes "
            f"('{different}' differs); set 'teacher.network' and 'teacher.classes' to what the file holds."
        )
