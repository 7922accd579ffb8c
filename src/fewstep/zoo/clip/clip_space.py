"""CLIP's embeddings of pictures as a feature space."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.inception import as_bytes
from fewstep.zoo.clip.clip_folder import ClipFolder


def clip_space(path: Path | str, low: float, high: float, device: torch.device | str = "cpu") -> FeatureSpace:
    """The embeddings (B, d), of length 1, of images (B, 1 or 3, H, W) in [``low``, ``high``], which
    the CLIP model in a local folder reads as its own configuration says, of any size.

    They are taken of 8-bit pictures, and no gradient passes. Raises ``UserError`` for what is no
    folder of a CLIP model.
    """
    folder = ClipFolder.find(path)
    towers = folder.open().to(device)

    def extract(samples: Tensor) -> Tensor:
        from PIL import Image

        levels = as_bytes(samples.cpu(), low, high).permute(0, 2, 3, 1).contiguous().numpy()
        return towers.of_pictures([Image.fromarray(each) for each in levels]).to(samples.device)

    return FeatureSpace(f"clip-{folder.digest[:16]}", extract, resizes=True)


def check_pictures(shape: tuple[int, ...]) -> None:
    """Raises ``UserError`` unless samples of this shape are pictures."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(
            f"'evaluation.features.kind: clip' reads pictures, and samples have the shape {shape}; use another kind."
        )
