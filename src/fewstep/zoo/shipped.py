"""The weights in ``zoo/weights``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import nn

from fewstep.denoisers import NetworkDenoiser, freeze, load_model
from fewstep.errors import UserError
from fewstep.networks import DigitClassifier, ImageReader
from fewstep.networks.kinds.network_files import load_network

SHIPPED_DENOISERS = ("digits", "mixture2d")
SHIPPED_PIPELINES = ("scenes",)
SHIPPED_RANGES = {"digits": (-1.0, 1.0), "mixture2d": (-4.417694091796875, 4.417694091796875)}
"""In which their samples are: that of the data of the recipes that made them."""


def shipped_denoiser(name: str) -> NetworkDenoiser:
    """A shipped teacher by name, frozen."""
    if name not in SHIPPED_DENOISERS:
        raise UserError(f"there is no shipped teacher '{name}'; it must be one of {', '.join(SHIPPED_DENOISERS)}.")
    with resources.as_file(resources.files("fewstep.zoo") / "weights" / f"{name}.safetensors") as path:
        model, _ = load_model(path)
    assert isinstance(model, NetworkDenoiser)
    return freeze(model)


def shipped_pipeline(name: str) -> Path:
    """The folder of a shipped text-to-image model, which diffusers' ``StableDiffusionPipeline``
    opens; its files must lie on disk, as an installed package's do.

    Raises ``UserError`` for a name that there is not.
    """
    if name not in SHIPPED_PIPELINES:
        raise UserError(f"there is no shipped pipeline '{name}'; it must be one of {', '.join(SHIPPED_PIPELINES)}.")
    return Path(__file__).parent / "weights" / name


def digits() -> NetworkDenoiser:
    """The teacher of 8x8 handwritten digits, (B, 1, 8, 8) in [-1, 1], 10 classes; made by
    ``digits-teacher``.
    """
    return shipped_denoiser("digits")


def mixture2d() -> NetworkDenoiser:
    """The teacher of ten Gaussians in the plane, (B, 2); made by ``mixture2d-teacher``."""
    return shipped_denoiser("mixture2d")


def scene_features() -> ImageReader:
    """The reader of scenes of one digit, (B, 3, 32, 32) in [-1, 1], which tells digit, colour, size
    and place; made by ``scenes-features``.
    """
    network = _network("scenes-features")
    assert isinstance(network, ImageReader)
    return network


def digit_features() -> DigitClassifier:
    """The classifier of digits whose last hidden layer is the feature space of the Frechet
    distance; made by ``digits-features``.
    """
    network = _network("digits-features")
    assert isinstance(network, DigitClassifier)
    return network


def _network(name: str) -> nn.Module:
    with resources.as_file(resources.files("fewstep.zoo") / "weights" / f"{name}.safetensors") as path:
        return freeze(load_network(path))
