"""From the bytes of a picture to pixels, and back.

What a model sees is what a viewer shows, in red, green and blue of 8 bits each. A picture is turned
as its EXIF says (the ``exif`` of JPEG and WebP, ``eXIf`` of PNG). Its colours are carried from its
ICC profile to sRGB, where Pillow was built with LittleCMS; a profile that moves no colour by more
than two levels is sRGB itself, and a profile that cannot be used is passed over, as viewers do. Of
16 bits the upper 8 are taken, in grey and in colour alike. Transparent parts are over white, and a
grey picture is three equal channels (with one channel asked for, colours become their luma). The
first picture of a file that has several is the picture. PNG's gAMA and cHRM are not applied.

Pictures come from anywhere, so a file must open as one of a few formats, and its size is read
before it is decoded: a few kilobytes can claim gigabytes of pixels. Texts in a PNG are not unpacked
at all.
"""

from __future__ import annotations

import io
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fewstep.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageCms import ImageCmsTransform

READING = 2
"""The version of the rules below.

It is raised when a file's bytes become other pixels than before, so that nothing that was read by
older rules is taken for the same.
"""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"})
# A phone's 64 megapixels. With the copies on the way to an array a pixel takes some 16 bytes: a
# GiB.
MAX_PIXELS = 2**26
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
# Kinds of 16 bits a pixel; Pillow gives a PPM of more than 8 bits as "I", scaled to 16.
_DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I"})
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_MOST_PROFILE = 2**24
# Rows of a picture that are laid over white at a time.
_BAND = 256
_SAME_LEVELS = 2
_ORIENTATION = 0x0112


def reading_rules() -> str:
    """The version of the rules above on this machine: files and rules together decide the pixels.

    It changes when a file's bytes become other pixels than before, so that nothing that was read by
    other rules is taken for the same.
    """
    from PIL import features

    return "2" if features.check("littlecms2") else "2, no colour management"


def decode(content: bytes, where: str) -> Picture:
    """The picture in a file's bytes, as RGB over white. ``where`` names it in errors.

    Raises ``UserError`` for what is no picture, is cut short, has more than ``MAX_PIXELS`` pixels,
    or pixels of a kind that has no one look, such as floats.
    """
    from PIL import Image

    profile: bytes | None = None
    if content.startswith(_PNG):
        content, profile = _without_texts(content, where)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{where}: claims {width} x {height} pixels, more than a picture here may have "
                    f"({MAX_PIXELS:,}); leave it out, or make it smaller."
                )
            if picture.mode not in _MODES | _DEEP_MODES:
                raise UserError(
                    f"{where}: has pixels of kind '{picture.mode}', not 8 or 16 bits a channel; convert it "
                    "to an ordinary RGB or grey picture."
                )
            picture.load()
            profile = profile or picture.info.get("icc_profile")
            shown = _managed(_turned(_of_eight_bits(picture), _orientation(picture.info.get("exif"))), profile)
            shown = over_white(shown)
            # What is written of it later must not carry a profile or an orientation that has been
            # applied.
            shown.info.clear()
            return shown
    # Pillow warns of a bomb before it refuses one; either way it is too large.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{where}: claims more pixels than a picture here may have ({MAX_PIXELS:,}); leave it out, or "
            "make it smaller."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError) as error:
        raise UserError(
            f"{where}: is no readable PNG, JPEG, WebP, BMP or PPM picture; replace it or leave it out."
        ) from error


def _without_texts(content: bytes, where: str) -> tuple[bytes, bytes | None]:
    """A PNG without its texts and its colour profile, and that profile.

    What is wrong with it is left for the decoder to find.
    """
    kept, begin, position, profile = [], 0, len(_PNG), None
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            break
        if kind in _TEXTS or kind == b"iCCP":
            kept.append(content[begin:position])
            begin = end
            if kind == b"iCCP":
                profile = _unpacked_profile(content[position + 8 : end - 4], where)
        position = end
    return (b"".join([*kept, content[begin:]]) if kept else content), profile


def _unpacked_profile(chunk: bytes, where: str) -> bytes | None:
    """The profile in the body of an iCCP chunk: a name, a zero, the method's number, and the packed
    profile.
    """
    packed = chunk.partition(b"\0")[2][1:]
    try:
        profile = zlib.decompressobj().decompress(packed, _MOST_PROFILE + 1)
    except zlib.error:
        return None
    if len(profile) > _MOST_PROFILE:
        raise UserError(
            f"{where}: has a colour profile of more than {_MOST_PROFILE:,} bytes; save the picture as sRGB, "
            "or leave it out."
        )
    return profile


def _of_eight_bits(picture: Picture) -> Picture:
    """The picture, the upper 8 of its bits where it has 16 of grey."""
    from PIL import Image

    if picture.mode not in _DEEP_MODES:
        return picture
    values = np.asarray(picture)
    grey = Image.fromarray((values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        # One value of the 65,536 is transparent; of the 256 it might be several.
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _orientation(exif: bytes | None) -> int:
    """The orientation, 1 to 8, that EXIF data gives in its first directory.

    1 where it says none that can be read.
    """
    body = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(body[:4])
    if order is None or len(body) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", body, 4)
    if start + 2 > len(body):
        return 1
    (entries,) = struct.unpack_from(order + "H", body, start)
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(body) - 11), 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", body, entry)
        if tag == _ORIENTATION:
            return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    return 1


def _turned(picture: Picture, orientation: int) -> Picture:
    """The picture as a viewer turns it."""
    from PIL import Image

    turn = Image.Transpose
    moves = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return picture.transpose(moves[orientation]) if orientation in moves else picture


def _managed(picture: Picture, profile: bytes | None) -> Picture:
    """The picture in sRGB, with its transparency; as it is where it has no profile that can be
    used.
    """
    if not profile:
        return picture
    if picture.mode in ("P", "PA", "1", "YCbCr"):
        grey = picture.mode == "1"
        picture = picture.convert("L" if grey else "RGBA" if picture.has_transparency_data else "RGB")
    elif picture.has_transparency_data and picture.mode in ("L", "RGB"):
        picture = picture.convert("LA" if picture.mode == "L" else "RGBA")
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None
    colours = "L" if picture.mode in ("L", "LA") else "CMYK" if picture.mode == "CMYK" else "RGB"
    transform = _to_srgb(profile, colours)
    if transform is None:
        return picture
    managed = transform.apply(picture if picture.mode == colours else picture.convert(colours))
    if alpha is not None:
        managed.putalpha(alpha)
    return managed


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, colours: str) -> ImageCmsTransform | None:
    """What carries pixels of kind ``colours`` from a profile to sRGB.

    None for sRGB itself and for what cannot be used: another kind of colours, or no profile at all.
    """
    from PIL import Image, ImageCms, features

    if not features.check("littlecms2"):
        return None
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if found.profile.xcolor_space.strip() != {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[colours]:
            return None
        transform = ImageCms.buildTransform(found, ImageCms.createProfile("sRGB"), colours, "RGB")
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None
    if colours == "CMYK":
        return transform
    levels = np.linspace(0, 255, 17 if colours == "RGB" else 256).round().astype(np.uint8)
    cube = (
        np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(17, -1, 3) if colours == "RGB" else levels[None]
    )
    before = Image.fromarray(cube)
    moved = np.asarray(transform.apply(before), dtype=np.int64) - np.asarray(before.convert("RGB"), dtype=np.int64)
    return transform if abs(moved).max() > _SAME_LEVELS else None


def over_white(picture: Picture) -> Picture:
    """The picture as RGB, its transparent parts over white."""
    from PIL import Image

    # A picture converted to its own mode would be copied.
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    width, height = picture.size
    shown = Image.new("RGB", picture.size)
    # In bands: whole, the layers of a large picture would be three pictures beside it.
    for top in range(0, height, _BAND):
        band = picture.crop((0, top, width, min(top + _BAND, height)))
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        white.alpha_composite(band if band.mode == "RGBA" else band.convert("RGBA"))
        shown.paste(white.convert("RGB"), (0, top))
    return shown


def squared(picture: Picture, size: int) -> Picture:
    """The largest centred square of the picture, resized to ``size`` pixels a side by Lanczos'
    filter; the picture itself if it is that already.
    """
    from PIL import Image

    if picture.size == (size, size):
        return picture
    left, top, side = _square_in(*picture.size)
    # Cropped first: within a box, the filter would still see what lies beside it.
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def centre_patch(picture: Picture, side: int) -> Picture:
    """The ``side`` x ``side`` pixels in the picture's centre; the picture itself where it is
    smaller in either direction, as DMD2's Patch-FID has it.

    Where the centre is between two pixels, the half is rounded to the even one, as torchvision
    does.
    """
    width, height = picture.size
    if min(width, height) < side:
        return picture
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def sizes_of(height: int, width: int, size: int | None) -> tuple[int, int, int, int, int, int]:
    """What ``squared`` does with a picture, as SDXL is told of it (``Dataset.sizes``): its height
    and width, how much was cut off at the top and at the left, in pixels of the resized picture,
    and height and width then. ``size`` is None for a picture that stays as it is.
    """
    if size is None:
        return height, width, 0, 0, height, width
    left, top, side = _square_in(width, height)
    return height, width, round(top * size / side), round(left * size / side), size, size


def _square_in(width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of the largest centred square."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def pixels_of(picture: Picture, channels: int = 3) -> np.ndarray:
    """Pixels (C, H, W), uint8; ``channels`` 3, or 1 for the luma."""
    if channels == 1:
        return np.asarray(picture.convert("L"), dtype=np.uint8)[None].copy()
    return np.ascontiguousarray(np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1))


def encode(picture: Picture) -> bytes:
    """The picture as a PNG without compression, as EDM's sets have it: they are read many times and
    written once.
    """
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=0)
    return stream.getvalue()
