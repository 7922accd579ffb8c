"""Feature spaces in which a recipe may have samples compared; each makes its own."""

from __future__ import annotations

import abc
import hashlib
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import freeze
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace, fourier_features, placed, placed_readings
from fewstep.metrics.inception import inception_space, weights_file
from fewstep.networks import FeatureNetwork, Reader
from fewstep.networks.kinds.network_files import load_network
from fewstep.recipes.config.section import Names, Section, Seed, WeightsPath
from fewstep.recipes.given import given_features
from fewstep.system.locations import absolute
from fewstep.values import Positive
from fewstep.zoo import digit_features, scenes_reader
from fewstep.zoo.clip import ClipFolder


class _Features(Section, abc.ABC):
    @abc.abstractmethod
    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        """The space in which samples are compared, its network on ``device`` and its features where
        the samples are.

        Raises ``UserError`` where it does not fit the data, or its file or library is missing.
        """

    @property
    def network_file(self) -> str | None:
        """The file of a network of ours that is the space; None for others."""
        return None

    @property
    def clip_folder(self) -> str | None:
        """The folder of the CLIP model that is the space; None for others."""
        return None


class DigitFeatures(_Features):
    kind: Annotated[Literal["digits-features"], Names("shipped")]

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        if data.shape != (1, 8, 8):
            raise UserError(
                "'evaluation.features.kind: digits-features' reads 8x8 digits; use 'fourier' for this data."
            )
        return _of(digit_features(), "digits-features", data, device)


class FourierFeatures(_Features):
    kind: Literal["fourier"]
    count: int = Field(64, ge=1, le=65_536)
    bandwidth: Positive = 1.0
    seed: Seed = 0

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        extract = fourier_features(prod(data.shape), self.count, self.bandwidth, self.seed)
        return FeatureSpace(f"fourier-{self.count}-{self.bandwidth:g}-{self.seed}", extract)


class ClassifierFeatures(_Features):
    """``path``: a network file that ``fewstep pretrain`` wrote for a classifier or a reader; its
    last hidden layer is the space. A classifier judges classes.
    """

    kind: Literal["classifier"]
    path: WeightsPath

    @property
    def network_file(self) -> str | None:
        return self.path

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        network, name = _trained(self.path, "a classifier, such as emoji32-features", data)
        if not isinstance(network, FeatureNetwork):
            raise UserError(
                f"{self.path}: holds a {type(network).__name__}, not a classifier or a reader; set "
                "'evaluation.features.path' to a model that a classification or a reading made."
            )
        return _of(network, f"classifier-{name}", data, device)


class ReaderFeatures(_Features):
    """The last hidden layer of a reader, which tells a picture's attributes besides: by them
    prompt accuracy is measured.

    Either ``name``, a reader that ships, or ``path``, a file that ``fewstep pretrain`` wrote for a
    reader.
    """

    kind: Literal["reader"]
    path: WeightsPath | None = None
    name: Annotated[Literal["scenes"] | None, Names("shipped", file="scenes-features")] = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.path is None) == (self.name is None):
            raise ValueError("give either 'name', a reader that ships, or 'path', a reader's file")
        return self

    @property
    def network_file(self) -> str | None:
        return self.path

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        if self.path is None:
            return _of(_fitting(scenes_reader(), "the shipped reader of scenes", data), "scenes-features", data, device)
        network, name = _trained(self.path, "a reader, such as scenes-features", data)
        if not isinstance(network, Reader):
            raise UserError(
                f"{self.path}: holds a {type(network).__name__}, not a reader; set 'evaluation.features.path' to a "
                "model that a reading made."
            )
        return _of(network, f"reader-{name}", data, device)


class InceptionFeatures(_Features):
    """Inception's 2,048 features, in which published distances are; needs the ``metrics`` extra.

    ``weights``: torch-fidelity's file, downloaded once unless given.
    """

    kind: Literal["inception"]
    weights: Annotated[str, Names("weights", read=weights_file)] | None = None

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        return inception_space(self.weights, data.low, data.high, device)


class ClipFeatures(_Features):
    """The embeddings of pictures by the CLIP model in a local folder, ``path``."""

    kind: Literal["clip"]
    path: WeightsPath

    @property
    def clip_folder(self) -> str | None:
        return self.path

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        if len(data.shape) != 3 or data.shape[0] not in (1, 3):
            raise UserError(
                f"'evaluation.features.kind: clip' reads pictures, and samples have the shape {data.shape}; use "
                "another kind."
            )
        return ClipFolder.find(absolute(self.path)).space(data.low, data.high, device)


class GivenFeatures(_Features):
    """A feature space of the caller's own, by its name (``recipes.given``)."""

    kind: Literal["given"]
    name: str = Field(min_length=1)

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        return given_features(self.name)


FeaturesChoice = Annotated[
    DigitFeatures
    | FourierFeatures
    | ClassifierFeatures
    | ReaderFeatures
    | InceptionFeatures
    | ClipFeatures
    | GivenFeatures,
    Field(discriminator="kind"),
]


def _trained(named: str, what: str, data: Dataset | SampleSpace) -> tuple[nn.Module, str]:
    """The network of a file, and a name after the file's content; ``what``: whose recipe makes such
    a file.
    """
    path = Path(absolute(named))
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; make it by 'fewstep pretrain' with a recipe of {what}, or set "
            "'evaluation.features.path'."
        )
    network = load_network(path)
    if isinstance(network, FeatureNetwork):
        _fitting(network, f"{path}: its network", data)
    return network, hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _fitting(network: FeatureNetwork, called: str, data: Dataset | SampleSpace) -> FeatureNetwork:
    if network.shape != data.shape:
        raise UserError(
            f"{called} reads images of shape {network.shape}, the data has {data.shape}; set 'evaluation.features' "
            "or 'data' so that they agree."
        )
    return network


def _of(network: FeatureNetwork, name: str, data: Dataset | SampleSpace, device: torch.device | str) -> FeatureSpace:
    freeze(network).to(device)
    head = network.class_head()
    return FeatureSpace(
        name,
        placed(network.features, device),
        None if head is None else placed(head, device),
        head is not None and network.classes == data.classes,
        placed_readings(network, device) if isinstance(network, Reader) else None,
    )
