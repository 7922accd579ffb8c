"""Sets of pictures in a folder or a zip, of any sizes, in the natural order of their names: 2.png
is before 10.png.

A ``PictureView`` is what of a picture is measured. As DMD2 has it (Yin et al. 2024), a Frechet
distance is of the largest centred square, resized by Lanczos' filter, and a Patch-FID of the
299 x 299 pixels in the centre, at full size; a picture that is smaller than a patch stays whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.data.archive import Source
from fewstep.data.images import open_source
from fewstep.data.pixels import centre_patch, decode, pixels_of, squared
from fewstep.data.prompts.captions import caption_files
from fewstep.data.prompts.read import captions_by_image
from fewstep.data.tree import natural
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

TOGETHER = 50
"""Pictures of which features are taken at a time, on which their last bits depend."""
LARGEST_VIEW = 4096


@dataclass(frozen=True)
class PictureView:
    """The centred square of ``size`` pixels a side, or the ``patch`` of so many in the centre, or
    the picture as it is; not both.
    """

    size: int | None = None
    patch: int | None = None

    def __call__(self, picture: Picture) -> Picture:
        if self.patch is not None:
            return centre_patch(picture, self.patch)
        return picture if self.size is None else squared(picture, self.size)

    def sides(self, first: Picture) -> tuple[int, int]:
        """Height and width of what is seen; of a ``first`` picture where that is all of it."""
        side = self.patch or self.size
        return (first.height, first.width) if side is None else (side, side)


@dataclass(frozen=True, eq=False)
class PictureSet:
    """The pictures of ``source`` by their ``names``; ``remarks``: the sentences of what was passed
    over. Made by ``open``.
    """

    source: Source
    names: tuple[str, ...]
    remarks: tuple[str, ...]

    @classmethod
    def open(cls, path: Path | str) -> PictureSet:
        """The pictures of a folder or a zip; raises ``UserError`` where there is none."""
        source = open_source(Path(path).expanduser())
        passed = source.tree.passed_over_but(caption_files(source))
        names = tuple(sorted(source.names, key=natural))
        return cls(source, names, (passed.sentence(source.path),) if passed else ())

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content of the pictures' files and their names."""
        return self.source.digest()

    @cached_property
    def captions(self) -> tuple[str, ...] | None:
        """The caption of each picture, "" for one without; None where the set has none."""
        if not caption_files(self.source):
            return None
        texts, _ = captions_by_image(self.source)
        by_name = dict(zip(self.source.names, texts, strict=True))
        return tuple(by_name[name] for name in self.names)

    def picture(self, index: int) -> Picture:
        """A picture as a viewer shows it, in RGB; raises ``UserError`` for a file that is none."""
        name = self.names[index]
        return decode(self.source.read(name), self.source.place(name))

    def features(self, view: PictureView, space: FeatureSpace) -> Iterator[Tensor]:
        """The features of all pictures in blocks (n, d).

        Raises ``UserError`` naming a picture of another size than the space reads.
        """
        sides = view.sides(self.picture(0))
        block: list[Tensor] = []
        for index in range(len(self)):
            seen = torch.from_numpy(pixels_of(view(self.picture(index))))
            if not space.resizes and seen.shape[1:] != sides:
                raise UserError(
                    f"{self.source.place(self.names[index])}: is seen at {seen.shape[2]} x {seen.shape[1]} pixels, and "
                    f"the features '{space.name}' are of pictures of {sides[1]} x {sides[0]}; give --size, or leave "
                    "small pictures out."
                )
            if block and (len(block) == TOGETHER or block[0].shape != seen.shape):
                yield _features(block, space)
                block = []
            block.append(seen)
        yield _features(block, space)


def digest_of_texts(texts: tuple[str, ...]) -> str:
    """SHA-256 over texts in their order."""
    sha = hashlib.sha256(b"captions\n")
    for text in texts:
        sha.update(hashlib.sha256(text.encode()).digest())
    return sha.hexdigest()


@torch.no_grad()
def _features(block: list[Tensor], space: FeatureSpace) -> Tensor:
    """Of pictures in [-1, 1], as data sets have them."""
    return space.extract(torch.stack(block).float() / 127.5 - 1.0).cpu()
