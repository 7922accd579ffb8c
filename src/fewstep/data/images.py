"""Images from a zip or a folder, as a data set in [-1, 1]: x / 127.5 - 1 of 8-bit pixels, as EDM has it.

Images are read when their index is asked for. A set of at most ``CACHED_BYTES`` of pixels is decoded once and kept as bytes, a quarter of what floats would take; every image of such
a set has then been looked at before the first step.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.caches import content_digest
from fewstep.data.archive import METADATA, MOST_CLASSES, Archive, Source, read_json
from fewstep.data.dataset import Dataset
from fewstep.data.pixels import SUFFIXES, decode, pixels_of, reading_rules, squared
from fewstep.errors import UserError
from fewstep.files import digest_of

CACHED_BYTES = 2**29


class Folder(Source):
    """The images of a folder and its sub-folders, by their paths relative to it; hidden files and files that are not named as images are passed over."""

    def __init__(self, path: Path):
        self.path = Path(path)
        found = (file.relative_to(self.path) for file in self.path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        self.names = tuple(sorted(name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts)))

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def digest(self) -> str:
        sha = hashlib.sha256(b"images\n")
        for name in self.names:
            sha.update(os.fsencode(name) + b"\0" + content_digest(self.path / name).encode() + b"\n")
        return sha.hexdigest()

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path / name}: cannot be read ({error.strerror or error}); the image was there when the folder was listed, put it back.") from error


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """The images of ``source`` in [-1, 1], (N, channels, H, W); ``size``: pixels a side of the centred square that each is resized to, None to take them as they are.

    ``pixels`` (N, channels, H, W) uint8 where they are kept in memory, else None. Made by ``open_images``.
    """

    source: Source
    channels: int
    size: int | None
    sides: tuple[int, int]
    labels: Tensor | None
    classes: int
    names: tuple[str, ...] = ()
    pixels: Tensor | None = None
    low: float = -1.0
    high: float = 1.0

    @cached_property
    def identity(self) -> str:
        tensors = {} if self.labels is None else {"labels": self.labels}
        source = {"kind": "images", "rules": reading_rules(), "source": self.source.digest()}
        reading = {"channels": self.channels, "size": self.size, "sides": list(self.sides)}
        return digest_of(tensors, {**source, **reading, "classes": self.classes, "names": list(self.names)})

    def __len__(self) -> int:
        return len(self.source.names)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.sides)

    def take(self, index: Tensor) -> Tensor:
        pixels = self.read(index) if self.pixels is None else self.pixels[index]
        return pixels.float() / 127.5 - 1.0

    def read(self, index: Tensor) -> Tensor:
        """The pixels (n, channels, H, W), uint8, read from the source."""
        pixels = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        for row, position in enumerate(index.tolist()):
            pixels[row] = torch.from_numpy(self._one(self.source.names[position]))
        return pixels

    def head(self, rows: int) -> Tensor:
        # Image sets are often in the order of their classes: evenly spaced.
        count = min(rows, len(self))
        return torch.arange(count) * len(self) // count

    def _one(self, name: str) -> np.ndarray:
        picture = decode(self.source.read(name), f"{self.source.path}: '{name}'")
        if self.size is not None:
            picture = squared(picture, self.size)
        if (picture.height, picture.width) != self.sides:
            raise UserError(
                f"{self.source.path}: '{name}' has {picture.width} x {picture.height} pixels, the first image {self.sides[1]} x {self.sides[0]}; "
                "set 'data.size', or make a zip of one size with 'fewstep data zip'."
            )
        return pixels_of(picture, self.channels)


def open_images(path: Path | str, size: int | None = None, labels: bool = True, channels: int = 3, cached_bytes: int = CACHED_BYTES) -> Images:
    """The images of an EDM zip, or of a folder: labels are those of its ``dataset.json``, else of a folder its sub-folders in the order of their names.

    ``channels``: 3, or 1 for the luma. Raises ``UserError``, naming file and entry, when there is no such file, no image, an image of another size than the first, or ``dataset.json`` is
    wrong.
    """
    source = open_source(Path(path))
    numbers, names = read_labels(source) if labels else (None, ())
    sides = (size, size) if size is not None else _sides(source)
    tensor = None if numbers is None else torch.tensor(numbers, dtype=torch.int64)
    classes = 0 if numbers is None else max(len(names), max(numbers) + 1)
    images = Images(source, channels, size, sides, tensor, classes, names)
    if len(images) * channels * sides[0] * sides[1] > cached_bytes:
        return images
    return Images(source, channels, size, sides, tensor, classes, names, images.read(torch.arange(len(images))))


def open_source(path: Path) -> Source:
    """The files of a zip or a folder with at least one image."""
    if not path.exists():
        raise UserError(f"{path}: there is no such image set; make one with 'fewstep data zip FOLDER {path}' or 'fewstep data emoji {path}', or correct the path.")
    source: Source = Folder(path) if path.is_dir() else Archive(path)
    if not source.names:
        raise UserError(f"{path}: holds no images ({', '.join(sorted(SUFFIXES))}); check the path.")
    return source


def _sides(source: Source) -> tuple[int, int]:
    first = decode(source.read(source.names[0]), f"{source.path}: '{source.names[0]}'")
    return first.height, first.width


def read_labels(source: Source) -> tuple[list[int] | None, tuple[str, ...]]:
    """The label of each image and the names of the classes: of ``dataset.json`` where there is one, else of a folder's sub-folders."""
    if source.has(METADATA):
        return _described(source, read_json(source, METADATA))
    tops = [PurePosixPath(name).parts for name in source.names]
    if not isinstance(source, Folder) or all(len(parts) == 1 for parts in tops):
        return None, ()
    stray = next((name for name, parts in zip(source.names, tops, strict=True) if len(parts) == 1), None)
    if stray is not None:
        raise UserError(f"{source.path}: '{stray}' lies beside the sub-folders that name the classes; move it into one, or set 'data.labels: false'.")
    classes = sorted({parts[0] for parts in tops})
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[parts[0]] for parts in tops], tuple(classes)


def _described(source: Source, metadata: Any) -> tuple[list[int] | None, tuple[str, ...]]:
    where = f"{source.path}: '{METADATA}'"
    if not isinstance(metadata, dict) or not isinstance(metadata.get("labels"), list | None):
        raise UserError(f"{where} must be an object whose 'labels' is a list of [name, class] or null; write it so.")
    if not metadata.get("labels"):
        return None, ()
    given: dict[str, int] = {}
    for pair in metadata["labels"]:
        match pair:
            case [str(name), int(label)] if 0 <= label < MOST_CLASSES and not isinstance(label, bool):
                given[name.replace("\\", "/")] = label
            case _:
                raise UserError(f"{where} has the label {str(pair)[:80]}, not a name and a class from 0 to {MOST_CLASSES - 1}; correct it, or set 'data.labels: false'.")
    missing = next((name for name in source.names if name not in given), None)
    if missing is not None:
        raise UserError(f"{where} has no label for '{missing}'; add it, or set 'data.labels: false'.")
    labels = [given[name] for name in source.names]
    return labels, _class_names(where, metadata.get("classes", []), max(labels) + 1)


def _class_names(where: str, names: Any, least: int) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or 0 < len(names) < least:
        raise UserError(f"{where}: 'classes' must be a list of at least {least} names, one a class; correct it or take it out.")
    return tuple(names)
