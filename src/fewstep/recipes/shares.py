"""A run's steps divided among its stages."""

from __future__ import annotations

from collections.abc import Sequence


def divided(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` steps in proportion to ``shares``, by largest remainders, each at least 1 (the sum grows where that needs it)."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    remainders = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in remainders[: total - sum(counts)]:
        counts[index] += 1
    return [max(1, count) for count in counts]
