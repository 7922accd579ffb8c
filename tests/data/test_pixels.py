"""Laws of pixels: a picture is read as viewers show it, whichever way its file says so."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from fewstep.data.pixels import MAX_PIXELS, _orientation, decode, encode, over_white
from fewstep.errors import UserError
from image_kit import claiming, picture, png


def _array(content: bytes) -> np.ndarray:
    return np.asarray(decode(content, "x"))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _with_chunk(content: bytes, kind: bytes, body: bytes) -> bytes:
    """The PNG with a further chunk behind its header."""
    return content[:33] + _chunk(kind, body) + content[33:]


def _wide_gamut() -> bytes:
    """A profile of colours that are not sRGB's: its red is XYZ's own green."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The matrix columns of red and green are exchanged: tags of equal length, found by their names.
    table = {lab[132 + 12 * n : 136 + 12 * n]: 132 + 12 * n for n in range(struct.unpack(">I", lab[128:132])[0])}
    red, green = table[b"rXYZ"], table[b"gXYZ"]
    content = bytearray(lab)
    content[red + 4 : red + 12], content[green + 4 : green + 12] = lab[green + 4 : green + 12], lab[red + 4 : red + 12]
    return bytes(content)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(orientation, kind):
    shown = picture(0, 4, 6)
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(shown)))
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(_array(_saved(stored, kind, exif=exif, **options)), shown)


def test_a_jpeg_of_a_phone_is_turned():
    shown = np.zeros((32, 16, 3), dtype=np.uint8)
    shown[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(shown)))
    assert np.abs(_array(_saved(stored, "JPEG", quality=95, exif=exif)).astype(int) - shown).max() < 8


@pytest.mark.parametrize(
    "exif",
    [
        None,
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
        b"nonsense",
    ],
)
def test_exif_that_cannot_be_read_turns_nothing(exif):
    assert _orientation(exif) == 1


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt"])
def test_a_large_text_in_a_png_is_passed_over(kind):
    texts = PngImagePlugin.PngInfo()
    if kind == "iTXt":
        texts.add_itxt("Comment", "x" * 5_000_000, zip=True)
    else:
        texts.add_text("Comment", "x" * 5_000_000, zip=kind == "zTXt")
    assert np.array_equal(_array(_saved(Image.fromarray(picture(0)), "PNG", pnginfo=texts)), picture(0))


def test_a_profile_carries_colours_to_srgb():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [9, 9, 9]]], dtype=np.uint8)
    plain = _saved(Image.fromarray(colours), "PNG", icc_profile=_wide_gamut())
    shown = _array(plain).astype(int)
    # Red and green have exchanged their primaries; what is grey stays grey.
    assert np.abs(shown - colours[:, :, [1, 0, 2]]).max() <= 3
    alpha = np.concatenate([colours, np.array([[[255], [255], [0], [255], [255]]], dtype=np.uint8)], axis=2)
    over = _array(_saved(Image.fromarray(alpha), "PNG", icc_profile=_wide_gamut())).astype(int)
    assert over[0, 2].tolist() == [255, 255, 255]
    assert np.array_equal(np.delete(over, 2, axis=1), np.delete(shown, 2, axis=1))
    palette = Image.fromarray(colours).quantize(5)
    assert np.abs(_array(_saved(palette, "PNG", icc_profile=_wide_gamut())).astype(int) - shown).max() <= 1
    jpeg = _saved(Image.new("RGB", (16, 16), (255, 0, 0)), "JPEG", quality=95, icc_profile=_wide_gamut())
    assert np.abs(_array(jpeg).astype(int) - [0, 255, 0]).max() <= 5
    # Written anew it has no profile, so that it is not carried twice.
    assert np.array_equal(_array(encode(decode(plain, "x"))), shown)
    assert b"iCCP" not in encode(decode(plain, "x"))


def test_srgb_itself_and_profiles_that_cannot_be_used_change_no_pixel():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A camera's sRGB, whose red is a little off: rounding would move some colours by a level.
    red = 132 + 12 * next(n for n in range(99) if srgb[132 + 12 * n :].startswith(b"rXYZ"))
    (place,) = struct.unpack_from(">I", srgb, red + 4)
    near = bytearray(srgb)
    struct.pack_into(">i", near, place + 8, struct.unpack_from(">i", srgb, place + 8)[0] + 40)
    shown = picture(0, 64, 64)
    for profile in (srgb, bytes(near), b"no profile", _wide_gamut()[:200]):
        assert np.array_equal(_array(_saved(Image.fromarray(shown), "PNG", icc_profile=profile)), shown)
    grey = picture(0, 8, 8, 1)[:, :, 0]
    assert np.array_equal(_array(_saved(Image.fromarray(grey), "PNG", icc_profile=_wide_gamut()))[:, :, 0], grey)
    assert np.array_equal(_array(_with_chunk(png(picture(1)), b"iCCP", b"name\0\0not packed")), picture(1))


def test_a_large_profile_is_used_and_an_endless_one_is_refused():
    # Tags are found by their offsets: what follows the profile is passed over, and the length
    # stands first.
    profile = _wide_gamut() + b"\0" * 3_000_000
    profile = struct.pack(">I", len(profile)) + profile[4:]
    body = b"name\0\0" + zlib.compress(profile)
    assert (
        np.abs(
            _array(_with_chunk(png(np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8)), b"iCCP", body)).astype(int)
            - [0, 255, 0]
        ).max()
        <= 3
    )
    with pytest.raises(
        UserError, match=r"x: has a colour profile of more than 16,777,216 bytes; save the picture as sRGB"
    ):
        decode(_with_chunk(png(picture(0)), b"iCCP", b"name\0\0" + zlib.compress(b"\0" * 2**25)), "x")


def _deep_png(values: np.ndarray, colour: int, more: bytes = b"") -> bytes:
    """A PNG of 16 bits; ``colour`` 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + more
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def test_of_16_bits_the_upper_8_are_taken_in_grey_and_in_colour():
    values = np.array([[0, 255, 256, 40_000], [65_279, 65_280, 65_535, 1000]])
    upper = np.repeat((values >> 8)[:, :, None], 3, axis=2)
    assert np.array_equal(_array(_deep_png(values, 0)), upper)
    assert np.array_equal(_array(_deep_png(np.repeat(values[:, :, None], 3, axis=2), 2)), upper)
    opaque = np.full((2, 4, 1), 65_535)
    assert np.array_equal(_array(_deep_png(np.concatenate([values[:, :, None], opaque], axis=2), 4)), upper)
    assert np.array_equal(_array(_deep_png(np.concatenate([values[:, :, None]] * 3 + [opaque], axis=2), 6)), upper)
    pgm = b"P5 4 2 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(_array(pgm), upper)
    clear = _array(_deep_png(values, 0, _chunk(b"tRNS", struct.pack(">H", 1000)))).copy()
    assert clear[1, 3].tolist() == [255, 255, 255]
    clear[1, 3] = upper[1, 3]
    assert np.array_equal(clear, upper)


def test_cmyk_grey_and_one_bit_are_colours():
    cmyk = _saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(_array(cmyk).astype(int) - [255, 0, 0]).max() <= 5
    grey = picture(0, 4, 4, 1)[:, :, 0]
    assert np.array_equal(_array(png(grey)), np.repeat(grey[:, :, None], 3, axis=2))
    bits = (grey > 127) * np.uint8(255)
    assert np.array_equal(_array(_saved(Image.fromarray(bits).convert("1"), "PNG"))[:, :, 0], bits)


def test_a_phones_48_megapixels_are_read_and_a_bomb_is_not():
    assert MAX_PIXELS > 9248 * 6944
    # One bit a pixel, so that the test itself is small.
    shown = decode(_saved(Image.new("1", (8064, 6048), 1), "PNG"), "x")
    assert (shown.size, shown.getpixel((8063, 6047))) == ((8064, 6048), (255, 255, 255))
    with pytest.raises(
        UserError, match=r"x: claims 8200 x 8200 pixels, more than a picture here may have \(67,108,864\)"
    ):
        decode(claiming(8200, 8200), "x")
    with pytest.raises(UserError, match=r"x: has pixels of kind 'F', not 8 or 16 bits a channel"):
        decode(b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5), "x")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_a_tall_picture_over_white_is_that_of_the_whole(mode):
    """Bands of a picture are put over white one after another."""
    chance = np.random.default_rng(0)
    whole = Image.fromarray(chance.integers(0, 256, (600, 3, 4), dtype=np.uint8), "RGBA")
    picture = whole.quantize(20).convert(mode) if mode in ("P", "PA") else whole.convert(mode)
    if mode == "P":
        picture.info["transparency"] = 3
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    white.alpha_composite(layer)
    assert np.array_equal(np.asarray(over_white(picture)), np.asarray(white.convert("RGB")))
