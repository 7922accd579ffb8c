"""Pictures of many samples, cut into the samples with the caption of each.

A caption is somebody's text: a prompt may be of any length, and hold markup, control characters and
what turns the direction of writing round. What is not printable is shown as its escape; the page
escapes markup, and isolates the direction of each caption.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.data.pixels import decode
from fewstep.errors import UserError
from fewstep.report.page import Picture, read_picture

LONGEST = 80
"""Characters of a caption under a sample; its title has all."""
_MOST = 10_000
# Without which letters of some scripts and joined emoji fall apart.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class CaptionedTile:
    """A part of a picture, with its ``caption`` in full and ``short``."""

    picture: Picture
    caption: str
    short: str


@dataclass(frozen=True)
class Sheet:
    """A picture and its captioned parts, in ``columns``; none where it has no captions."""

    picture: Picture
    columns: int = 1
    tiles: tuple[CaptionedTile, ...] = ()


@dataclass(frozen=True)
class _Grid:
    """Where the samples of a picture are: ``gap`` pixels around each."""

    columns: int
    rows: int
    gap: int
    wide: int
    tall: int

    @classmethod
    def of(cls, picture: Picture, columns: int, gap: int, count: int) -> _Grid | None:
        """The grid of ``count`` samples in the picture; None where it is no such grid."""
        rows = math.ceil(count / columns)
        wide, over = divmod(picture.width - gap, columns)
        tall, under = divmod(picture.height - gap, max(rows, 1))
        return None if over or under or min(wide, tall) <= gap else cls(columns, rows, gap, wide, tall)

    def as_row(self) -> _Grid:
        """Its columns, each as one part."""
        return _Grid(self.columns, 1, self.gap, self.wide, self.tall * self.rows)

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a part."""
        left, top = self.gap + index % self.columns * self.wide, self.gap + index // self.columns * self.tall
        return left, top, left + self.wide - self.gap, top + self.tall - self.gap


def read_sheet(path: Path) -> Sheet | None:
    """The picture in ``path`` with the captions beside it; None where there is no picture.

    Captions that do not fit the picture, or that cannot be read, are left out.
    """
    picture = read_picture(path)
    if picture is None:
        return None
    match _json(path.with_suffix(".json")):
        case {"columns": int(columns), "gap": int(gap), "captions": list(captions)}:
            if 1 <= columns <= _MOST and gap >= 0 and 0 < len(captions) <= _MOST:
                grid = _Grid.of(picture, columns, gap, len(captions))
                if grid is not None and all(isinstance(each, str) for each in captions):
                    return Sheet(picture, columns, _cut(path, grid, captions))
    return Sheet(picture)


def shown(text: str) -> str:
    """A caption in one line: white space as spaces, and what is not printable as its escape."""
    text = " ".join(text.split())
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in _JOINERS else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def shortened(text: str) -> str:
    """At most ``LONGEST`` characters of a caption, with an ellipsis for what is cut."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def _cut(path: Path, grid: _Grid, captions: Sequence[str]) -> tuple[CaptionedTile, ...]:
    """The captioned parts of the picture; none where it cannot be decoded. Where all rows have the
    same captions, a column is one part.
    """
    try:
        whole = decode(path.read_bytes(), str(path))
    except UserError:
        return ()
    if all(text == captions[index % grid.columns] for index, text in enumerate(captions)):
        captions, grid = captions[: grid.columns], grid.as_row()
    texts = {text: shown(text) or "(empty)" for text in set(captions)}
    tiles = []
    for index, text in enumerate(captions):
        stream = io.BytesIO()
        part = whole.crop(grid.box(index))
        part.save(stream, format="PNG")
        uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        tiles.append(
            CaptionedTile(Picture(path.stem, uri, part.width, part.height), texts[text], shortened(texts[text]))
        )
    return tuple(tiles)
