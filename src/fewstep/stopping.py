"""When a stage ends."""

from __future__ import annotations

import abc


class StopRule(abc.ABC):
    """Ends a stage by what has happened rather than by a number fixed beforehand."""

    @abc.abstractmethod
    def finished(self, steps: int) -> bool:
        """Whether the stage ends after ``steps`` steps."""

    @property
    @abc.abstractmethod
    def total(self) -> int | None:
        """The number of steps, where it is known by now."""
