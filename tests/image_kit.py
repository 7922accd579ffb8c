"""Tiny pictures, and image sets made of them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 4, width: int = 4, channels: int = 3) -> np.ndarray:
    """Random pixels (H, W, C), uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    """The PNG of pixels (H, W, C) or (H, W), or of what they become in another mode."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(stream, format="PNG")
    return stream.getvalue()


def zipped(path: Path, files: dict[str, bytes], metadata: Any = None) -> Path:
    """A zip of the files, with ``dataset.json`` where metadata is given."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if metadata is not None:
            archive.writestr("dataset.json", json.dumps(metadata))
    return path


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
