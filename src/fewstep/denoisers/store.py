"""Models in files: weights, and all that is needed to rebuild the model around them.

The metadata of such a file is ``{"format": 1, "model": {...}, ...}``; see ``files`` for the container. Loading is strict: a key that is missing, left over, of
another shape or not finite is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.condition import Condition
from fewstep.denoisers.base import Denoiser
from fewstep.denoisers.boundary import Boundary
from fewstep.denoisers.generator import Generator
from fewstep.denoisers.inputs import Inputs, describe_inputs, inputs_from
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.threshold import threshold_from
from fewstep.denoisers.trajectory import TrajectoryDenoiser
from fewstep.denoisers.wrappers import Reflected, Rescheduled
from fewstep.errors import UserError
from fewstep.files import read_tensors, write_tensors
from fewstep.networks import build, describe
from fewstep.networks.bounds import at_most
from fewstep.networks.diffusers_unet import DiffusersUNet
from fewstep.networks.store import FORMAT, load_strictly, room_for
from fewstep.prediction import Prediction, prediction_from
from fewstep.schedule import Schedule, schedule_from

_DEEPEST = 8
_LARGEST = 100_000
_SMALL = 10_000_000


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Plain values from which ``model_from`` rebuilds a model, without its weights: a generator, a denoiser or trajectory around a network, or wrappers of these.

    Raises ``UserError`` for a model of another type, and for one with an adapter that is not ``merged``.
    """
    if isinstance(model, (NetworkDenoiser, TrajectoryDenoiser)):
        return {
            "kind": "denoiser" if isinstance(model, NetworkDenoiser) else "trajectory",
            "network": describe(model.network),
            "schedule": model.schedule.describe(),
            "prediction": model.prediction.describe(),
            "inputs": describe_inputs(model.inputs),
            "shape": list(model.shape),
            "classes": model.classes,
        }
    if isinstance(model, Generator):
        return {
            "kind": "generator",
            "network": describe(model.network),
            "latent_shape": list(model.latent_shape),
            "shape": list(model.shape),
            "classes": model.classes,
        }
    if isinstance(model, Rescheduled):
        return {"kind": "rescheduled", "schedule": model.schedule.describe(), "of": describe_model(model.denoiser)}
    if isinstance(model, Reflected):
        return {"kind": "reflected", "threshold": model.threshold.describe(), "of": describe_model(model.denoiser)}
    if isinstance(model, Boundary):
        return {"kind": "boundary", "of": describe_model(model.denoiser)}
    raise UserError(f"{type(model).__name__} cannot be stored in a file: only {', '.join(_KINDS)} can.")


def model_from(description: Mapping[str, Any]) -> Denoiser | Generator:
    """A fresh model from ``describe_model``. Raises ``UserError`` for an unknown kind, a malformed description, and wrappers nested deeper than 8."""
    return _model_from(description, _DEEPEST)


def _model_from(description: Mapping[str, Any], levels: int) -> Denoiser | Generator:
    try:
        kind = description["kind"]
        if kind not in _KINDS:
            raise UserError(f"unknown kind of model '{kind}'; it must be one of {', '.join(_KINDS)}.")
        return _KINDS[kind](description, levels)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"the description of a model is incomplete or malformed ({error}).") from error


def _generator(d: Mapping[str, Any], levels: int) -> Generator:
    return Generator(build(d["network"]), _shape(d["latent_shape"]), _shape(d["shape"]), _classes(d["classes"]))


def _denoiser(d: Mapping[str, Any], levels: int) -> NetworkDenoiser:
    return NetworkDenoiser(build(d["network"]), *_settings(d))


def _trajectory(d: Mapping[str, Any], levels: int) -> TrajectoryDenoiser:
    return TrajectoryDenoiser(build(d["network"]), *_settings(d))


def _settings(d: Mapping[str, Any]) -> tuple[Schedule, Prediction, Inputs, tuple[int, ...], int]:
    for part in ("schedule", "prediction", "inputs"):
        _check_numbers(d[part])
    return schedule_from(d["schedule"]), prediction_from(d["prediction"]), inputs_from(d["inputs"]), _shape(d["shape"]), _classes(d["classes"])


def _shape(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not 1 <= len(values) <= 4 or not all(type(value) is int and 1 <= value <= _LARGEST for value in values):
        raise ValueError(f"a shape of {values!r:.80}")
    return tuple(values)


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for what no schedule, prediction, inputs or threshold is made of."""
    for key, value in values.items():
        if key == "bound" and value == math.inf:
            # Of a threshold that leaves everything as it is.
            continue
        if isinstance(value, dict):
            _check_numbers(value)
        elif not (isinstance(value, str) or (type(value) in (int, float) and abs(value) <= _LARGEST and (key != "steps" or type(value) is int))):
            raise ValueError(f"'{key}' is {value!r:.80}")


@torch.no_grad()
def _check_takes(model: Denoiser | Generator, path: Path) -> None:
    """Raises ``UserError`` unless the network makes samples of the shape that its file says from such: tried on zeros; of a large network on the meta device, where that costs nothing."""
    inner = model
    while isinstance(inner, (Rescheduled, Reflected, Boundary)):
        inner = inner.denoiser
    assert isinstance(inner, (Generator, NetworkDenoiser, TrajectoryDenoiser))
    try:
        emitted = _emitted(inner)
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path}: its network does not take samples of the shape and classes that the file says ({error}); the file is damaged.") from error
    if emitted != inner.shape:
        raise UserError(f"{path}: its network makes samples of shape {emitted}, the file says {inner.shape}; the file is damaged.")


def _emitted(model: Generator | NetworkDenoiser | TrajectoryDenoiser) -> tuple[int, ...]:
    """The shape of what the model makes of one sample of the shape that it should take."""
    network = model.network
    # To begin with the meta device takes torch a second, which large networks take anyway. Class ids have no values there, and diffusers' networks take nothing else.
    small = sum(value.numel() for value in network.parameters()) <= _SMALL or isinstance(network, DiffusersUNet)
    device = "cpu" if small else "meta"
    with torch.device(device):
        network = network if small else build(describe(network))
        x = torch.zeros(1, *(model.latent_shape if isinstance(model, Generator) else model.shape))
        condition = Condition(labels=(torch.zeros(1, dtype=torch.int64) if small else torch.zeros(1, model.classes)) if model.classes else None, guidance=torch.zeros(1))
    if isinstance(model, Generator):
        return tuple(network(x, condition).shape[1:])
    sketch = type(model)(network, model.schedule, model.prediction, model.inputs, model.shape, model.classes)
    return tuple(sketch(x, torch.full((1,), model.schedule.t_max, dtype=torch.float64), condition).shape[1:])


def _classes(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(f"{value!r:.80} classes")
    return value


def _rescheduled(d: Mapping[str, Any], levels: int) -> Rescheduled:
    _check_numbers(d["schedule"])
    return Rescheduled(_inner(d, levels), schedule_from(d["schedule"]))


def _reflected(d: Mapping[str, Any], levels: int) -> Reflected:
    _check_numbers(d["threshold"])
    return Reflected(_inner(d, levels), threshold_from(d["threshold"]))


def _boundary(d: Mapping[str, Any], levels: int) -> Boundary:
    return Boundary(_inner(d, levels))


def _inner(d: Mapping[str, Any], levels: int) -> Denoiser:
    """What a wrapper is around."""
    if levels == 0:
        raise UserError(f"the description of a model nests more than {_DEEPEST} wrappers, which no model of ours does.")
    model = _model_from(d["of"], levels - 1)
    if isinstance(model, Generator):
        raise UserError(f"the description of a model wraps a generator as '{d['kind']}'; only denoisers can be wrapped.")
    return model


_KINDS: dict[str, Callable[[Mapping[str, Any], int], Denoiser | Generator]] = {
    "denoiser": _denoiser,
    "generator": _generator,
    "trajectory": _trajectory,
    "rescheduled": _rescheduled,
    "reflected": _reflected,
    "boundary": _boundary,
}


def save_model(path: Path, model: nn.Module, extra: Mapping[str, Any] | None = None) -> str:
    """Writes the model and ``extra`` (plain values) to ``path``; returns the file's digest."""
    metadata = {"format": FORMAT, "model": describe_model(model), **(extra or {})}
    return write_tensors(path, model.state_dict(), metadata)


def load_model(path: Path) -> tuple[Denoiser | Generator, dict[str, Any]]:
    """Reads what ``save_model`` wrote: (model, the extra values). Raises ``UserError`` naming the file and what is wrong in it."""
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT or "model" not in metadata:
        raise UserError(f"{path}: is not a model file of format {FORMAT}; it may come from another version or be another kind of file.")
    try:
        with at_most(room_for(tensors), "the file"):
            model = model_from(metadata.pop("model"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    load_strictly(model, tensors, str(path))
    _check_takes(model, path)
    del metadata["format"]
    return model, metadata
