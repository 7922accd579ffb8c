"""An axis: where a value lies between its ends, and which values are worth a tick.

Linear ticks are multiples of 1, 2, 2.5 or 5 times a power of ten; logarithmic ones are powers of
ten, or 1, 2 and 5 times these when the range is short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST = 1e-100
"""Below it quotients and powers of ten are no longer what they should be."""


@dataclass(frozen=True)
class Scale:
    """From ``low`` to ``high`` > ``low``; logarithmic ones are positive."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the axis, about ``most``."""
        if not self.log:
            return _linear_ticks(self.low, self.high, most)
        for multiples in ((1,), (1, 3), (1, 2, 5)):
            found = [value for value in _log_values(self.low, self.high, multiples) if self.low <= value <= self.high]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / (most + 1))]
        return [value for value in _linear_ticks(self.low, self.high, most) if value > 0]


def scale_holding(values: Sequence[float], log: bool = False, pad: float = 0.06) -> Scale:
    """A scale that holds all values (at least one), with room at both ends; a linear one reaches
    down to 0 when that is near.
    """
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** pad if high > low else 1.5
        return Scale(low / room, high * room, log=True)
    span = high - low if high - low > LEAST else 0.0
    room = span * pad or (abs(high) * 0.1 if abs(high) > LEAST else 1.0)
    start = 0.0 if 0 <= low < 0.5 * high else low - room
    return Scale(start, high + room)


def wants_log(values: Sequence[float]) -> bool:
    """Whether values are positive and span so much that a linear axis would hide the small ones."""
    return bool(values) and min(values) > LEAST and max(values) / min(values) > 8


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    wanted = (high - low) / most
    size = 10.0 ** math.floor(math.log10(wanted))
    step = next(size * multiple for multiple in (1, 2, 2.5, 5, 10) if size * multiple >= wanted * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _log_values(low: float, high: float, multiples: Sequence[int]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{multiple * 10.0**power:.10g}") for power in powers for multiple in multiples]
