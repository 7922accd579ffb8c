"""Samples as PNG files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from torch import Tensor

from fewstep.files import write_bytes
from fewstep.runs.plane import scatter_png


def write_samples(path: Path, samples: Tensor, low: float, high: float, columns: int = 10, data: Tensor | None = None) -> None:
    """Writes images (N, C, H, W) as a grid of enlarged tiles, or points (N, 2) as a scatter plot, over those of ``data`` (M, 2) if given; values in [low, high]."""
    if samples.ndim == 2:
        write_bytes(path, scatter_png(samples, low, high, data))
    else:
        write_bytes(path, _grid(samples, low, high, columns))


def write_array(path: Path, samples: Tensor) -> None:
    """Writes the samples as the array ``samples`` of a compressed .npz."""
    import numpy as np

    stream = io.BytesIO()
    np.savez_compressed(stream, samples=samples.numpy())
    write_bytes(path, stream.getvalue())


def _grid(samples: Tensor, low: float, high: float, columns: int) -> bytes:
    from PIL import Image

    count, channels, height, width = samples.shape
    zoom, gap = max(1, 32 // height), 2
    rows = math.ceil(count / columns)
    pixels = ((samples.clamp(low, high) - low) / (high - low) * 255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    tall, wide = height * zoom + gap, width * zoom + gap
    canvas = torch.full((channels, rows * tall + gap, columns * wide + gap), 64, dtype=torch.uint8)
    for index in range(count):
        top, left = gap + index // columns * tall, gap + index % columns * wide
        canvas[:, top : top + height * zoom, left : left + width * zoom] = pixels[index]
    array = canvas[0].numpy() if channels == 1 else canvas.permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()
