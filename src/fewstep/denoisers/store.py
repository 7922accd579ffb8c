"""Models in files: weights, and all that is needed to rebuild the model around them.

The metadata of such a file is ``{"format": 1, "model": {...}, ...}``; see ``files`` for the container. Loading is strict: a key that is missing, left over or of
another shape is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.denoisers.generator import Generator
from fewstep.denoisers.network import NetworkDenoiser, describe_inputs, inputs_from
from fewstep.errors import UserError
from fewstep.files import read_tensors, write_tensors
from fewstep.networks import build, describe
from fewstep.networks.store import FORMAT, load_strictly
from fewstep.prediction import prediction_from
from fewstep.schedule import schedule_from


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Plain values from which ``model_from`` rebuilds a ``NetworkDenoiser`` or a ``Generator``, without its weights."""
    if isinstance(model, NetworkDenoiser):
        return {
            "kind": "denoiser",
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
    raise UserError(f"{type(model).__name__} cannot be stored in a file: only network denoisers and generators can.")


def model_from(description: Mapping[str, Any]) -> NetworkDenoiser | Generator:
    """A fresh model from ``describe_model``."""
    try:
        network = build(description["network"])
        shape, classes = tuple(description["shape"]), description["classes"]
        if description["kind"] == "generator":
            return Generator(network, tuple(description["latent_shape"]), shape, classes)
        if description["kind"] == "denoiser":
            schedule, prediction = schedule_from(description["schedule"]), prediction_from(description["prediction"])
            return NetworkDenoiser(network, schedule, prediction, inputs_from(description["inputs"]), shape, classes)
    except (KeyError, TypeError) as error:
        raise UserError(f"the description of a model is incomplete or malformed ({error}).") from error
    raise UserError(f"unknown kind of model '{description['kind']}'; it must be 'denoiser' or 'generator'.")


def save_model(path: Path, model: nn.Module, extra: Mapping[str, Any] | None = None) -> str:
    """Writes the model and ``extra`` (plain values) to ``path``; returns the file's digest."""
    metadata = {"format": FORMAT, "model": describe_model(model), **(extra or {})}
    return write_tensors(path, model.state_dict(), metadata)


def load_model(path: Path) -> tuple[NetworkDenoiser | Generator, dict[str, Any]]:
    """Reads what ``save_model`` wrote: (model, the extra values). Raises ``UserError`` naming the file and what is wrong in it."""
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT or "model" not in metadata:
        raise UserError(f"{path}: is not a model file of format {FORMAT}; it may come from another version or be another kind of file.")
    try:
        model = model_from(metadata.pop("model"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    load_strictly(model, tensors, str(path))
    del metadata["format"]
    return model, metadata
