"""From the bytes of a picture to pixels, and back.

What a model sees is fixed here: red, green and blue of 8 bits each, transparent parts over white, a grey picture as three equal channels (or, with one channel asked for, colours by
their luma). A picture of more than 8 bits a channel is refused, since Pillow would clip it. Pictures come from anywhere, so a file must open as one of a few formats, and its size is
read before it is decoded: a few kilobytes can claim gigabytes of pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from fewstep.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

READING = 2
"""The version of the rules below. It is raised when a file's bytes become other pixels than before, so
that nothing that was read by older rules is taken for the same."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"})
# With the copies that are made on the way to an array, some 16 bytes each.
MAX_PIXELS = 2**25
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def decode(content: bytes, where: str) -> Picture:
    """The picture in a file's bytes, as RGB over white. ``where`` names it in errors.

    Raises ``UserError`` for what is no picture, is cut short, has more than ``MAX_PIXELS`` pixels, or more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{where}: claims {width} x {height} pixels, more than a picture here may have ({MAX_PIXELS:,}); leave it out, or make it smaller.")
            if picture.mode not in _MODES:
                raise UserError(f"{where}: has pixels of kind '{picture.mode}', not 8 bits a channel; convert it to an ordinary RGB or grey picture.")
            picture.load()
            return over_white(picture)
    # Pillow warns of a bomb before it refuses one; either way it is too large.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{where}: claims more pixels than a picture here may have ({MAX_PIXELS:,}); leave it out, or make it smaller.") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError) as error:
        raise UserError(f"{where}: is no readable PNG, JPEG, WebP, BMP or PPM picture; replace it or leave it out.") from error


def over_white(picture: Picture) -> Picture:
    """The picture as RGB, its transparent parts over white."""
    from PIL import Image

    # A picture converted to its own mode would be copied.
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    white.alpha_composite(layer)
    return white.convert("RGB")


def squared(picture: Picture, size: int) -> Picture:
    """The largest centred square of the picture, resized to ``size`` pixels a side by Lanczos' filter; the picture itself if it is that already."""
    from PIL import Image

    if picture.size == (size, size):
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    # Cropped first: within a box, the filter would still see what lies beside it.
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def pixels_of(picture: Picture, channels: int = 3) -> np.ndarray:
    """Pixels (C, H, W), uint8; ``channels`` 3, or 1 for the luma."""
    if channels == 1:
        return np.asarray(picture.convert("L"), dtype=np.uint8)[None].copy()
    return np.ascontiguousarray(np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1))


def encode(picture: Picture) -> bytes:
    """The picture as a PNG without compression, as EDM's sets have it: they are read many times and written once."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=0)
    return stream.getvalue()
