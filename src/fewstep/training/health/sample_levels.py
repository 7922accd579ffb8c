r"""Mean, contrast and spread of a student's samples: held against the data's, and against what the
run's own were.

With the mean m_c and the deviation s_c of all values of channel c (of a coordinate, where samples
are points) over the samples, and m'_c and s'_c over the data:

    shift = max_c |m_c - m'_c| / s'_c,        contrast = the s_c / s'_c that is farthest from 1.

Networks that see latents have samples that are latents, and so is the data then. A run without data
has the median of its own last readings in the place of the data.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.data import Dataset
from fewstep.metrics.diversity import spread
from fewstep.states import States, Step
from fewstep.training.monitors import Check, Reading, some_of

ENOUGH = 3
"""Readings of a run's own before it is held against them."""
_LOWER = "a lower rate of the student helps, or fewer of its steps for one of the fake score"


def channel_levels(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the deviation (C,), float64 on the CPU, of each channel of samples (N, C, ...)
    over samples and pixels.
    """
    by_channel = samples.double().cpu().transpose(0, 1).flatten(1)
    return by_channel.mean(1), by_channel.std(1, correction=0)


@dataclass(frozen=True, eq=False)
class MeanShift(Check):
    """By how many of the data's deviations the samples' mean is off, in the channel where that is
    most: above ``limit`` the student has left the data.
    """

    samples: States
    data: Dataset
    limit: float = 0.6

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        mean, deviation = self._own
        if not bool((deviation > 0).all()):
            return None
        shift = float(((channel_levels(step.state(self.samples).x)[0] - mean).abs() / deviation).max())
        warning = (
            f"the samples' mean is {shift:.2f} deviations of the data off (bound {self.limit:g}): the student leaves "
            f"the data; {_LOWER}."
        )
        return Reading("mean_shift", shift, warning if not shift <= self.limit else "")

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor]:
        some = some_of(self.data)
        return channel_levels(some.take(torch.arange(len(some))))


@dataclass(frozen=True, eq=False)
class Contrast(Check):
    """The deviation of the samples' values over the data's, in the channel where that is farthest
    from 1: below ``low`` the samples fade, above ``high`` they glare.
    """

    samples: States
    data: Dataset
    low: float = 0.6
    high: float = 1.6
    advice: str = ""

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        own = self._own
        if not bool((own > 0).all()):
            return None
        ratios = channel_levels(step.state(self.samples).x)[1] / own
        ratio = float(ratios[ratios.log().abs().argmax()])
        helps = f"{self.advice or _LOWER}."
        if not ratio <= self.high:
            warning = (
                f"the samples' contrast is {ratio:.2f} times the data's (bound {self.high:g}): they glare; {helps}"
            )
        else:
            warning = f"the samples' contrast is {ratio:.2f} of the data's (bound {self.low:g}): they fade; {_LOWER}."
        return Reading("contrast_over_data", ratio, "" if self.low <= ratio <= self.high else warning)

    @cached_property
    def _own(self) -> Tensor:
        some = some_of(self.data)
        return channel_levels(some.take(torch.arange(len(some))))[1]


@dataclass(frozen=True, eq=False)
class OwnLevels(Check):
    """The samples' spread in a run without data; beside it their mean and their deviation.

    The run warns where the spread leaves [``low``, ``high``] times the median of its last readings,
    and of any that is not a number.
    """

    samples: States
    low: float = 0.6
    high: float = 1.8

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        samples = step.state(self.samples).x
        mean, deviation = channel_levels(samples)
        beside = (Reading("sample_mean", float(mean.mean())), Reading("sample_deviation", float(deviation.mean())))
        return Reading("sample_spread", spread(samples), "", beside)

    def against(self, reading: Reading, past: Sequence[float]) -> str:
        usual = statistics.median(past) if len(past) >= ENOUGH else 0.0
        if usual <= 0 or self.low <= reading.value / usual <= self.high:
            return ""
        ratio = reading.value / usual
        if ratio < self.low:
            what = (
                f"the samples' spread is {ratio:.2f} of what it was (bound {self.low:g}): the student may be collapsing"
            )
        else:
            what = f"the samples' spread is {ratio:.2f} times what it was (bound {self.high:g}): the student scatters"
        return f"{what}; {_LOWER}."
