"""What a run says of itself in its log: means of what its steps reported since the last line, and
figures of what remembers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.system.finite import first_number_not_finite
from fewstep.training.listeners.listener import Listener
from fewstep.training.reporting.log import Log
from fewstep.training.settings import Progress

REMEMBERED = 8
"""How many health readings of a name are kept to hold the next one against."""


class Journal:
    """The log in ``path`` and the running means of its next line; ``listener`` is told what a line
    says, and what it leaves out.
    """

    def __init__(self, path: Path, listener: Listener):
        self.log = Log(path)
        self.recent: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.past: dict[str, list[float]] = {}
        self._listener = listener
        self._sums: dict[str, list[float]] = {}
        self._unsaid: set[str] = set()
        self._began = time.monotonic()

    @property
    def pending(self) -> bool:
        """Whether anything was reported since the last line."""
        return bool(self._sums)

    def add(self, values: Mapping[str, float], at: str) -> None:
        """Takes what a step reported into the means; what is not finite is left out, and said once
        a name. ``at`` names the step.
        """
        for name, value in values.items():
            if math.isfinite(value):
                entry = self._sums.setdefault(name, [0.0, 0])
                entry[0] += value
                entry[1] += 1
            elif name not in self._unsaid:
                self._unsaid.add(name)
                what = f"the figure '{name}' was {value} {at}"
                self._listener.say(f"{what}; where it is not finite the log leaves it out.")

    def write(self, progress: Progress, stage: str) -> None:
        """A line of a step: the means since the last one, and the figures."""
        entry: dict[str, Any] = {"step": progress.step, "stage": stage, "evaluations": progress.evaluations}
        if self._sums:
            # A checkpoint of an older version may hold sums that are not finite.
            self.recent = {name: total / count for name, (total, count) in self._sums.items() if math.isfinite(total)}
        self.log.append({**entry, **self.recent, **self.figures, "seconds": round(time.monotonic() - self._began, 3)})
        self._sums.clear()
        self._listener.figures(progress.step, {"evaluations": progress.evaluations, **self.recent, **self.figures})

    def remember(self, readings: Mapping[str, float]) -> None:
        """Keeps health readings beside the last ones of their names; what is not finite is not
        kept.
        """
        for name, value in readings.items():
            if math.isfinite(value):
                self.past[name] = [*self.past.get(name, []), value][-REMEMBERED:]

    def write_measured(self, progress: Progress, probe: str, figures: Mapping[str, Any]) -> None:
        """A line of a probe, without the figures that are not finite, which are said."""
        left_out = [name for name, value in figures.items() if first_number_not_finite(value, name)]
        for name in left_out:
            what = f"'{name}' of the probe '{probe}' was not finite, and is left out of the log."
            self._listener.say(f"step {progress.step}: {what}")
        kept = {name: value for name, value in figures.items() if name not in left_out}
        self.log.append({"step": progress.step, "evaluations": progress.evaluations, "probe": probe, **kept})
        numbers = {f"{probe}.{name}": value for name, value in kept.items() if isinstance(value, (int, float))}
        if numbers:
            self._listener.figures(progress.step, {"evaluations": progress.evaluations, **numbers})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "sums": self._sums,
            "recent": self.recent,
            "figures": self.figures,
            "past": self.past,
            "log_lines": self.log.lines,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Returns to what ``state`` gave; the log is cut to the lines that it had."""
        self._sums, self.recent, self.figures = state["sums"], state["recent"], state["figures"]
        # Earlier versions did not remember readings.
        self.past = state.get("past", {})
        self.log.cut(state["log_lines"], self._listener.say)


def noted(figures: Mapping[str, float]) -> str:
    """Figures as a short text."""
    return "  ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in figures.items())
