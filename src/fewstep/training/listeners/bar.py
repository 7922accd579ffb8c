"""What a person sees while a run goes on: a bar."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fewstep.errors import one_line
from fewstep.training.listeners.listener import Listener


class Bar(Listener):
    """A progress bar a stage, with rate and time left; on something that is no terminal, a line
    every tenth of a stage.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stderr, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name, self._tenth = "", -1
        self._total: int | None = None

    def stage(self, name: str, total: int | None, done: int) -> None:
        self._name, self._total, self._tenth = name, total, -1
        self._task = self._bar.add_task(name, total=total, completed=done, rate="", note="")

    def step(self, done: int, note: str) -> None:
        if self._task is None:
            return
        speed = self._bar.tasks[self._bar.task_ids.index(self._task)].speed
        self._bar.update(self._task, completed=done, note=note, rate=f"{speed:.1f}/s" if speed else "")
        if self._bar.disable and self._total and done * 10 // self._total > self._tenth:
            self._tenth = done * 10 // self._total
            self.console.print(f"{self._name}: {done}/{self._total} steps  {note}")

    def say(self, sentence: str) -> None:
        self.console.print(one_line(sentence), markup=False, soft_wrap=True)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._bar.stop()
