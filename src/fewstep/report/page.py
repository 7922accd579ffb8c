"""Templates and pictures into pages.

Everything that a template prints is escaped; undefined names are errors. Pictures are PNG files as
data URIs. A PNG begins with eight fixed bytes, and then names its width and height: that is all
that must be known to lay it out.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar


def render(template: str, /, **values: Any) -> str:
    """The page of ``templates/<template>`` with ``values``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("fewstep.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def stylesheet() -> str:
    """The style of all pages, in CSS."""
    return render("style.css.j2")


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SMALL = 240
_T = TypeVar("_T")


@dataclass(frozen=True)
class Picture:
    """A PNG: its data URI, its size in pixels, and the whole factor by which a tiny one is
    enlarged.
    """

    name: str
    uri: str
    width: int
    height: int

    @property
    def zoom(self) -> int:
        return max(1, round(_SMALL / self.width))


def read_picture(path: Path) -> Picture | None:
    """The picture in ``path``, None when there is none or it is no PNG."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if len(content) < 24 or not content.startswith(_SIGNATURE):
        return None
    width, height = struct.unpack(">II", content[16:24])
    if not width or not height:
        return None
    return Picture(path.stem, "data:image/png;base64," + base64.b64encode(content).decode(), width, height)


def evenly(items: Sequence[_T], most: int) -> list[_T]:
    """At most ``most`` >= 2 of the items, evenly chosen, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
