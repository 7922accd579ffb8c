"""Checksums of what a run is made from, as checkpoints and results keep them, and what follows
where they differ.

Weights that were exchanged make another run: a teacher, a start, a feature network. Data may
change, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fewstep.errors import UserError

Origins = Mapping[str, str]
"""The SHA-256, 64 hexadecimal digits, of what each dotted key of a recipe names."""

DATA = "data"
_SHOWN = 12


def exchanged(before: Origins, now: Origins) -> list[str]:
    """The keys that both know and whose content differs."""
    return [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key]]


def difference(key: str, before: Origins, now: Origins, named: tuple[str, str] = ("then", "now")) -> str:
    """Both digests of a key, as sentences have them, with what each is ``named``."""
    return f"SHA-256 {before[key][:_SHOWN]} {named[0]}, {now[key][:_SHOWN]} {named[1]}"


def check_origins(where: str, before: Origins, now: Origins, say: Callable[[str], None]) -> None:
    """Compares the origins of what a run goes on from, which ``where`` names, with those that it
    has now.

    ``say`` is told that data changed, and of what cannot be checked. Raises ``UserError`` for other
    weights.
    """
    changed = exchanged(before, now)
    for key in (key for key in changed if key != DATA):
        what = f"what '{key}' names was exchanged since ({difference(key, before, now)})"
        raise UserError(f"{where}: {what}; put it back as it was, or start a new run with --out.")
    if DATA in changed:
        what = f"the data is not what the run began with ({difference(DATA, before, now)})"
        say(f"{what}: from here on it trains and measures on the data as it is now.")
    unknown = [key for key in sorted(now) if key not in before]
    if unknown:
        what = f"has no checksum of {', '.join(unknown)}"
        say(f"{where}: {what}, so that an exchange since cannot be found; from now on there is one.")
