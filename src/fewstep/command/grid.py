"""Columns of text: headings and rows, each column as wide as its widest cell.

No rules and no colours are drawn, so that a table can be read by people and cut by programs, in a
terminal as in a pipe.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import JustifyMethod

# More columns of a terminal than any table has: nothing is wrapped or cut.
_WIDTH = 1_000_000


class Heading(NamedTuple):
    """What stands over a column, and to which side its cells are set."""

    text: str = ""
    justify: JustifyMethod = "left"


def left(*texts: str) -> list[Heading]:
    """Headings of columns of words."""
    return [Heading(text) for text in texts]


def right(*texts: str) -> list[Heading]:
    """Headings of columns of numbers."""
    return [Heading(text, "right") for text in texts]


def grid(headings: Sequence[Heading], rows: Iterable[Sequence[str]]) -> str:
    """A line of headings, unless all of them are empty, and a line a row.

    A cell is shown as it is, without markup; one from outside has gone through ``one_line``.
    """
    # Rich takes as long to import as all else that ``--help`` needs.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=any(heading.text for heading in headings))
    for heading in headings:
        table.add_column(Text(heading.text), justify=heading.justify, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    # Both sizes, since a terminal that calls itself dumb would otherwise have 80 columns.
    console = Console(file=io.StringIO(), width=_WIDTH, height=1, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table, crop=False, soft_wrap=False)
    return "\n".join(line.rstrip() for line in captured.get().removesuffix("\n").split("\n"))
