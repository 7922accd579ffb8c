"""What a log tells: the run's measurements, its stages with their cost, the switches of the target,
and the warnings.

Lines that lack a step, or are no objects, are passed over. ``seconds`` begins anew when a run is
resumed, so times are sums of increments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fewstep.report.words import is_number, listed

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Switch:
    """From ``step`` on the target is node ``node`` of the path, 0 for the teacher.

    The first one is where the target began.
    """

    step: int
    evaluations: int
    node: int

    @property
    def name(self) -> str:
        return "teacher" if self.node == 0 else f"node {self.node}"


@dataclass(frozen=True)
class StageCost:
    """A stage from (step, evaluations) ``first`` to ``last``; ``seconds`` is None where the log has
    no times.
    """

    name: str
    first: tuple[int, int]
    last: tuple[int, int]
    seconds: float | None

    @property
    def steps(self) -> int:
        return self.last[0] - self.first[0]

    @property
    def evaluations(self) -> int:
        return self.last[1] - self.first[1]


@dataclass(frozen=True)
class Warned:
    """A warning, in its latest wording, and all the steps at which it was given."""

    text: str
    steps: tuple[int, ...]

    @property
    def listed(self) -> str:
        return listed([f"{step:,}" for step in self.steps])


@dataclass(frozen=True)
class History:
    """The log by kind of line, each in order: training, and the probes ``evaluation``, ``health``,
    ``samples`` and ``best``.
    """

    training: tuple[Entry, ...]
    evaluation: tuple[Entry, ...]
    health: tuple[Entry, ...]
    samples: tuple[Entry, ...]
    best: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[Any]) -> History:
        """Sorts the lines of a log."""
        whole = [
            entry
            for entry in entries
            if isinstance(entry, dict) and is_number(entry.get("step")) and is_number(entry.get("evaluations"))
        ]

        def probes(name: str) -> tuple[Entry, ...]:
            return tuple(entry for entry in whole if entry.get("probe") == name)

        return cls(
            tuple(entry for entry in whole if "stage" in entry),
            probes("evaluation"),
            probes("health"),
            probes("samples"),
            probes("best"),
        )

    def names(self) -> list[str]:
        """What training reported, ``<phase>.<name>``, in order of appearance."""
        return list(dict.fromkeys(key for entry in self.training for key in entry if "." in key))

    def readings(self) -> list[str]:
        """The health readings, in order of appearance."""
        return list(
            dict.fromkeys(
                key for entry in self.health for key in entry if key not in ("step", "evaluations", "probe", "warnings")
            )
        )

    def switches(self) -> tuple[Switch, ...]:
        """Where the target began, and each of its moves; none for a fixed target."""
        found: list[Switch] = []
        for entry in self.training:
            node = entry.get("target_node")
            if is_number(node) and (not found or found[-1].node != node):
                found.append(Switch(int(entry["step"]), int(entry["evaluations"]), int(node)))
        return tuple(found)

    def first_gap(self) -> float | None:
        """The gap between the scores at the first step against a backtracked target, None where the
        log does not tell.

        There the target's node is new to the log, so that the line is of that step alone.
        """
        first = next((entry for entry in self.training if is_number(entry.get("target_node"))), {})
        return next((float(first[key]) for key in first if key.endswith(".gap") and is_number(first[key])), None)

    def stages(self) -> tuple[StageCost, ...]:
        """The stages in order."""
        found: list[StageCost] = []
        before, clock = (0, 0), 0.0
        for name, group in groupby(self.training, lambda entry: str(entry["stage"])):
            entries = list(group)
            times = [float(entry["seconds"]) for entry in entries if is_number(entry.get("seconds"))]
            last = (int(entries[-1]["step"]), int(entries[-1]["evaluations"]))
            found.append(StageCost(name, before, last, _elapsed(clock, times) if times else None))
            before, clock = last, times[-1] if times else clock
        return tuple(found)

    def warnings(self) -> tuple[Warned, ...]:
        """The warnings; those that differ in their figures only are one."""
        found: dict[str, Warned] = {}
        listed = [(int(entry["step"]), entry.get("warnings")) for entry in self.health]
        for step, text in ((step, str(text)) for step, texts in listed if isinstance(texts, list) for text in texts):
            kind = re.sub(r"\d+(\.\d+)?", "#", text)
            found[kind] = Warned(text, (*(found[kind].steps if kind in found else ()), step))
        return tuple(found.values())

    def last_check_is_clean(self) -> bool:
        """Whether the newest health line has no warning."""
        return not self.health or not self.health[-1].get("warnings")


def _elapsed(clock: float, times: list[float]) -> float:
    total = 0.0
    for now in times:
        total += now - clock if now >= clock else now
        clock = now
    return total
