"""Colour emoji as an image set: small, of many shapes and colours, with classes and a name for
each, and made on any machine that has the font.

The pictures are those of Google's Noto Color Emoji (Debian package ``fonts-noto-color-emoji``; SIL
Open Font License 1.1, which does not extend to pictures made with the font), the names and the nine
groups those of Unicode's ``emoji-test.txt`` (Debian package ``unicode-data``; Unicode License).
Every fully-qualified emoji is drawn, skin tones included; of pictures that are the same (Svalbard
has Norway's flag) the first stays: 3,641 of 3,655 with Unicode 15.0. The font has bitmaps of one
size, 109, on a canvas of 136 x 128.

A set this small can be learned by heart: a distance to it is one to the training set, and should be
reported as such.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.data.archive import write_archive
from fewstep.data.pixels import over_white, squared
from fewstep.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
LICENCES = {
    "pictures": "Noto Color Emoji, Google Inc., SIL Open Font License 1.1",
    "names and groups": "emoji-test.txt, Unicode, Inc., Unicode License",
}
_FONT_SIZE, _CANVAS = 109, (136, 128)
_LINE = re.compile(r"(?P<points>[0-9A-F]+(?: [0-9A-F]+)*) *; (?P<status>[a-z-]+) *# \S+ E[0-9.]+ (?P<name>.+)")

Draw = Callable[[str], "Picture"]


@dataclass(frozen=True)
class Emoji:
    """A fully-qualified emoji: its ``text`` (one or more code points), ``name``, ``group`` and
    ``subgroup``.
    """

    text: str
    name: str
    group: str
    subgroup: str


def read_emoji(path: Path = NAMES) -> list[Emoji]:
    """The fully-qualified emoji of Unicode's ``emoji-test.txt``, in its order.

    Raises ``UserError`` when the file is missing or lists none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read; give Unicode's emoji-test.txt with --names (Debian package 'unicode-data')."
        ) from error
    found, group, subgroup = [], "", ""
    for line in lines:
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ").strip()
        elif (match := _LINE.fullmatch(line.strip())) is not None and match["status"] == "fully-qualified":
            found.append(
                Emoji("".join(chr(int(point, 16)) for point in match["points"].split()), match["name"], group, subgroup)
            )
    if not found:
        raise UserError(
            f"{path}: lists no fully-qualified emoji; give Unicode's emoji-test.txt with --names (Debian "
            "package 'unicode-data')."
        )
    return found


def drawn_by(font: Path = FONT) -> Draw:
    """Draws an emoji with the font, (136, 128) RGBA. Raises ``UserError`` when the font is missing,
    or Pillow lacks the layout engine that joins sequences.
    """
    from PIL import Image, ImageDraw, ImageFont, features

    if not features.check("raqm"):
        raise UserError(
            "Pillow was built without Raqm, which joins the parts of an emoji; install Pillow from its own wheels."
        )
    try:
        face = ImageFont.truetype(str(font), _FONT_SIZE)
    except OSError as error:
        raise UserError(
            f"{font}: is no colour font that can be read; give NotoColorEmoji.ttf with --font (Debian "
            "package 'fonts-noto-color-emoji')."
        ) from error

    def draw(text: str) -> Picture:
        canvas = Image.new("RGBA", _CANVAS, (255, 255, 255, 0))
        # A sequence that the font does not know stays several pictures, wider than one.
        if face.getlength(text) <= _CANVAS[0]:
            ImageDraw.Draw(canvas).text((0, 0), text, font=face, embedded_color=True)
        return canvas

    return draw


def _distinct(emoji: Iterable[Emoji], draw: Draw) -> Iterator[tuple[Emoji, Picture]]:
    """Each emoji with its picture; those without one, and those whose picture was there before, are
    left out.
    """
    seen: set[bytes] = set()
    for each in emoji:
        picture = draw(each.text)
        content = picture.tobytes()
        if picture.getbbox() is not None and content not in seen:
            seen.add(content)
            yield each, picture


def squared_on_white(picture: Picture, size: int) -> Picture:
    """The picture centred on a white square, resized to ``size`` pixels a side."""
    from PIL import Image

    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return squared(over_white(square), size)


def write_emoji(path: Path, size: int, emoji: Iterable[Emoji], draw: Draw) -> int:
    """Writes the distinct emoji as an EDM zip of ``size`` x ``size`` RGB images with their groups
    as classes; returns how many.

    ``names.json`` in it has the texts, names and subgroups in the order of the images, and the
    licences.
    """
    listed = list(emoji)
    groups = list(dict.fromkeys(each.group for each in listed))
    found = [(each, squared_on_white(picture, size)) for each, picture in _distinct(listed, draw)]
    side = {"licences": LICENCES, "emoji": [[each.text, each.name, each.subgroup] for each, _ in found]}
    return write_archive(
        path, ((picture, groups.index(each.group)) for each, picture in found), groups, {"names.json": side}
    )
