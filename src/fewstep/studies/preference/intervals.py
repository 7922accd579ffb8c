"""Shares with their intervals, and agreement: closed forms, and nothing of models.

- ``wilson_interval`` (Wilson 1927): of a share of independent answers; the values p whose distance
  to the share found is at most z standard errors of p itself. It stays within [0, 1], and has a
  width at a share of 0 or 1.
- ``student_interval``: of the mean over raters, whose answers are no independent ones.
- ``krippendorff_alpha`` (Krippendorff 2011, nominal data): agreement over chance, where not
  everybody has answered everything; 1 for full agreement, 0 for that of chance.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

LEVEL = 0.95
"""Of all intervals."""


def wilson_interval(count: int, total: int, level: float = LEVEL) -> tuple[float, float] | None:
    """The score interval of the share ``count`` / ``total``, in [0, 1]; None for a total of 0."""
    if not total:
        return None
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    share, about = count / total, z * z / total
    middle = (share + about / 2) / (1 + about)
    half = math.sqrt(about * (share * (1 - share) + about / 4)) / (1 + about)
    # At a share of 0 or 1 an end is exact, which rounding would miss.
    return 0.0 if count == 0 else middle - half, 1.0 if count == total else middle + half


def student_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's interval of the mean of shares (n,), cut off to [0, 1]; None for fewer than two.

    With few raters it is what normal errors would give; with equal shares its width is 0.
    """
    if len(values) < 2:
        return None
    half = student_quantile(0.5 + level / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return max(0.0, middle - half), min(1.0, middle + half)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t with ``freedom`` >= 1 degrees, of a probability in [0.5, 1), to
    1e-9 of itself: the distribution's closed form (Abramowitz and Stegun 26.7.3 and 26.7.4),
    inverted by bisection.
    """
    inside, low, high = 2 * probability - 1, 0.0, 1.0
    while _within(high, freedom) < inside:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The probability that Student's t is within [-t, t]."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for factor in range(2 if odd else 1, freedom, 2):
        total += term
        term *= cosine * cosine * factor / (factor + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def agreeing_share(units: Sequence[Sequence[str]]) -> float | None:
    """The share of equal answers among all pairs of answers to one unit; None without such a
    pair.
    """
    pairs = sum(math.comb(len(unit), 2) for unit in units)
    equal = sum(math.comb(count, 2) for unit in units for count in Counter(unit).values())
    return equal / pairs if pairs else None


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Agreement over chance of the answers to each unit, at most 1. Units with one answer do not
    count; None where nothing is to be told, because there is no pair or all answers are the same.
    """
    shared = [unit for unit in units if len(unit) > 1]
    total = sum(map(len, shared))
    equal = sum(count * (count - 1) / (len(unit) - 1) for unit in shared for count in Counter(unit).values())
    by_chance = sum(count * (count - 1) for count in Counter(each for unit in shared for each in unit).values())
    expected = total * (total - 1) - by_chance
    return 1 - (total - 1) * (total - equal) / expected if expected else None
