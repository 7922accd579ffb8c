"""Measurements of a run while it goes on, each at its cadence, at the start and at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewstep.random import Key
from fewstep.states import Step
from fewstep.training.monitors import Monitor
from fewstep.training.offload import Room
from fewstep.training.reporting.journal import Journal
from fewstep.training.settings import Progress


@dataclass(frozen=True, eq=False)
class Probe:
    """A measurement of the run: ``measure(global step)`` every ``every`` steps, at the start and at
    the end; its figures go into the log. ``uses``: the networks that it runs, None for any of the
    run's.
    """

    name: str
    every: int
    measure: Callable[[int], Mapping[str, float]]
    uses: Sequence[nn.Module] | None = None


class ProbeRounds:
    """Takes ``probes`` when they are due, and writes what they find into ``journal``; ``say`` is
    told what monitors warn of. Each begins by taking in what it uses into ``room``.
    """

    def __init__(
        self,
        probes: Sequence[Probe | Monitor],
        journal: Journal,
        say: Callable[[str], None],
        seed: int,
        device: torch.device,
        room: Room,
    ):
        self.probes = list(probes)
        self._journal = journal
        self._say = say
        self._seed = seed
        self._device = device
        self._room = room

    def due(self, step: int, last: bool = False) -> list[Probe | Monitor]:
        """Those of global step ``step``; at the end those that are not due as well, so that none is
        taken twice.
        """
        return [probe for probe in self.probes if (step % probe.every == 0) != last]

    def take(self, progress: Progress, last: bool = False) -> None:
        """Takes those that are due."""
        for probe in self.due(progress.step, last):
            figures = self._measured(probe, progress.step)
            self._journal.write_measured(progress, probe.name, figures)
            for warning in figures["warnings"] if isinstance(probe, Monitor) else ():
                self._say(f"step {progress.step}: {warning}")

    def _measured(self, probe: Probe | Monitor, step: int) -> Mapping[str, Any]:
        if isinstance(probe, Probe):
            if probe.uses is None:
                self._room.take_in_all()
            else:
                self._room.take_in(probe.uses)
            return probe.measure(step)
        self._room.take_in(probe)
        own = Step(Key(self._seed, "monitor", step), probe.rows, device=self._device)
        readings = probe.read(own, self._journal.recent, self._journal.past)
        self._journal.remember({reading.name: reading.value for reading in readings})
        warnings = [reading.warning for reading in readings if reading.warning and step >= probe.warn_from]
        return {**{reading.name: reading.value for reading in readings}, "warnings": warnings}
