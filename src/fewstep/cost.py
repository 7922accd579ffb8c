"""What a computation costs, in network evaluations of one sample: a forward is 1, a backward 2.

Models report every forward here; a forward whose output carries a gradient counts 3, since no graph
is built that is not used. Budgets and the cost axis of every figure use this count, so that methods
with more networks pay for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Meter:
    """Evaluations of one sample since it was opened."""

    evaluations: int = 0


_open: list[Meter] = []


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Counts what is evaluated inside; meters may be nested."""
    meter = Meter()
    _open.append(meter)
    try:
        yield meter
    finally:
        _open.pop()


@contextlib.contextmanager
def unmetered() -> Iterator[None]:
    """Hides what is evaluated inside from the meters that are open."""
    hidden = _open[:]
    _open.clear()
    try:
        yield
    finally:
        _open[:] = hidden


def count_evaluations(emitted: Tensor) -> None:
    """Called by models with what their network emitted (B, ...)."""
    for meter in _open:
        meter.evaluations += len(emitted) * (3 if emitted.requires_grad else 1)
