"""The feature space that a recipe's evaluation names."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

from fewstep.data import Dataset
from fewstep.denoisers import freeze
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace, fourier_features
from fewstep.metrics.inception import inception_space
from fewstep.networks import Classifier
from fewstep.networks.store import load_network
from fewstep.recipes import config
from fewstep.zoo import digit_features


def build_space(choice: config.FeaturesChoice, data: Dataset) -> FeatureSpace:
    """The space in which samples are compared; raises ``UserError`` where it does not fit the data, or its file or library is missing."""
    if isinstance(choice, config.FourierFeatures):
        extract = fourier_features(prod(data.shape), choice.count, choice.bandwidth, choice.seed)
        return FeatureSpace(f"fourier-{choice.count}-{choice.bandwidth:g}-{choice.seed}", extract)
    if isinstance(choice, config.InceptionFeatures):
        return inception_space(choice.weights, data.low, data.high)
    if isinstance(choice, config.ClassifierFeatures):
        return _trained(choice, data)
    if data.shape != (1, 8, 8):
        raise UserError("'evaluation.features.kind: digits-features' reads 8x8 digits; use 'fourier' for this data.")
    return _of(digit_features(), "digits-features", data)


def _trained(choice: config.ClassifierFeatures, data: Dataset) -> FeatureSpace:
    """The space of a network file that ``fewstep pretrain`` wrote, named after the file's content."""
    path = Path(choice.path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; make it by 'fewstep pretrain' with a recipe of a classifier, such as emoji32-features, or set 'evaluation.features.path'.")
    network = load_network(path)
    if not isinstance(network, Classifier):
        raise UserError(f"{path}: holds a {type(network).__name__}, not a classifier; set 'evaluation.features.path' to a model that a classification made.")
    if network.shape != data.shape:
        raise UserError(f"{path}: its classifier reads images of shape {network.shape}, the data has {data.shape}; set 'evaluation.features.path' or 'data' so that they agree.")
    return _of(network, f"classifier-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}", data)


def _of(network: Classifier, name: str, data: Dataset) -> FeatureSpace:
    freeze(network)
    return FeatureSpace(name, network.features, network.head, network.classes == data.classes)
