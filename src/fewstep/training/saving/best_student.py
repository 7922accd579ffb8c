r"""The best student of a run, kept beside the last: by measurements on noise that is held out.

A measurement is noisy. Of n students of one quality m, measured with independent noise N(0, s^2),
the least figure is not m but

    E min = m - s c_n,        c_2 = 1 / sqrt(pi),        c_n ~ sqrt(2 log n),

so that a minimum over a run prefers luck, and promises more than the student has. So there are
three draws of noise, independent of one another, of training and of what ``evaluate`` draws:

- the *first* proposes: a student whose figure is better than that of the kept student;
- the *second*, taken of proposed students alone, decides: the student is kept if its figure is
  better than that of the kept student here too. Luck on the first draw does not help it;
- the *third*, taken of kept students alone, is what is told. Whatever rejects students by a figure
  bends that figure, the second draw's too. The third draw rejects nothing: of students of one
  quality its expectation is m (``test_best_student``).

All students are measured on the same noise of a draw, so that what that noise favours, it favours
in all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from fewstep.denoisers import Averaged
from fewstep.resumable import Resumable
from fewstep.system import distributed
from fewstep.training.probes import Probe

Draw = Literal["proposes", "decides", "tells"]
NAME = "best"
"""Of the probe in the log, and of the student in checkpoints."""


@dataclass(frozen=True, eq=False)
class StudentMeasure:
    """``take`` gives a student's figure on one of the draws; ``least``: whether less is better.
    ``words`` call it, ``name`` is what a recipe says.
    """

    name: str
    words: str
    least: bool
    take: Callable[[Draw], float]

    def better(self, one: float, other: float) -> bool:
        """Whether a figure is better than another; what is not finite is not."""
        return math.isfinite(one) and (one < other if self.least else one > other)

    @property
    def worst(self) -> float:
        """What every finite figure is better than."""
        return math.inf if self.least else -math.inf


@dataclass(frozen=True)
class KeptFigures:
    """The figures of the kept student, which the run had after ``step`` steps: on the draw that
    proposed it, on that which decided, and on that which did neither.
    """

    step: int
    first: float
    second: float
    figure: float


class BestStudent(Resumable):
    """The best student of a run so far, a copy of the ``average``'s: ``model``, and its figures
    ``kept``, None before there is one.

    It is measured every ``every`` steps by ``measure``, which runs ``uses`` besides. ``write`` is
    given each student that is kept, with what its file says of it. ``patience``: after so many
    measurements of the last stage without a better student the run is to end; None for never.
    """

    def __init__(
        self,
        average: Averaged,
        measure: StudentMeasure,
        write: Callable[[nn.Module, Mapping[str, Any]], None],
        every: int,
        patience: int | None = None,
        uses: Sequence[nn.Module] = (),
    ):
        self.model = copy.deepcopy(average.average)
        self.kept: KeptFigures | None = None
        self.probe = Probe(NAME, every, self._measured, [average, *uses])
        self._average, self._measure, self._write = average, measure, write
        self._patience = patience
        self._misses = 0
        self._counts = False
        self._updates: int | None = None

    @property
    def out_of_patience(self) -> bool:
        """Whether the run is to end."""
        return self._patience is not None and self._counts and self._misses >= self._patience

    @property
    def ending(self) -> str:
        """Why the run ended before its last step."""
        assert self.kept is not None
        last = f"the last {self._misses} measurements" if self._misses > 1 else "the last measurement"
        return (
            f"ended by 'training.keep_best.patience': {last} found no better student than that of step "
            f"{self.kept.step} ({self._measure.words} {self.kept.figure:.4g})."
        )

    def begin_last_stage(self) -> None:
        """Counts misses from here on: what a stage before it makes of a student is not its end."""
        self._counts, self._misses = True, 0

    def write_again(self) -> None:
        """Writes the kept student, where there is one: a file may be of a later step than the
        checkpoint that a run goes on from.
        """
        if self.kept is not None:
            self._write(self.model, self._described(self.kept))

    def _measured(self, step: int) -> dict[str, float]:
        """Measures the student; what a log's line says of it. Nothing where no update was made."""
        if self._updates == self._average.updates:
            return {}
        self._updates = self._average.updates
        kept, worst = self.kept, self._measure.worst
        figures = {"first": self._taken("proposes")}
        if self._measure.better(figures["first"], worst if kept is None else kept.first):
            figures["second"] = self._taken("decides")
        better = self._measure.better(figures.get("second", worst), worst if kept is None else kept.second)
        self._misses = 0 if better else self._misses + 1
        if better:
            figures["figure"] = self._taken("tells")
            self.kept = KeptFigures(step, figures["first"], figures["second"], figures["figure"])
            self._copy()
            self._write(self.model, self._described(self.kept))
        return {**figures, "kept": int(better), "misses": self._misses, "ends": int(self.out_of_patience)}

    def _taken(self, draw: Draw) -> float:
        # One process' figure is everyone's: a last bit must not keep a student in one alone.
        return distributed.agreed(float(self._measure.take(draw)))

    @torch.no_grad()
    def _copy(self) -> None:
        here, there = ([*model.parameters(), *model.buffers()] for model in (self.model, self._average.average))
        for kept, value in zip(here, there, strict=True):
            kept.copy_(value)

    def _described(self, kept: KeptFigures) -> dict[str, Any]:
        return {NAME: {"measure": self._measure.name, **asdict(kept)}}

    def state_dict(self) -> dict[str, Any]:
        kept = None if self.kept is None else asdict(self.kept)
        return {"kept": kept, "misses": self._misses, "counts": self._counts, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = None if state["kept"] is None else KeptFigures(**state["kept"])
        self._misses, self._counts, self._updates = state["misses"], state["counts"], state["updates"]
