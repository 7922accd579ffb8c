"""A run's steps divided among its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fewstep.recipes import config
from fewstep.training import Stage


def divided(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` steps in proportion to ``shares``, by largest remainders, each at least 1 (the sum
    grows where that needs it).
    """
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    remainders = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in remainders[: total - sum(counts)]:
        counts[index] += 1
    return [max(1, count) for count in counts]


def planned(training: config.Training) -> int:
    """The steps that stages are laid out for: those of the run's beginning, where a resumed run was
    given more.
    """
    return training.laid_out_for or training.steps


def drawn(count: int, steps: int, training: config.Training) -> int:
    """How many of ``count`` samples are made before ``steps`` steps that draw a batch of them each:
    no more than are drawn, so that a short run makes few.
    """
    return min(count, steps * training.batch)


def extended(stages: Sequence[Stage], training: config.Training) -> list[Stage]:
    """Stages that were laid out for ``planned(training)``, the last one longer by what a resumed
    run was given besides; what was done before stays as it was.
    """
    last = stages[-1]
    assert isinstance(last.until, int)
    return [*stages[:-1], replace(last, until=last.until + training.steps - planned(training))]
