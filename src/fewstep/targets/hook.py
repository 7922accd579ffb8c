"""What a stage asks after each step: the hooks of its phases, and the rule that ends it.

Whether a step was finite is a flag on the device, which the host reads a step late. A call that
records, copies or decides something must not happen after a step that was left out: before it the
host waits for the flag. A call that only counts need not wait, since a run that left out a step
ends before anything that was counted is saved.
"""

from __future__ import annotations

import abc
import types
from collections.abc import Callable
from typing import Any


class Hook(abc.ABC):
    """Has a method that is a phase's hook, or is one itself, and knows when it decides."""

    @abc.abstractmethod
    def decides(self, step: int) -> bool:
        """Whether the call after ``step`` finished steps of the stage does more than count."""


class StopRule(abc.ABC):
    """Ends a stage by what has happened rather than by a number fixed beforehand."""

    @abc.abstractmethod
    def finished(self, steps: int) -> bool:
        """Whether the stage ends after ``steps`` steps."""

    @property
    @abc.abstractmethod
    def total(self) -> int | None:
        """The number of steps, where it is known by now."""


def decides(hook: Callable[[int, Any], None], step: int) -> bool:
    """Whether the host must know of a step before ``hook`` is called after it: always, unless the
    hook knows better.
    """
    owner = hook.__self__ if isinstance(hook, types.MethodType) else hook
    return owner.decides(step) if isinstance(owner, Hook) else True
