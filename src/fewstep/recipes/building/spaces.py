"""The feature space that a recipe's evaluation names."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import torch

from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import freeze
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace, fourier_features, placed
from fewstep.metrics.inception import inception_space
from fewstep.networks import Classifier
from fewstep.networks.kinds.network_files import load_network
from fewstep.recipes import config
from fewstep.recipes.given import given_features
from fewstep.system.locations import absolute
from fewstep.zoo import digit_features


def build_space(
    choice: config.FeaturesChoice, data: Dataset | SampleSpace, device: torch.device | str = "cpu"
) -> FeatureSpace:
    """The space in which samples are compared, its network on ``device`` and its features where the
    samples are.

    Raises ``UserError`` where it does not fit the data, or its file or library is missing.
    """
    if isinstance(choice, config.FourierFeatures):
        extract = fourier_features(prod(data.shape), choice.count, choice.bandwidth, choice.seed)
        return FeatureSpace(f"fourier-{choice.count}-{choice.bandwidth:g}-{choice.seed}", extract)
    if isinstance(choice, config.GivenFeatures):
        return given_features(choice.name)
    if isinstance(choice, config.InceptionFeatures):
        return inception_space(choice.weights, data.low, data.high, device)
    if isinstance(choice, config.ClassifierFeatures):
        return _of(*_trained(choice, data), data, device)
    if data.shape != (1, 8, 8):
        raise UserError("'evaluation.features.kind: digits-features' reads 8x8 digits; use 'fourier' for this data.")
    return _of(digit_features(), "digits-features", data, device)


def _trained(choice: config.ClassifierFeatures, data: Dataset | SampleSpace) -> tuple[Classifier, str]:
    """The network of a file that ``fewstep pretrain`` wrote, and a name after the file's
    content.
    """
    path = Path(absolute(choice.path))
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; make it by 'fewstep pretrain' with a recipe of a classifier, "
            "such as emoji32-features, or set 'evaluation.features.path'."
        )
    network = load_network(path)
    if not isinstance(network, Classifier):
        raise UserError(
            f"{path}: holds a {type(network).__name__}, not a classifier; set 'evaluation.features.path' to "
            "a model that a classification made."
        )
    if network.shape != data.shape:
        raise UserError(
            f"{path}: its classifier reads images of shape {network.shape}, the data has {data.shape}; set "
            "'evaluation.features.path' or 'data' so that they agree."
        )
    return network, f"classifier-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _of(network: Classifier, name: str, data: Dataset | SampleSpace, device: torch.device | str) -> FeatureSpace:
    freeze(network).to(device)
    return FeatureSpace(
        name, placed(network.features, device), placed(network.head, device), network.classes == data.classes
    )
