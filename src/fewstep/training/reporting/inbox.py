"""What the steps reported and the host has not read yet.

Reading a report waits for the device. At the end of a step the host therefore reads what the step
before reported, which has arrived while this one was being queued; only who must know sooner has
all of it read (``read``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fewstep.training.phase import Term
from fewstep.training.reporting.divergence import WayBack
from fewstep.training.reporting.journal import Journal
from fewstep.training.reporting.reports import Report, Values


class Inbox:
    """Reads reports into ``journal``, in the order in which they came.

    ``to_blame`` finds the terms of a report whose gradients were not finite. All processes call all
    methods.
    """

    def __init__(self, journal: Journal, way_back: WayBack, to_blame: Callable[[Report], Sequence[Term]]):
        self._journal = journal
        self._way_back = way_back
        self._to_blame = to_blame
        self._sent: list[tuple[Report, str]] = []
        self._waiting: list[tuple[Report, str]] = []

    def put(self, report: Report, at: str) -> None:
        """Takes a report; ``at`` names its step in sentences."""
        self._waiting.append((report, at))

    def end_step(self) -> None:
        """Sends what this step reported on its way, and reads what the step before did.

        Raises as ``read`` does.
        """
        arrived, self._sent, self._waiting = self._sent, self._waiting, []
        for report, _ in self._sent:
            report.send()
        self._take(arrived)

    def read(self) -> None:
        """Takes all that was reported into the means of the log.

        Raises ``Diverged``, in all processes, when a loss or a gradient was not finite.
        """
        reported, self._sent, self._waiting = [*self._sent, *self._waiting], [], []
        self._take(reported)

    def _take(self, reported: Sequence[tuple[Report, str]]) -> None:
        values_of = Report.gathered([report for report, _ in reported])
        for (report, at), values in zip(reported, values_of, strict=True):
            self._check(report, values, at)
            self._journal.add({**values.figures, f"{report.phase.name}.gradient_norm": values.norm}, at)

    def _check(self, report: Report, values: Values, at: str) -> None:
        where = f"in phase '{report.phase.name}'"
        for term, value in zip(report.phase.terms, values.losses, strict=True):
            if not math.isfinite(value):
                raise self._way_back.diverged(f"the loss of '{term.label}' {where} was {value} {at}")
        if not math.isfinite(values.norm):
            labels = " and ".join(f"'{term.label}'" for term in self._to_blame(report))
            what = f"the gradient of {labels} {where} was not finite {at}, though the loss was"
            raise self._way_back.diverged(what)
