"""Paired comparisons of positive figures: the mean of log ratios over pairs, with Student's
interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def gain(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """By how many per cent ``ours`` lies below ``theirs``, pair by pair.

    ``mean`` is 100 (1 - geometric mean of ours / theirs); ``low`` and ``high`` are the ends of its
    interval, None for a single pair; ``wins`` counts the pairs in which ours is lower, of
    ``pairs``.
    """
    logs = [math.log(b / a) for a, b in zip(ours, theirs, strict=True)]
    ends = {name: None if log is None else percent(log) for name, log in _interval(logs, level).items()}
    return {**ends, "wins": sum(log > 0 for log in logs), "pairs": len(logs)}


def ratio(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """The geometric ``mean`` of ours / theirs, pair by pair, and the ends of its interval, None for
    a single pair.
    """
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    ends = {name: None if log is None else math.exp(log) for name, log in _interval(logs, level).items()}
    return {**ends, "pairs": len(logs)}


def _interval(logs: Sequence[float], level: float) -> dict[str, float | None]:
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return {"mean": mean, "low": None, "high": None}
    width = t_quantile(len(logs) - 1, level) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"mean": mean, "low": mean - width, "high": mean + width}


def percent(log: float) -> float:
    """A mean log ratio as a gain in per cent."""
    return -100 * math.expm1(-log)


def t_quantile(freedom: int, level: float) -> float:
    """The bound within which Student's t of ``freedom`` degrees lies with probability ``level``."""

    def inside(bound: float, parts: int = 400) -> float:
        # With t = sqrt(freedom) tan u the density is a power of cos u on a bounded interval;
        # Simpson's rule.
        end, power = math.atan(bound / math.sqrt(freedom)), freedom - 1
        heights = [
            math.cos(end * i / parts) ** power * (1 if i in (0, parts) else 2 + 2 * (i % 2)) for i in range(parts + 1)
        ]
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
        return 2 * scale * sum(heights) * end / parts / 3

    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return high


def shown(found: dict[str, Any]) -> str:
    """A gain as a table has it."""
    between = "" if found["low"] is None else f" ({found['low']:+.0f} to {found['high']:+.0f})"
    return f"{found['mean']:+.1f} %{between}, {found['wins']} of {found['pairs']}"
