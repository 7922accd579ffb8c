"""Where networks that are trained begin, where that is not the teacher: a model's file, a run's
folder, and for a fake score the checkpoint of a run, since it is in no other file.

A model's file must hold a model of the very same description. A checkpoint has no description: the
names, types and shapes of its tensors must be the network's. Nor has a file of others, which holds
the network of a text-to-image model under diffusers' names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from fewstep.denoisers import NetworkDenoiser
from fewstep.denoisers.denoiser import Model
from fewstep.denoisers.model_files import describe_model, description_in, load_model, model_in
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork
from fewstep.networks.kinds.network_files import load_strictly
from fewstep.recipes.config.section import Names, first_difference
from fewstep.system.files import is_of_ours
from fewstep.system.locations import absolute
from fewstep.training.saving.checkpoint import CHECKPOINTS
from fewstep.training.saving.checkpoint_files import is_checkpoint, open_checkpoint
from fewstep.training.saving.run_checkpoints import Checkpoints
from fewstep.zoo.pipelines.rebuilding import refill
from fewstep.zoo.state_dicts import is_torch_file, read_state_dict

_FAKE = ("fake/denoiser.", "fake/", "degrade/")
"""How checkpoints name a fake score: by the phase that trains it, in which it may carry a critic's
head, or by the one that recorded a path with it before.
"""


def fake_in(path: Path) -> Path:
    """What holds a fake score: the path itself, and of a run's folder its newest checkpoint.

    Raises ``UserError`` for a folder without one.
    """
    if not path.is_dir() or is_checkpoint(path):
        return path
    found = Checkpoints(path / CHECKPOINTS).paths()
    if not found:
        raise UserError(
            f"{path}: holds no checkpoint, in which a run's fake score is; give a run that has one, or a model's file."
        )
    return found[0]


ModelPath = Annotated[str, Names("weights", within=model_in)]
FakePath = Annotated[str, Names("weights", within=fake_in, besides=frozenset({"teacher", "random"}))]


def started(
    model: Model, start: str | None, remedy: str = "set 'student' as the file was made, or 'student.start' to null"
) -> Model:
    """The model, with the weights of the file, or of the run's folder, that ``start`` names if it
    names one.

    Raises ``UserError`` for a file of another model, with the ``remedy``.
    """
    if start is None or need_not_be_there(model, start):
        return model
    return _begun(model, model_in(Path(absolute(start))), start, "student", remedy)


def begun_fake(fake: NetworkDenoiser, start: str) -> NetworkDenoiser:
    """The fake score, with the weights of a model's file, of a checkpoint's fake score, or of that
    of the newest checkpoint of a run.

    Raises ``UserError`` for weights of another network.
    """
    if need_not_be_there(fake, start):
        return fake
    path = fake_in(Path(absolute(start)))
    remedy = "use one that was made from this teacher, or 'method.fake.start: teacher'"
    if not is_checkpoint(path):
        return _begun(fake, path, start, "fake score", remedy)
    if _is_sketch(fake):
        return fake
    checkpoint = open_checkpoint(path)
    for name in _FAKE:
        tensors = checkpoint.read(f"network/{name}", {})
        if tensors:
            load_strictly(fake, tensors, f"{path}, network '{name.rstrip('/.')}'")
            return fake
    raise UserError(f"{path}: is the checkpoint of a run that trains no fake score; {remedy}.")


def _begun(model: Model, path: Path, named: str, what: str, remedy: str) -> Model:
    if is_torch_file(path) or not is_of_ours(path):
        return _begun_from_others(model, path, named, what, remedy)
    loaded = None if _is_sketch(model) else _loaded(path)
    held = description_in(path) if loaded is None else describe_model(loaded)
    differs = first_difference(held, describe_model(model))
    if differs is not None:
        raise UserError(f"{named}: holds another model than the recipe's {what} ('{differs}' differs); {remedy}.")
    if loaded is not None:
        load_strictly(model, loaded.state_dict(), str(path))
    return model


def _begun_from_others(model: Model, path: Path, named: str, what: str, remedy: str) -> Model:
    network = next((each for each in model.modules() if isinstance(each, DenoisingNetwork) and each.part), None)
    if network is None:
        raise UserError(
            f"{named}: is no model's file of ours, and the recipe's {what} is no network of a text-to-image model, "
            f"whose weights alone are read from files of others; {remedy}."
        )
    if not _is_sketch(model):
        refill(network, read_state_dict(path), str(path))
    return model


def _loaded(path: Path) -> nn.Module:
    # What is built afterwards must not depend on whether there was a start.
    with torch.random.fork_rng(devices=[]):
        return load_model(path)[0]


def need_not_be_there(model: nn.Module, start: str) -> bool:
    """Whether a model can do without the file or folder from which it begins: a plan's, where there
    is none. What it takes does not depend on what is in the file.
    """
    return _is_sketch(model) and not Path(absolute(start)).exists()


def _is_sketch(model: nn.Module) -> bool:
    """Whether it has no weights, and needs none: a plan's."""
    return any(value.is_meta for value in model.parameters())
