"""The CLIP score of a set of pictures: the mean cosine of pictures and their captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.metrics.averages import Average
from fewstep.metrics.prompted import similarities
from fewstep.recipes.building.device import resolve_device
from fewstep.runs.protocols.picture_sets import PictureSet, PictureView
from fewstep.zoo.clip import ClipFolder, ClipTowers


@dataclass(frozen=True)
class ClipChoice:
    """The CLIP model in ``folder``; a picture is seen by ``view`` before the model's own reading of
    it, and ``prefix`` is put before each caption.
    """

    folder: ClipFolder
    view: PictureView
    prefix: str

    @classmethod
    def said(cls, path: Path | None, size: int | None, prefix: str | None) -> ClipChoice | None:
        """Of a command line, None where no folder is said.

        Raises ``UserError`` for what says how CLIP is asked where it is not, and for a folder that
        is none of a CLIP model.
        """
        if path is None:
            if size is not None or prefix is not None:
                raise UserError("--clip-size and --clip-prefix: say how CLIP is asked; give its folder by --clip.")
            return None
        return cls(ClipFolder.find(path), PictureView(size), prefix or "")

    def open(self) -> ClipTowers:
        """The model, where there is a GPU on it."""
        return self.folder.open().to(resolve_device("auto"))


def clip_score(
    choice: ClipChoice,
    towers: ClipTowers,
    pictures: PictureSet,
    captions: Sequence[str],
    report: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """The mean cosine over the pictures that have a caption, with its interval; how many have none
    (``without_caption``), and how many captions were ``cut``.

    ``report`` is told how many pictures were read.
    """
    described = [index for index, caption in enumerate(captions) if caption]
    found: list[float] = []
    cut = 0
    for start in range(0, len(described), towers.rows):
        part = described[start : start + towers.rows]
        texts = [choice.prefix + captions[index] for index in part]
        cut += sum(towers.tokens(text) > towers.length for text in texts)
        seen = [choice.view(pictures.picture(index)) for index in part]
        for index, picture in zip(part, seen, strict=True):
            towers.pictures.check(picture, pictures.source.place(pictures.names[index]))
        found += similarities(towers.of_pictures(seen), towers.of_texts(texts)).tolist()
        report(len(part))
    average = Average.of(found).as_json()
    return {**average, "cut": cut, "without_caption": len(captions) - len(described)}
