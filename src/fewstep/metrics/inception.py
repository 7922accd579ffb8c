"""Inception's features, in which published Frechet distances are: torch-fidelity's network, which
reproduces the original graph and its resizing to 299x299.

As EDM measures its teachers: samples in [-1, 1] become bytes by trunc(127.5 x + 128), grey ones
become three equal channels, and the features are the 2,048 after the last pooling. Class logits,
for the inception score, are these times the last layer's weight, without its bias.

torch-fidelity reads its weights by ``torch.load`` with code allowed. Here the file is read first
with nothing but tensors allowed, which refuses any other content, and only then handed over.
"""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace, placed
from fewstep.system.caches import content_digest
from fewstep.system.locations import absolute

DIMENSIONS = 2048
# The leading digits of the file's SHA-256, which its name has as well.
_DIGEST = "6726825d"


def inception_space(
    weights: Path | str | None = None, low: float = -1.0, high: float = 1.0, device: torch.device | str = "cpu"
) -> FeatureSpace:
    """Inception as a feature space for images (B, 1 or 3, H, W) in [``low``, ``high``];
    ``weights``: its file, downloaded once into torch's cache unless given.

    ``device``: where the network is; features are where the samples are. Raises ``UserError`` where
    torch-fidelity is missing, the weights cannot be had, or hold anything but tensors.
    """
    network = _network(weights).to(device)

    def extract(samples: Tensor) -> Tensor:
        (features,) = network(as_bytes(samples, low, high))
        return features

    def head(features: Tensor) -> Tensor:
        return features @ network.fc.weight.to(features).T

    return FeatureSpace("inception", placed(extract, device), head, resizes=True)


def as_bytes(samples: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Images (B, 1 or 3, H, W) in [low, high] as the (B, 3, H, W) uint8 that an image file would
    hold; bytes read as x / 127.5 - 1 come back as they were.
    """
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise UserError(
            f"Inception reads images (B, 1 or 3, H, W), got samples of shape {tuple(samples.shape)}; set "
            "'evaluation.features' to another kind for this data."
        )
    scaled = (samples - low) * (2 / (high - low)) - 1
    return (scaled * 127.5 + 128).clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def weights_file(weights: Path | str | None) -> Path:
    """Where Inception's weights are: in ``weights``, or in torch's cache, to which they are
    downloaded once.

    Raises ``UserError`` where torch-fidelity is missing and where the weights cannot be had.
    """
    path = _downloaded(_fidelity().URL_INCEPTION_V3) if weights is None else Path(absolute(str(weights)))
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; check 'evaluation.features.weights', or leave it out to "
            "download the weights."
        )
    return path


def _fidelity() -> Any:
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except ImportError as error:
        raise UserError("Inception's features need torch-fidelity: pip install 'fewstep[metrics]'.") from error
    return feature_extractor_inceptionv3


def _network(weights: Path | str | None) -> Any:
    fidelity, path = _fidelity(), weights_file(weights)
    try:
        with warnings.catch_warnings():
            # Of pickles that it may not understand torch warns before it refuses them.
            warnings.simplefilter("ignore")
            torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path}: does not hold weights alone, and is not read; get torch-fidelity's "
            f"{Path(fidelity.URL_INCEPTION_V3).name} anew."
        ) from error
    return fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", [str(DIMENSIONS)], feature_extractor_weights_path=str(path)
    )


def _downloaded(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        try:
            os.makedirs(path.parent, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_DIGEST, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"{url}: Inception's weights could not be downloaded ({error}); fetch the file elsewhere "
                "and set 'evaluation.features.weights' to it."
            ) from error
    if not content_digest(path).startswith(_DIGEST):
        raise UserError(
            f"{path}: was cut or altered since it was downloaded; remove it to download it again, or set "
            "'evaluation.features.weights'."
        )
    return path
