"""Who is told how a run goes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path


class Listener:
    """Is told how a run goes; a context around it.

    Each method does nothing unless a class has something to do.
    """

    def began(self, folder: Path, step: int) -> None:
        """A run begins in ``folder``, or goes on there after ``step`` steps; what is told of later
        steps may have been told before.
        """

    def stage(self, name: str, total: int | None, done: int) -> None:
        """A stage begins, or goes on after ``done`` steps."""

    def step(self, done: int, note: str) -> None:
        """A step was made; ``note`` is a short text of figures."""

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Numbers by name after ``step`` steps of the run: ``PHASE.NAME`` for means of what phases
        report, ``PROBE.NAME`` for what a probe measured, and what is in force.
        """

    def picture(self, step: int, path: Path) -> None:
        """A picture of samples was written after ``step`` steps of the run."""

    def say(self, sentence: str) -> None:
        """Something worth a line."""

    def finished(self) -> None:
        """The run has come to its end."""

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *failure: object) -> None:
        return


class Silent(Listener):
    """Shows nothing, and keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


class Several(Listener):
    """Tells all ``listeners``, in their order."""

    def __init__(self, listeners: Sequence[Listener] = ()):
        self.listeners = list(listeners)
        self._entered = contextlib.ExitStack()

    def began(self, folder: Path, step: int) -> None:
        for listener in self.listeners:
            listener.began(folder, step)

    def stage(self, name: str, total: int | None, done: int) -> None:
        for listener in self.listeners:
            listener.stage(name, total, done)

    def step(self, done: int, note: str) -> None:
        for listener in self.listeners:
            listener.step(done, note)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        for listener in self.listeners:
            listener.figures(step, figures)

    def picture(self, step: int, path: Path) -> None:
        for listener in self.listeners:
            listener.picture(step, path)

    def say(self, sentence: str) -> None:
        for listener in self.listeners:
            listener.say(sentence)

    def finished(self) -> None:
        for listener in self.listeners:
            listener.finished()

    def __enter__(self) -> Several:
        with contextlib.ExitStack() as entered:
            for listener in self.listeners:
                entered.enter_context(listener)
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        self._entered.__exit__(*failure)  # type: ignore[arg-type]
