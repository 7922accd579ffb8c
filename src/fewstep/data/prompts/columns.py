"""Which columns of a file of prompts are read, and how a sentence names what is there instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fewstep.errors import UserError

KNOWN = ("prompt", "caption", "text")
"""The columns that are looked for, in this order."""
_SHOWN_NAMES = 12


class ChosenColumns(Protocol):
    """Says which columns of a file are read."""

    def among(self, names: Sequence[str], place: str) -> tuple[str, ...]:
        """The columns to be read of those that are there; raises ``UserError``, which begins with
        the place, without them.
        """


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are read.

    ``asked``: the prompts' column, None for the first of ``KNOWN`` that is there. ``besides``:
    columns that are read before it. ``note`` is told what is worth a sentence.
    """

    asked: str | None
    note: Callable[[str], None]
    besides: tuple[str, ...] = ()

    def among(self, names: Sequence[str], place: str) -> tuple[str, ...]:
        """The columns to be read of those that are there; raises ``UserError`` without them."""
        known = [name for name in KNOWN if name in names]
        chosen = self.asked if self.asked is not None else known[0] if known else None
        missing = next((name for name in (*self.besides, chosen) if name is None or name not in names), "")
        if chosen is None or missing != "":
            wanted = f"'{missing}'" if missing else f"'{KNOWN[0]}', '{KNOWN[1]}' or '{KNOWN[2]}'"
            raise UserError(
                f"{place}: has no column {wanted}; {columns_there(names)}; "
                "say which column holds the prompts (column='NAME'), or correct the file."
            )
        twice = next((name for name in (*self.besides, chosen) if list(names).count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{place}: has two columns '{twice}'; rename one of them.")
        if self.asked is None and len(known) > 1:
            there = " and ".join(f"'{name}'" for name in known)
            self.note(f"{place}: has the columns {there}, of which '{chosen}' is read; column='NAME' reads another.")
        return (*self.besides, chosen)


def kind_of_value(value: Any) -> str:
    """What a value of JSON or parquet is, for a sentence."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else "no text"


def columns_there(names: Sequence[str]) -> str:
    """The columns that are there, of many the first ones, for a sentence."""
    shown = ", ".join(f"'{name:.40}'" for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"it has {shown}{f' and {more:,} more' if more > 0 else ''}" if names else "it has none"
