"""What a phase reports of a step, and whether all steps so far were finite.

A report stays on the device until the host reads it: the losses and figures of each portion, and
the norm of the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.objectives import Mean, Reduction
from fewstep.states import Step
from fewstep.system import distributed
from fewstep.training.phase import Phase


@dataclass(frozen=True)
class Values:
    """A report of all processes, on the host: the terms' ``losses``, the phase's ``figures`` by
    name and the ``norm`` of its gradient.
    """

    losses: list[float]
    figures: dict[str, float]
    norm: float


class Report:
    """What ``phase`` reports of ``steps``, the portions of one step; filled with ``add`` and ended
    with the gradient's norm.
    """

    def __init__(self, phase: Phase, steps: Sequence[Step]):
        self.phase = phase
        self.steps = steps
        self._portions: list[Tensor] = []
        self._names: list[str] = []
        self._reductions: dict[str, Reduction] = {}
        self.values = torch.zeros(0)
        self._arrives: torch.cuda.Event | None = None

    def add(self, losses: Sequence[Tensor], figures: Mapping[str, Tensor], reductions: Mapping[str, Reduction]) -> None:
        """What a portion gave."""
        self._names, self._reductions = list(figures), dict(reductions)
        self._portions.append(torch.stack([value.detach().double() for value in (*losses, *figures.values())]))

    def end(self, norm: Tensor) -> None:
        """The norm of the whole batch's gradient, on the device of the losses."""
        self.values = torch.cat([*self._portions, norm.detach().to(self._portions[0])[None]])

    def send(self) -> None:
        """Begins to copy the values to the host, behind what the device has been given to do;
        nobody waits.
        """
        if self.values.is_cuda:
            there, self.values = self.values, torch.empty_like(self.values, device="cpu", pin_memory=True)
            self.values.copy_(there, non_blocking=True)
            self._arrives = torch.cuda.Event()
            # Of the device that copies, which need not be the current one.
            self._arrives.record(torch.cuda.current_stream(there.device))

    def arrived(self) -> Tensor:
        """The values on the host, waited for where they were sent and are still on their way."""
        if self._arrives is not None:
            self._arrives.synchronize()
        # Reports of phases on several devices are read together.
        return self.values.cpu()

    @property
    def sound(self) -> Tensor:
        """Whether losses and norm are finite in this process, a scalar on the device; figures may
        be anything.
        """
        terms = len(self.phase.terms)
        return torch.isfinite(torch.cat([*(portion[:terms] for portion in self._portions), self.values[-1:]])).all()

    @staticmethod
    def gathered(reports: Sequence[Report]) -> list[Values]:
        """The values of reports over all processes, in one exchange."""
        if not reports:
            return []
        every = distributed.gathered(torch.cat([report.arrived() for report in reports]))
        return [
            report._read(values)
            for report, values in zip(
                reports, every.split([len(report.values) for report in reports], dim=1), strict=True
            )
        ]

    def _read(self, every: Tensor) -> Values:
        """Of the values of every process (processes, n)."""
        # Portions of all processes, which are equally large.
        portions = every[:, :-1].reshape(-1, len(self._portions[0]))
        losses, figures = portions[:, : len(self.phase.terms)], portions[:, len(self.phase.terms) :]
        reduced = {
            name: float(self._reductions.get(name, Mean()).of(column))
            for name, column in zip(self._names, figures.T, strict=True)
        }
        return Values(losses.mean(0).tolist(), reduced, float(every[:, -1].max()))


class Soundness:
    """A flag on each device where phases work, the same in all processes: 0 while every loss and
    gradient was finite, and 1 from the first step on that had another.
    """

    def __init__(self) -> None:
        self._lost: dict[torch.device, Tensor] = {}

    def judge(self, report: Report) -> Tensor:
        """Raises the flag where the report is not sound, or where a phase's on another device was
        not: the flag, a float32 scalar on the report's device. The host waits for no device.
        """
        lost = distributed.largest_of((~report.sound).to(torch.float32))
        # A device waits for the others in the turns of its own phases alone.
        for known in self._lost.values():
            lost = torch.maximum(known.to(lost.device), lost)
        self._lost[lost.device] = lost
        return lost
