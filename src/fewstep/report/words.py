"""Figures as people read them: three digits that matter, thousands set apart, a dash for what is
not there.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

ABSENT = "–"
_LARGEST = 1e100


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a finite number, small enough to be computed with (a truth value is
    none).
    """
    # Compared and not asked by isfinite, for which whole numbers may be too large.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def number(value: Any) -> str:
    """Three significant digits; whole numbers, and those from 1,000, in full."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if not is_number(value):
        return ABSENT
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_spread(value: Any, spread: Any) -> str:
    """``value ± spread`` to two significant digits of the spread; without a spread just the
    number.
    """
    if not (is_number(value) and is_number(spread) and spread > 0):
        return number(value)
    decimals = min(max(1 - math.floor(math.log10(spread)), 0), 6)
    return f"{value:,.{decimals}f} ± {spread:,.{decimals}f}"


def percent(value: Any) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{value:.1%}" if is_number(value) else ABSENT


def compact(value: float) -> str:
    """For the ticks of an axis: 1.5k, 2M; small numbers as they are."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def duration(seconds: Any) -> str:
    """12.3 s, 4 min 10 s, 2 h 5 min."""
    if not is_number(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def count(amount: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def listed(parts: list[str], most: int = 8) -> str:
    """a, b and c; with more than ``most`` the middle is left out."""
    if len(parts) > most:
        parts = [*parts[: most - 1], f"… to {parts[-1]}"]
        return ", ".join(parts)
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
