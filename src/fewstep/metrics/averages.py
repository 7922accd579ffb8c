"""Means over pictures or prompts, with how sure they are.

The interval of 95 % is mean +- 1.96 s / sqrt(n), with s the standard deviation of the n values:
that of the normal approximation, for values that do not depend on one another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.errors import UserError

NORMAL_95 = 1.96


@dataclass(frozen=True)
class Average:
    """The ``mean`` of ``count`` values, and the ends of its interval of 95 %, None for one
    value.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Average:
        """Of finite values, summed exactly, so that their order does not matter.

        Raises ``UserError`` for none, and for one that is not finite.
        """
        if not values:
            raise UserError("an average needs at least one value; there is none.")
        if not all(map(math.isfinite, values)):
            raise UserError("an average needs finite values; one is infinite or not a number.")
        count = len(values)
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, None, None, 1)
        half = NORMAL_95 * statistics.stdev(values) / math.sqrt(count)
        return cls(mean, mean - half, mean + half, count)

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)
