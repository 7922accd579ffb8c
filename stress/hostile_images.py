"""Image sets with something wrong in them, as a zip or a folder, each with a command that reads it
(see ``hostile.py``).
"""

from __future__ import annotations

import io
import json
import os
import random
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, PngImagePlugin

from hostile_values import Stock, mutate


def png(width: int, height: int, colour: int = 2, data: bytes | None = None) -> bytes:
    """A PNG that claims a size, and holds ``data`` or that many zeros."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    if data is None:
        packer, row = zlib.compressobj(9), bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour])
        data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def picture(chance: random.Random, side: int = 16, suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", (side, side), chance.randbytes(side * side * 3)).save(stream, suffix)
    return stream.getvalue()


Entries = list[tuple[str | zipfile.ZipInfo, bytes]]
WRONG: tuple[str, ...] = (
    "name",
    "link",
    "claim",
    "bomb",
    "no picture",
    "cut",
    "turned",
    "labels",
    "labels",
    "twice",
    "sizes",
    "no zip",
    "encrypted",
    "folder",
    "whole",
    "long json",
)
WRONG += ("mac", "phone", "chunks", "turned picture", "no metadata", "fractions")
NAMES = (
    "../evil.png",
    "/etc/evil.png",
    "a/../../b.png",
    "C:\\x.png",
    "..\\x.png",
    "a" * 3000 + ".png",
    "ж\x1b[31m.png",
    "\n.png",
)
LONG = (
    "[" * 100_000,
    '{"labels": [' + "[]," * 20_000_000 + "0]}",
    "9" * 5000,
    '{"labels": NaN}',
    "\ud800",
    '{"labels": 1e999, "labels": 1}',
    "null",
)


def images(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """An image set with something wrong in it, as a zip or a folder."""
    path, what = here / "set.zip", chance.choice(WRONG)
    if what == "folder":
        return _folder(here, chance)
    entries: Entries = [(f"0000{k % 2}/img{k}.png", picture(chance)) for k in range(6)]
    _spoil(entries, what, chance)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            _write_quietly(archive, name, content)
    path.write_bytes(_spoilt(bytearray(path.read_bytes()), what, chance))
    return what, _of_images(stock, here, path, chance)


def _spoil(entries: Entries, what: str, chance: random.Random) -> None:
    """What is wrong with the files in a zip."""
    match what:
        case "name":
            entries.append((chance.choice(NAMES), picture(chance)))
        case "link":
            entry = zipfile.ZipInfo("link.png")
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            entries.append((entry, b"/etc/passwd"))
        case "claim":
            entries[chance.randrange(6)] = (
                "a.png",
                png(chance.choice((60_000, 2**31 - 1, 0)), 60_000, data=zlib.compress(b"0" * 100)),
            )
        case "bomb":
            side = chance.choice((3000, 5000, 8190))
            entries[0] = ("00000/a.png", png(side, side, chance.choice((0, 2, 6))))
        case "no picture":
            entries[chance.randrange(6)] = (
                f"00000/a{chance.choice(('.png', '.jpg', '.webp', '.bmp', '.ppm'))}",
                _no_picture(chance),
            )
        case "labels":
            labels: Any = {
                "labels": [[str(name), k] for k, (name, _) in enumerate(entries)],
                "classes": [f"<script>{k}</script>" for k in range(6)],
            }
            mutate(labels, chance)
            entries.append(("dataset.json", json.dumps(labels).encode("utf-8", "surrogatepass")))
        case "long json":
            entries.append(("dataset.json", chance.choice(LONG).encode("utf-8", "surrogatepass")))
        case "twice":
            entries.append(entries[0])
        case "sizes":
            entries[3] = ("00001/b.png", picture(chance, 8))
        case _:
            _spoil_as_cameras_and_viewers_do(entries, what, chance)


def _spoil_as_cameras_and_viewers_do(entries: Entries, what: str, chance: random.Random) -> None:
    """What is no attack: what other programs put into zips and pictures."""
    match what:
        case "mac":
            names = [name for name, _ in entries if isinstance(name, str)]
            entries += [(f"__MACOSX/{name[:6]}._{name[6:]}", b"\0\x05\x16\x07" + bytes(40)) for name in names]
            entries += [("00000/.DS_Store", bytes(100)), ("00001/._img1.png", picture(chance)), ("Thumbs.db", b"")]
        case "phone":
            entries[0] = ("00000/a.jpg", _photograph(chance))
        case "chunks":
            entries[0] = ("00000/a.png", _with_chunks(chance))
        case "turned picture":
            entries[0] = ("00000/a.jpg", _turned(chance))
        case "no metadata":
            folders = ("1", "2", "10", "a", "\u0436", " ")
            entries[:] = [(f"{chance.choice(folders)}/{k}.png", content) for k, (_, content) in enumerate(entries)]
        case "fractions":
            odd = (1.7, 1.0, True, "1", None, -1, 1e300, [1], float("nan"))
            labels = {
                "labels": [[str(name), chance.choice(odd) if k == 0 else k % 2] for k, (name, _) in enumerate(entries)]
            }
            entries.append(("dataset.json", json.dumps(labels).encode()))


def _photograph(chance: random.Random) -> bytes:
    """A phone's: 48 megapixels, turned by its metadata."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = chance.randrange(0, 10)
    Image.new("RGB", chance.choice(((8000, 6000), (6000, 8000))), (200, 100, 50)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def _with_chunks(chance: random.Random) -> bytes:
    """A PNG with a long text, a text that grows when it is read, or a colour profile that is
    none.
    """
    info = PngImagePlugin.PngInfo()
    match chance.randrange(3):
        case 0:
            info.add_text("a", "b" * chance.choice((10, 2_000_000, 80_000_000)), zip=True)
        case 1:
            info.add_itxt("a", "\u0436" * chance.choice((10, 3_000_000)), zip=True)
    stream = io.BytesIO()
    profile = chance.choice((None, b"", chance.randbytes(200), bytes(3_000_000)))
    Image.new("RGB", (16, 16)).save(stream, "PNG", pnginfo=info, icc_profile=profile)
    return stream.getvalue()


def _turned(chance: random.Random) -> bytes:
    """A picture whose orientation is a number that there is not, or whose metadata is noise."""
    stream = io.BytesIO()
    if chance.random() < 0.5:
        exif: Any = Image.Exif()
        exif[0x0112] = chance.choice((0, 6, 9, 65_535))
    else:
        exif = b"Exif\0\0" + chance.randbytes(60)
    Image.frombytes("RGB", (16, 16), chance.randbytes(768)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def _no_picture(chance: random.Random) -> bytes:
    texts = (
        b"",
        b"GIF89a" + bytes(50),
        b"<svg/>",
        chance.randbytes(500),
        b"\x89PNG\r\n\x1a\n",
        b"%PDF-1.4",
        b"P6\n9999999 9999999\n255\n",
    )
    return chance.choice((*texts, picture(chance, suffix="GIF"), picture(chance, suffix="TIFF")))


def _spoilt(content: bytearray, what: str, chance: random.Random) -> bytearray:
    """What is wrong with a zip's bytes."""
    if what == "cut":
        del content[chance.randrange(len(content)) :]
    elif what == "turned":
        for _ in range(chance.choice((1, 5, 50))):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif what == "no zip":
        return bytearray(
            chance.choice((b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), chance.randbytes(1000), b"Rar!\x1a\x07"))
        )
    elif what == "encrypted":
        for at in (6, content.find(b"PK\x01\x02") + 8):
            content[at] |= 1
    return content


def _write_quietly(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo, content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(name, content)


def _folder(here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    folder = here / "set"
    for k in range(4):
        (folder / f"class{k % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class{k % 2}" / f"{k}.png").write_bytes(picture(chance))
    odd = folder / "class0" / "odd.png"
    match chance.randrange(7):
        case 5:
            (folder / "class0" / os.fsdecode(b"\xff\xfe.png")).write_bytes(picture(chance))
        case 6:
            (folder / os.fsdecode(b"class\xff")).mkdir()
            (folder / os.fsdecode(b"class\xff") / "\u0436.png").write_bytes(picture(chance))
        case 0:
            odd.symlink_to("/etc/passwd")
        case 1:
            odd.symlink_to(odd)
        case 2:
            odd.mkdir()
        case 3:
            odd.symlink_to("/dev/zero")
        case _:
            (folder / "class0" / "loop").symlink_to(folder)
    return "folder", ("data", "show", str(folder))


def _of_images(stock: Stock, here: Path, path: Path, chance: random.Random) -> tuple[str, ...]:
    match chance.randrange(4):
        case 0:
            (here / "mine.yaml").write_text(yaml.safe_dump(stock.recipes["emoji32-disback"]))
            return (
                "distill",
                str(here / "mine.yaml"),
                "--out",
                str(here / "out"),
                "--set",
                f"data={{kind: images, path: {path}, size: 16}}",
            )
        case 1:
            return "data", "zip", str(path), str(here / "out.zip"), "--size", "8"
        case 2:
            return "data", "show", str(path), "--out", str(here / "sheet.png")
        case _:
            return "data", "show", str(path)
