"""Images from a zip or a folder, as a data set in [-1, 1]: x / 127.5 - 1 of 8-bit pixels, as EDM
has it.

Images are read when their index is asked for. A set of at most ``CACHED_BYTES`` of pixels is
decoded once and kept as bytes, a quarter of what floats would take; every image of such a set has
then been looked at before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.data.archive import Archive, Source
from fewstep.data.conversion.convert import Converted
from fewstep.data.dataset import Dataset
from fewstep.data.image_folder import Folder
from fewstep.data.labels import Labels, read_labels
from fewstep.data.pixels import SUFFIXES, decode, pixels_of, reading_rules, sizes_of, squared
from fewstep.data.prompts.captions import caption_files
from fewstep.data.prompts.read import captions_by_image
from fewstep.data.tree import PassedOver
from fewstep.errors import UserError
from fewstep.system.files import digest_of

CACHED_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """The images of ``source`` in [-1, 1], (N, channels, H, W); ``size``: pixels a side of the
    centred square that each is resized to, None to take them as they are.

    ``pixels`` (N, channels, H, W) uint8 and ``measured`` (N, 6), their sizes, where they are kept
    in memory, else None. ``texts``: the images' captions, None where they were not asked for.
    ``passed_over``: what of the source is no image of the set; ``remarks``: the sentences that say
    so. Made by ``open_images``.
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
    passed_over: PassedOver = field(default_factory=PassedOver)
    remarks: tuple[str, ...] = ()
    texts: tuple[str, ...] | None = None
    measured: Tensor | None = None

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
        pixels = self.read(index)[0] if self.pixels is None else self.pixels[index]
        return pixels.float() / 127.5 - 1.0

    def where(self, index: int) -> str:
        return self.source.place(self.source.names[index])

    def captions(self, index: Tensor) -> list[str] | None:
        return None if self.texts is None else [self.texts[each] for each in index.tolist()]

    def sizes(self, index: Tensor) -> Tensor:
        if self.size is None:
            return super().sizes(index)
        # Each is decoded: how a picture is turned, and so its height, may stand behind its pixels.
        return (self.read(index)[1] if self.measured is None else self.measured[index]).float()

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels (n, channels, H, W), uint8, and the sizes (n, 6), int32 (``Dataset.sizes``),
        read from the source.
        """
        pixels = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        sizes = torch.empty(len(index), 6, dtype=torch.int32)
        for row, position in enumerate(index.tolist()):
            values, measured = self._one(self.source.names[position])
            pixels[row], sizes[row] = torch.from_numpy(values), torch.tensor(measured)
        return pixels, sizes

    def head(self, rows: int) -> Tensor:
        # Image sets are often in the order of their classes: evenly spaced.
        count = min(rows, len(self))
        return torch.arange(count) * len(self) // count

    def _one(self, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
        picture = decode(self.source.read(name), self.source.place(name))
        measured = sizes_of(picture.height, picture.width, self.size)
        if self.size is not None:
            picture = squared(picture, self.size)
        if (picture.height, picture.width) != self.sides:
            raise UserError(
                f"{self.source.path}: '{name}' has {picture.width} x {picture.height} pixels, the first "
                f"image {self.sides[1]} x {self.sides[0]}; "
                "set 'data.size', or make a zip of one size with 'fewstep data zip'."
            )
        return pixels_of(picture, self.channels), measured


def open_images(
    path: Path | str | Converted,
    size: int | None = None,
    labels: bool = True,
    channels: int = 3,
    cached_bytes: int = CACHED_BYTES,
    captions: bool = False,
) -> Images:
    """The images of a zip or a folder, or of the zip that was made of another set: labels are those
    of its ``dataset.json``, else its sub-folders (see ``labels``).

    ``channels``: 3, or 1 for the luma. ``captions``: whether the images' captions are read as well
    (see ``data.prompts.captions``); an image without one is kept.

    Raises ``UserError``, naming file and entry, when there is no such file, no image, no caption
    where they are asked for, an image of another size than the first, or ``dataset.json`` is wrong.
    """
    made = path if isinstance(path, Converted) else Converted(Path(path), str(path))
    source = open_source(made.path)
    found = read_labels(source) if labels else Labels(None)
    sides = (size, size) if size is not None else _sides(source)
    numbers = None if found.numbers is None else torch.tensor(found.numbers, dtype=torch.int64)
    texts, said = captions_by_image(source) if captions else (None, ())
    of_the_tree = source.tree.passed_over_but(caption_files(source)) if captions else source.tree.passed_over
    passed_over = made.passed_over + of_the_tree + found.passed_over
    remarks = (*made.remarks, *([passed_over.sentence(made.name)] if passed_over else []), *found.remarks, *said)
    images = Images(
        source,
        channels,
        size,
        sides,
        numbers,
        found.classes,
        found.names,
        passed_over=passed_over,
        remarks=remarks,
        texts=texts,
    )
    if len(images) * channels * sides[0] * sides[1] > cached_bytes:
        return images
    pixels, measured = images.read(torch.arange(len(images)))
    return replace(images, pixels=pixels, measured=measured)


def open_source(path: Path) -> Source:
    """The files of a zip or a folder with at least one image."""
    if not path.exists():
        raise UserError(
            f"{path}: there is no such image set; make one with 'fewstep data zip FOLDER {path}' or "
            f"'fewstep data emoji {path}', or correct the path."
        )
    source: Source = Folder(path) if path.is_dir() else Archive(path)
    if not source.names:
        passed = source.tree.passed_over
        raise UserError(
            f"{path}: holds no images ({', '.join(sorted(SUFFIXES))}); check the path."
            + (f" {passed.sentence(path)}" if passed else "")
        )
    return source


def _sides(source: Source) -> tuple[int, int]:
    first = decode(source.read(source.names[0]), source.place(source.names[0]))
    return first.height, first.width
