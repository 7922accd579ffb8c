"""Is my run healthy? Readings taken while it goes on, each with a sentence when it is off.

Loss curves of distribution matching say little: the student's has no meaning as a number, and the
fake score's falls whether or not the student collapses. These readings do not depend on the losses.
A monitor is a list of checks; a check gets a step of its own (draws are a function of place, so
readings are repeatable) and the means of what training reported lately. Its reading may be held
against those before it, which the log remembers: what falls is seen before it is low.
"""

from __future__ import annotations

import abc
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from fewstep.data import Dataset
from fewstep.denoisers import Denoiser
from fewstep.metrics.diversity import outside, spread
from fewstep.metrics.mismatch import (
    MismatchDegree,
    assessed_mismatch,
    comparable_means,
    comparable_norms,
    training_mismatch,
)
from fewstep.random import Key
from fewstep.states import States, Step

SPREAD_VALUES = 2**24


@dataclass(frozen=True)
class Reading:
    """A named value, and a sentence when it is off; ``beside``: what was found along with it."""

    name: str
    value: float
    warning: str = ""
    beside: tuple[Reading, ...] = ()


@dataclass(frozen=True, eq=False)
class Check(abc.ABC):
    """One thing to look at."""

    @abc.abstractmethod
    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        """The reading, None when there is nothing to read yet."""

    def against(self, reading: Reading, past: Sequence[float]) -> str:
        """What is wrong with a reading beside the ``past`` values, the newest last, as a sentence;
        nothing unless a class compares them.
        """
        return ""


@dataclass(frozen=True, eq=False)
class Monitor:
    """Takes all ``checks`` every ``every`` steps on ``rows`` samples; warns only from step
    ``warn_from`` on, since an untrained student is off in every way.
    """

    checks: Sequence[Check]
    every: int = 200
    rows: int = 256
    warn_from: int = 0
    name: str = "health"

    @torch.no_grad()
    def read(
        self, step: Step, recent: Mapping[str, float], past: Mapping[str, Sequence[float]] | None = None
    ) -> list[Reading]:
        """The readings of one moment; ``past``: earlier ones by name, the newest last."""
        found = []
        for check in self.checks:
            reading = check.read(step, recent)
            if reading is not None:
                warning = reading.warning or check.against(reading, (past or {}).get(reading.name, ()))
                found += [replace(reading, warning=warning), *reading.beside]
        return found


@dataclass(frozen=True, eq=False)
class Mismatch(Check):
    """The mismatch degree of the teacher on the student's samples (DisBack, Eq. 9, read as Sec. 5.3
    does) over its value on ``data``: above ``limit`` the student is off the data.

    Beside it the same as Eq. 9 is printed, a mean norm: with its deviation over the samples, and
    its value on ``data``.
    """

    teacher: Denoiser
    samples: States
    data: Dataset
    limit: float = 4.0

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        state = step.state(self.samples)
        assessed = assessed_mismatch(self.teacher, state.x, state.condition.labels, step.key)
        degree, bound = comparable_means(assessed, self._bound)
        ratio = degree / bound
        warning = (
            f"the teacher does not recognise the student's samples (mismatch degree {ratio:.1f} times that of data, "
            f"bound {self.limit:g}); a lower rate of the student helps."
        )
        norm, bound_norm = comparable_norms(assessed, self._bound)
        figures = {
            "mismatch_norm": norm.mean,
            "mismatch_norm_deviation": norm.deviation,
            "mismatch_norm_on_data": bound_norm.mean,
        }
        beside = tuple(Reading(name, value) for name, value in figures.items())
        return Reading("mismatch_over_bound", ratio, warning if ratio > self.limit else "", beside)

    # When it is first asked for: networks are where they work by then.
    @cached_property
    def _bound(self) -> MismatchDegree:
        return training_mismatch(self.teacher, self.data, Key(0, "mismatch-bound"))


@dataclass(frozen=True, eq=False)
class Spread(Check):
    """The samples' spread within their classes over the data's: below ``low`` the student
    collapses, above ``high`` it scatters. Below ``fall`` of the median of the last readings its
    diversity falls.
    """

    samples: States
    data: Dataset
    low: float = 0.75
    high: float = 1.35
    fall: float = 0.75

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        state = step.state(self.samples)
        # Data with one sample a class, or with equal ones, has no spread to be compared with.
        if not self._own:
            return None
        # Without classes of the data's, a label may be the number of a prompt.
        labels = None if self.data.labels is None else state.condition.labels
        ratio = spread(state.x, labels) / self._own
        warning = ""
        if ratio < self.low:
            warning = (
                f"the samples' spread is {ratio:.2f} of the data's (bound {self.low:g}): the student may be "
                "collapsing; a lower rate or a data term helps."
            )
        elif ratio > self.high:
            warning = (
                f"the samples' spread is {ratio:.2f} times the data's (bound {self.high:g}): the student scatters; a "
                "lower rate helps."
            )
        return Reading("spread_over_data", ratio, warning)

    def against(self, reading: Reading, past: Sequence[float]) -> str:
        usual = statistics.median(past) if len(past) >= 3 else 0.0
        if reading.value >= self.fall * usual:
            return ""
        bound = self.fall * usual
        return (
            f"the samples' spread is {reading.value:.2f} of the data's and was {usual:.2f} (bound {bound:.2f}): "
            "diversity falls; a lower rate or a data term helps."
        )

    @cached_property
    def _own(self) -> float:
        some = some_of(self.data)
        return spread(some.take(torch.arange(len(some))), some.labels)


@dataclass(frozen=True, eq=False)
class Saturation(Check):
    """The fraction of values outside the data's range by more than ``margin`` of it.

    What has no range, such as latents, has that of the data's own values.

    Where the data's own values stand at the range's ends (ink on paper), any even-handed error puts
    half of these outside. The student saturates where more than ``limit`` of the values are outside
    beside that half. ``advice`` says what helps; nothing where the recipe has nothing to turn.
    """

    samples: States
    data: Dataset
    margin: float = 0.05
    limit: float = 0.05
    advice: str = ""

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        samples: Tensor = step.state(self.samples).x
        fraction, bound = outside(samples, *self._range, self.margin), self.limit + 0.5 * self._at_the_ends
        warning = (
            f"{fraction:.0%} of the samples' values lie outside the data's range (bound {bound:.0%}): the student "
            f"saturates{f'; {self.advice}' if self.advice else ''}."
        )
        return Reading("saturation", fraction, warning if not fraction <= bound else "")

    @cached_property
    def _range(self) -> tuple[float, float]:
        if math.isfinite(self.data.high - self.data.low):
            return self.data.low, self.data.high
        data = some_of(self.data)
        values = data.take(torch.arange(len(data)))
        return float(values.min()), float(values.max())

    @cached_property
    def _at_the_ends(self) -> float:
        """The share of the data's values within the margin of an end of the range."""
        data = some_of(self.data)
        return outside(data.take(torch.arange(len(data))), *self._range, -self.margin)


@dataclass(frozen=True, eq=False)
class GradientNorm(Check):
    """The mean norm of a phase's gradient before clipping, over its clipping bound: above ``limit``
    hardly anything but its direction is left.
    """

    phase: str
    clip: float
    limit: float = 20.0

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        norm = recent.get(f"{self.phase}.gradient_norm")
        if norm is None:
            return None
        warning = (
            f"the gradient of phase '{self.phase}' is {norm / self.clip:.0f} times its clipping bound on "
            "average: raise the bound or lower the weight."
        )
        return Reading(
            f"{self.phase}_gradient_over_clip", norm / self.clip, warning if norm > self.limit * self.clip else ""
        )


def some_of(data: Dataset) -> Dataset:
    """As many samples as fit in 64 MiB: all of a small set."""
    return data.subset(data.head(max(1, SPREAD_VALUES // prod(data.shape))))
