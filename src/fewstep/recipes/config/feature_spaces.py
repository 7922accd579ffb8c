"""Feature spaces in which a recipe may have samples compared; each makes its own."""

from __future__ import annotations

import abc
import hashlib
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import freeze
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace, fourier_features, placed
from fewstep.metrics.inception import inception_space
from fewstep.networks import FeatureNetwork
from fewstep.networks.kinds.network_files import load_network
from fewstep.recipes.config.section import Names, Section, Seed, WeightsPath
from fewstep.recipes.given import given_features
from fewstep.system.locations import absolute
from fewstep.values import Positive
from fewstep.zoo import digit_features


class _Features(Section, abc.ABC):
    @abc.abstractmethod
    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        """The space in which samples are compared, its network on ``device`` and its features where
        the samples are.

        Raises ``UserError`` where it does not fit the data, or its file or library is missing.
        """


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

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        return _of(*self._trained(data), data, device)

    def _trained(self, data: Dataset | SampleSpace) -> tuple[FeatureNetwork, str]:
        """The network of the file, and a name after the file's content."""
        path = Path(absolute(self.path))
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such file; make it by 'fewstep pretrain' with a recipe of a classifier, "
                "such as emoji32-features, or set 'evaluation.features.path'."
            )
        network = load_network(path)
        if not isinstance(network, FeatureNetwork):
            raise UserError(
                f"{path}: holds a {type(network).__name__}, not a classifier or a reader; set "
                "'evaluation.features.path' to a model that a classification or a reading made."
            )
        if network.shape != data.shape:
            raise UserError(
                f"{path}: its network reads images of shape {network.shape}, the data has {data.shape}; set "
                "'evaluation.features.path' or 'data' so that they agree."
            )
        return network, f"classifier-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


class InceptionFeatures(_Features):
    """Inception's 2,048 features, in which published distances are; needs the ``metrics`` extra.

    ``weights``: torch-fidelity's file, downloaded once unless given.
    """

    kind: Literal["inception"]
    weights: WeightsPath | None = None

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        return inception_space(self.weights, data.low, data.high, device)


class GivenFeatures(_Features):
    """A feature space of the caller's own, by its name (``recipes.given``)."""

    kind: Literal["given"]
    name: str = Field(min_length=1)

    def space(self, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> FeatureSpace:
        return given_features(self.name)


FeaturesChoice = Annotated[
    DigitFeatures | FourierFeatures | ClassifierFeatures | InceptionFeatures | GivenFeatures,
    Field(discriminator="kind"),
]


def _of(network: FeatureNetwork, name: str, data: Dataset | SampleSpace, device: torch.device | str) -> FeatureSpace:
    freeze(network).to(device)
    extract, head = placed(network.features, device), network.class_head()
    if head is None:
        return FeatureSpace(name, extract)
    return FeatureSpace(name, extract, placed(head, device), network.classes == data.classes)
