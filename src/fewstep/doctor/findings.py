"""What an examination finds, a line a thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewstep.errors import UserError


@dataclass(frozen=True)
class Finding:
    """``level``: "ok", "note" (nothing is wrong, but one may want to know) or "problem"; ``place``:
    a file or a recipe's key; a sentence; ``remedy``: what to do, empty where that is nothing.
    """

    level: Literal["ok", "note", "problem"]
    place: str
    sentence: str
    remedy: str = ""


def ok(place: Path | str, sentence: str) -> Finding:
    """All is well with a place."""
    return Finding("ok", str(place), sentence)


def note(place: Path | str, sentence: str, remedy: str = "") -> Finding:
    """Worth knowing."""
    return Finding("note", str(place), sentence, remedy)


def problem(place: Path | str, sentence: str, remedy: str) -> Finding:
    """Something that must be mended."""
    return Finding("problem", str(place), sentence, remedy)


def refused(place: Path | str, error: UserError | str, remedy: str = "") -> Finding:
    """The problem that an error speaks of.

    Our errors say where, what and what to do, as ``where: what; what to do.``; ``remedy`` replaces
    the last where the place has a better one.
    """
    text = str(error).removeprefix(f"{place}: ").removesuffix(".")
    what, _, advice = text.rpartition("; ")
    advice = advice or "see docs/doctor.md"
    return problem(
        place, f"{what or text}.", remedy or f"{advice[0].upper()}{advice[1:]}{'' if advice.endswith('?') else '.'}"
    )
