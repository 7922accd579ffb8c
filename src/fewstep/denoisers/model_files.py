"""Models in files: weights, and all that is needed to rebuild the model around them.

The metadata of such a file is ``{"format": 1, "model": {...}, ...}``; see ``files`` for the
container. Loading is strict: a key that is missing, left over, of another shape or not finite is
named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.condition import Condition
from fewstep.denoisers.denoiser import Denoiser
from fewstep.denoisers.inputs import Inputs
from fewstep.denoisers.jumps import TrajectoryDenoiser
from fewstep.denoisers.network import Generator, NetworkDenoiser
from fewstep.denoisers.threshold import Threshold
from fewstep.denoisers.wrappers import Boundary, Reflected, Rescheduled
from fewstep.errors import UserError
from fewstep.networks import DiffusersUNet, build, describe_network
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.networks.kinds.bounds import at_most, machine_numbers
from fewstep.networks.kinds.network_files import FORMAT, MODULE, load_strictly, module_of, room_for
from fewstep.prediction import Prediction
from fewstep.schedule import Schedule
from fewstep.system.files import read_metadata, read_tensors, write_tensors

STUDENT, PRETRAINED = "student.safetensors", "model.safetensors"
"""In a run's folder: what a distillation makes, and what a pretraining does."""
_DEEPEST = 8
_LARGEST = 100_000
_SMALL = 10_000_000


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Plain values from which ``model_from`` rebuilds a model, without its weights: a generator, a
    denoiser or trajectory around a network, or wrappers of these.

    Raises ``UserError`` for a model of another type, and for one with an adapter that is not
    ``merged``.
    """
    kind = next((name for name, known in _MODELS.items() if type(model) is known), None)
    if kind is None:
        raise UserError(f"{type(model).__name__} cannot be stored in a file: only {', '.join(_MODELS)} can.")
    return {"kind": kind, **_parts_of(model)}


def _parts_of(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, (NetworkDenoiser, TrajectoryDenoiser)):
        values = {
            name: value.describe()
            for name, value in (
                ("schedule", model.schedule),
                ("prediction", model.prediction),
                ("inputs", model.inputs),
            )
        }
        return {
            "network": describe_network(model.network),
            **values,
            "shape": list(model.shape),
            "classes": model.classes,
        }
    if isinstance(model, Generator):
        return {
            "network": describe_network(model.network),
            "latent_shape": list(model.latent_shape),
            "shape": list(model.shape),
            "classes": model.classes,
        }
    assert isinstance(model, (Rescheduled, Reflected, Boundary))
    own = (
        {"schedule": model.schedule.describe()}
        if isinstance(model, Rescheduled)
        else {"threshold": model.threshold.describe()}
        if isinstance(model, Reflected)
        else {}
    )
    return {**own, "of": describe_model(model.denoiser)}


def model_from(
    description: Mapping[str, Any], module: str | None = None, device: str | None = None
) -> Denoiser | Generator:
    """A fresh model from ``describe_model``.

    ``module``: the one that registers its network, where that is known; ``device``: where the
    network is built, where others are unless given.

    Raises ``UserError`` for an unknown kind, a malformed description, and wrappers nested deeper
    than 8.
    """
    return _model_from(description, _DEEPEST, module, device)


def _model_from(d: Mapping[str, Any], levels: int, module: str | None, device: str | None) -> Denoiser | Generator:
    try:
        kind = d["kind"]
        if kind not in _MODELS:
            raise UserError(f"unknown kind of model '{kind}'; it must be one of {', '.join(_MODELS)}.")
        if "of" in d:
            return _wrapper(_MODELS[kind], d, levels, module, device)
        shape, classes = _shape(d["shape"]), _classes(d["classes"])
        # Schedules and the like are computed with numbers, which the meta device has not.
        with contextlib.nullcontext() if device is None else torch.device(device):
            network = build(d["network"], module)
        if _MODELS[kind] is Generator:
            return Generator(network, _shape(d["latent_shape"]), shape, classes)
        around = TrajectoryDenoiser if _MODELS[kind] is TrajectoryDenoiser else NetworkDenoiser
        return around(
            network,
            Schedule.from_description(d["schedule"]),
            Prediction.from_description(d["prediction"]),
            Inputs.from_description(d["inputs"]),
            shape,
            classes,
        )
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"the description of a model is incomplete or malformed ({error}).") from error


def _wrapper(
    cls: type[nn.Module], d: Mapping[str, Any], levels: int, module: str | None, device: str | None
) -> Denoiser:
    if levels == 0:
        raise UserError(f"the description of a model nests more than {_DEEPEST} wrappers, which no model of ours does.")
    inner = _model_from(d["of"], levels - 1, module, device)
    if isinstance(inner, Generator):
        raise UserError(
            f"the description of a model wraps a generator as '{d['kind']}'; only denoisers can be wrapped."
        )
    if cls is Rescheduled:
        return Rescheduled(inner, Schedule.from_description(d["schedule"]))
    return Boundary(inner) if cls is Boundary else Reflected(inner, Threshold.from_description(d["threshold"]))


def _shape(values: Any) -> tuple[int, ...]:
    if (
        not isinstance(values, list)
        or not 1 <= len(values) <= 4
        or not all(type(value) is int and 1 <= value <= _LARGEST for value in values)
    ):
        raise ValueError(f"a shape of {values!r:.80}")
    return tuple(values)


@torch.no_grad()
def _check_takes(model: Denoiser | Generator, path: Path) -> None:
    """Raises ``UserError`` unless the network makes samples of the shape that its file says from
    such: tried on zeros; of a large network on the meta device, where that costs nothing.
    """
    inner = model
    while isinstance(inner, (Rescheduled, Reflected, Boundary)):
        inner = inner.denoiser
    assert isinstance(inner, (Generator, NetworkDenoiser, TrajectoryDenoiser))
    try:
        emitted = _emitted(inner)
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: its network does not take samples of the shape and classes that the file says "
            f"({error}); the file is damaged."
        ) from error
    if emitted != inner.shape:
        raise UserError(
            f"{path}: its network makes samples of shape {emitted}, the file says {inner.shape}; the file is damaged."
        )


def _emitted(model: Generator | NetworkDenoiser | TrajectoryDenoiser) -> tuple[int, ...]:
    """The shape of what the model makes of one sample of the shape that it should take."""
    network = model.network
    # To begin with the meta device takes torch a second, which large networks take anyway. Class
    # ids have no values there, and diffusers' class-conditional networks take nothing else.
    small = sum(value.numel() for value in network.parameters()) <= _SMALL or isinstance(network, DiffusersUNet)
    device = "cpu" if small else "meta"
    asked = network.context_shapes if isinstance(network, DenoisingNetwork) else {}
    with torch.device(device):
        network = network if small else build(describe_network(network))
        x = torch.zeros(1, *(model.latent_shape if isinstance(model, Generator) else model.shape))
        condition = Condition(
            labels=(torch.zeros(1, dtype=torch.int64) if small else torch.zeros(1, model.classes))
            if model.classes
            else None,
            context={name: torch.zeros(1, *shape) for name, shape in asked.items()},
            guidance=torch.zeros(1),
        )
    if isinstance(model, Generator):
        return tuple(network(x, condition).shape[1:])
    sketch = type(model)(network, model.schedule, model.prediction, model.inputs, model.shape, model.classes)
    return tuple(sketch(x, torch.full((1,), model.schedule.t_max, dtype=torch.float64), condition).shape[1:])


def _classes(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(f"{value!r:.80} classes")
    return value


_MODELS: dict[str, type[nn.Module]] = {
    "denoiser": NetworkDenoiser,
    "generator": Generator,
    "trajectory": TrajectoryDenoiser,
    "rescheduled": Rescheduled,
    "reflected": Reflected,
    "boundary": Boundary,
}


def save_model(path: Path, model: nn.Module, extra: Mapping[str, Any] | None = None) -> str:
    """Writes the model and ``extra`` (plain values) to ``path``; returns the file's digest."""
    metadata = {"format": FORMAT, "model": describe_model(model), **module_of(model), **(extra or {})}
    return write_tensors(path, model.state_dict(), metadata)


def model_in(path: Path) -> Path:
    """The file of a model: the path itself, and of a run's folder what the run made.

    Raises ``UserError`` for a folder without either.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in (STUDENT, PRETRAINED) if (path / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{path}: holds neither {STUDENT} nor {PRETRAINED}; the run may not have ended: go on with --resume, or "
            "give another."
        )
    return found


def description_in(path: Path) -> dict[str, Any]:
    """What ``describe_model`` says of the model in a file; its weights are not read.

    Raises ``UserError`` naming the file where it does not describe a model.
    """
    metadata = _of_model(read_metadata(path), path)
    try:
        with at_most(machine_numbers(), "this machine"):
            return describe_model(model_from(metadata["model"], metadata.get(MODULE), "meta"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _of_model(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    if metadata.get("format") != FORMAT or "model" not in metadata:
        raise UserError(
            f"{path}: is not a model file of format {FORMAT}; it may come from another version or be "
            "another kind of file."
        )
    return metadata


def load_model(path: Path) -> tuple[Denoiser | Generator, dict[str, Any]]:
    """Reads what ``save_model`` wrote: (model, the extra values).

    Raises ``UserError`` naming the file and what is wrong in it.
    """
    tensors, metadata = read_tensors(path)
    _of_model(metadata, path)
    try:
        with at_most(room_for(tensors), "the file"):
            model = model_from(metadata.pop("model"), metadata.pop(MODULE, None))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    load_strictly(model, tensors, str(path))
    _check_takes(model, path)
    del metadata["format"]
    return model, metadata
