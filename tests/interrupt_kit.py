"""A run that is left where it stands."""

from __future__ import annotations

from fewstep.training import Silent


class Interrupted(Exception):
    """A run was left where it stood."""


class Interrupter(Silent):
    """Leaves a run after so many steps of this process, as a power cut would."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def step(self, done: int, note: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted
