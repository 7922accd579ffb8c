"""The weights in ``zoo/weights``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from fewstep.denoisers import NetworkDenoiser, freeze, load_model
from fewstep.errors import UserError
from fewstep.networks import DigitClassifier, Reader
from fewstep.networks.kinds.network_files import load_network

SHIPPED_DENOISERS = ("digits", "mixture2d")
SHIPPED_PIPELINES = ("scenes",)
SHIPPED_RANGES = {"digits": (-1.0, 1.0), "mixture2d": (-4.417694091796875, 4.417694091796875)}
"""In which their samples are: that of the data of the recipes that made them."""


@contextlib.contextmanager
def shipped_weights(name: str) -> Iterator[Path]:
    """The file of shipped weights ``name``, where it can be read as a file.

    Raises ``UserError`` where this installation has no such file.
    """
    with resources.as_file(resources.files("fewstep.zoo") / "weights" / f"{name}.safetensors") as path:
        if not path.is_file():
            raise UserError(f"this installation has no shipped weights '{name}' ({path}); install fewstep anew.")
        yield path


def shipped_denoiser(name: str) -> NetworkDenoiser:
    """A shipped teacher by name, frozen."""
    if name not in SHIPPED_DENOISERS:
        raise UserError(f"there is no shipped teacher '{name}'; it must be one of {', '.join(SHIPPED_DENOISERS)}.")
    with shipped_weights(name) as path:
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


def digit_features() -> DigitClassifier:
    """The classifier of digits whose last hidden layer is the feature space of the Frechet
    distance; made by ``digits-features``.
    """
    with shipped_weights("digits-features") as path:
        network = load_network(path)
    assert isinstance(network, DigitClassifier)
    return freeze(network)


def scenes_reader() -> Reader:
    """The reader of scenes, (B, 3, 32, 32) in [-1, 1]: its last hidden layer is the feature space
    of their Frechet distance, and it measures prompt accuracy; made by ``scenes-features``.
    """
    with shipped_weights("scenes-features") as path:
        network = load_network(path)
    assert isinstance(network, Reader)
    return freeze(network)
