"""Samples as pictures, of the kind that the file's name says, and what stands under them: the
prompts that they were asked for by, or their classes.

A picture is a grid of samples. Its captions are a JSON file beside it, with the grid's measures:
the report cuts the picture by them.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.data.pixels import over_white
from fewstep.errors import UserError
from fewstep.runs.pictures.plane import scatter_png
from fewstep.system.files import write_bytes, write_text

GAP = 2
"""Pixels around each sample of a grid."""
_KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "BMP": {},
}


def write_samples(
    path: Path, samples: Tensor, low: float, high: float, columns: int = 10, data: Tensor | None = None
) -> None:
    """Writes images (N, C, H, W) as a grid of enlarged tiles, or points (N, 2) as a scatter plot,
    over those of ``data`` (M, 2) if given; values in [low, high].
    """
    check_picture(path)
    write_picture(
        path, scatter_png(samples, low, high, data) if samples.ndim == 2 else _grid(samples, low, high, columns)
    )


def write_captioned(
    path: Path, samples: Tensor, captions: Sequence[str], low: float, high: float, columns: int = 6
) -> None:
    """Writes images (N, C, H, W) with values in [low, high] as a grid of enlarged tiles, each with
    its caption below it, in as many lines as it takes; an empty caption is shown as "(empty)".
    """
    from PIL import Image, ImageDraw, ImageFont

    check_picture(path)
    gap, size, line = 8, 13, 16
    zoom = max(1, 160 // samples.shape[-1])
    tall, wide = samples.shape[-2] * zoom, samples.shape[-1] * zoom
    font = ImageFont.load_default(size)
    texts = [_broken(text or "(empty)", wide, font.getlength) for text in captions]
    lines = max(len(text) for text in texts)
    rows = math.ceil(len(texts) / columns)
    canvas = Image.new(
        "RGB", (columns * (wide + gap) + gap, rows * (tall + lines * line + 2 * gap) + gap), (255, 255, 255)
    )
    pen = ImageDraw.Draw(canvas)
    pixels = _pixels(samples, low, high).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    for index, text in enumerate(texts):
        left, top = gap + index % columns * (wide + gap), gap + index // columns * (tall + lines * line + 2 * gap)
        tile = Image.fromarray(pixels[index].contiguous().numpy()).resize((wide, tall), Image.Resampling.NEAREST)
        canvas.paste(tile, (left, top))
        for number, words in enumerate(text):
            pen.text((left, top + tall + 2 + number * line), words, fill=(0, 0, 0), font=font)
    stream = io.BytesIO()
    canvas.save(stream, format="PNG")
    write_picture(path, stream.getvalue())


def check_picture(path: Path) -> str:
    """The format that a picture's name says. Raises ``UserError`` for a name that says none."""
    kind = _KINDS.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(f"{path}: is no name of a picture; give one that ends in {', '.join(_KINDS)}.")
    return kind


def write_picture(path: Path, png: bytes) -> None:
    """Writes a PNG's picture in the format that the file's name says: JPEG with little loss, the
    others with none.
    """
    from PIL import Image

    kind = check_picture(path)
    if kind == "PNG":
        write_bytes(path, png)
        return
    stream = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        try:
            over_white(picture).save(stream, format=kind, **_OPTIONS[kind])
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: a picture of {picture.width} x {picture.height} pixels cannot be written as "
                f"{kind} ({error}); give a name that ends in .png."
            ) from error
    write_bytes(path, stream.getvalue())


def captions_below(owner: Conditions, numbers: Tensor | None, names: Sequence[str] = ()) -> list[str]:
    """The caption of each of the conditions ``numbers`` (n,): its prompt, or its class' name of
    ``names``, or its number where it has neither. None without conditions.
    """
    if numbers is None or not owner.count:
        return []
    known = owner.texts or names
    return [known[number] if number < len(known) else f"class {number}" for number in numbers.tolist()]


def write_captions(picture: Path, captions: Sequence[str], columns: int = 10) -> None:
    """Writes the captions of the samples in ``picture``, a grid of so many columns, beside it;
    nothing where there are none.
    """
    if captions:
        content = {"columns": columns, "gap": GAP, "captions": list(captions)}
        write_text(picture.with_suffix(".json"), json.dumps(content) + "\n")


def picture_png(sample: Tensor, low: float, high: float) -> bytes:
    """The PNG of one image (C, H, W) with values in [low, high], a pixel a value, and nothing
    around it.
    """
    return _png_of(_pixels(sample, low, high))


def check_array(path: Path) -> None:
    """Raises ``UserError`` for a name that is not an .npz's."""
    if Path(path).suffix.lower() != ".npz":
        raise UserError(f"{path}: samples are written as an .npz; give a name that ends in .npz.")


def write_array(path: Path, samples: Tensor) -> None:
    """Writes the samples as the array ``samples`` of a compressed .npz."""
    import numpy as np

    check_array(path)
    stream = io.BytesIO()
    np.savez_compressed(stream, samples=samples.numpy())
    write_bytes(path, stream.getvalue())


def _broken(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    """The text in lines of at most ``width``, broken at spaces."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and length(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pixels(samples: Tensor, low: float, high: float) -> Tensor:
    return ((samples.clamp(low, high) - low) / (high - low) * 255).round().to(torch.uint8)


def _png_of(pixels: Tensor) -> bytes:
    """The PNG of pixels (C, H, W), uint8."""
    from PIL import Image

    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def _grid(samples: Tensor, low: float, high: float, columns: int) -> bytes:
    count, channels, height, width = samples.shape
    zoom, gap = max(1, 32 // height), GAP
    rows = math.ceil(count / columns)
    pixels = _pixels(samples, low, high)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    tall, wide = height * zoom + gap, width * zoom + gap
    canvas = torch.full((channels, rows * tall + gap, columns * wide + gap), 64, dtype=torch.uint8)
    for index in range(count):
        top, left = gap + index // columns * tall, gap + index % columns * wide
        canvas[:, top : top + height * zoom, left : left + width * zoom] = pixels[index]
    return _png_of(canvas)
