r"""The mismatch degree of a teacher (DisBack, Eq. 9): how far its score is from the true score of a
distribution.

With the stable target field of reference samples standing for the true score (Eq. 18; see
``denoisers.exact.field``), per noise level,

    d(level) = E | score_teacher(x_t, t) - score_field(x_t, t) |  ,   x_t = alpha x_0 + sigma eps,

in two units:

- ``degrees``: the root mean square a dimension, in units in which the score of pure noise has size
  1 (times sigma), so that numbers of dimensions and levels can be compared: |D_teacher - D_field|
  alpha / sigma;
- ``norms``: Eq. 9 as it is printed, the mean over samples of the Euclidean norm, of the scores of
  x_t / alpha (the paper's processes have alpha = 1): |D_teacher - D_field| (alpha / sigma)^2, with
  its standard deviation over the samples in ``deviations``. It grows with the root of the
  dimensions, and low levels outweigh the others.

Two readings, as Fig. 11 has them:

- ``training_mismatch``: x_0 and references are training data: the teacher's own error, the ideal
  lower bound;
- ``assessed_mismatch``: x_0 and references are the samples of a student, which is what Sec. 5.3
  describes: how little the teacher's score is the student's.

The references contain the sample's own x_0 (Xu et al. 2022). At levels where the effective sample
size 1 / sum w^2 is below 2, the field only repeats that x_0: these are marked unreliable and left
out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.data import Dataset
from fewstep.denoisers import Denoiser, StableTargetField, device_of
from fewstep.random import Key

LEVELS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


@dataclass(frozen=True)
class MismatchDegree:
    """Per level sigma / alpha: the degree, the mean effective sample size, and whether it is at
    least 2; ``mean`` over reliable levels (all, if none is).

    ``norms`` and ``deviations``: Eq. 9 as it is printed, and its deviation over the samples (see
    the module).
    """

    levels: tuple[float, ...]
    degrees: tuple[float, ...]
    effective_sizes: tuple[float, ...]
    norms: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()

    @property
    def reliable(self) -> tuple[bool, ...]:
        """Whether each level's field averages at least two samples."""
        return tuple(size >= 2 for size in self.effective_sizes)

    @property
    def mean(self) -> float:
        """The mean degree over reliable levels."""
        chosen = [d for d, fine in zip(self.degrees, self.reliable, strict=True) if fine] or list(self.degrees)
        return sum(chosen) / len(chosen)


def comparable_means(a: MismatchDegree, b: MismatchDegree) -> tuple[float, float]:
    """Both degrees' means over the levels that are reliable in both (all, if none is): means over
    different levels say nothing, since degrees fall with the level.
    """
    chosen = _comparable(a, b)
    first, second = (sum(m.degrees[index] for index in chosen) / len(chosen) for m in (a, b))
    return first, second


@dataclass(frozen=True)
class Norm:
    """Eq. 9 as it is printed, over several levels: the mean, and the deviation over samples (the
    root of the levels' mean variance).
    """

    mean: float
    deviation: float


def comparable_norms(a: MismatchDegree, b: MismatchDegree) -> tuple[Norm, Norm]:
    """Both, over the levels of ``comparable_means``."""
    chosen = _comparable(a, b)
    first, second = (
        Norm(
            sum(m.norms[index] for index in chosen) / len(chosen),
            math.sqrt(sum(m.deviations[index] ** 2 for index in chosen) / len(chosen)),
        )
        for m in (a, b)
    )
    return first, second


def _comparable(a: MismatchDegree, b: MismatchDegree) -> list[int]:
    """The indices of the levels that are reliable in both; of all, if none is."""
    both = [fine and other for fine, other in zip(a.reliable, b.reliable, strict=True)]
    return [index for index, fine in enumerate(both) if fine] or list(range(len(both)))


@torch.no_grad()
def assessed_mismatch(
    teacher: Denoiser, samples: Tensor, labels: Tensor | None, key: Key, levels: Sequence[float] = LEVELS
) -> MismatchDegree:
    """The teacher's mismatch on samples (N, *D) of a student; each is asked at every level against
    all of them.
    """
    samples = samples.to(device_of(teacher))
    labels = labels.to(samples.device) if teacher.classes and labels is not None else None
    field = StableTargetField(teacher.schedule, samples, labels)
    condition = Condition(labels=labels)
    degrees, sizes, norms, deviations = [], [], [], []
    for level in levels:
        t = teacher.schedule.time_at_sigma(level).expand(len(samples))
        x_t = teacher.schedule.add_noise(samples, t, key.normal(f"mismatch-{level}", samples.shape).to(samples))
        error = (teacher(x_t, t, condition) - field(x_t, t, condition)).double()
        degrees.append(float(error.square().mean().sqrt()) / level)
        sizes.append(float(field.effective_size(x_t, t, condition).mean()))
        norm = error.flatten(1).norm(dim=1) / level**2
        norms.append(float(norm.mean()))
        deviations.append(float(norm.std(correction=0)))
    return MismatchDegree(tuple(levels), tuple(degrees), tuple(sizes), tuple(norms), tuple(deviations))


def training_mismatch(teacher: Denoiser, data: Dataset, key: Key, levels: Sequence[float] = LEVELS) -> MismatchDegree:
    """The teacher's mismatch on data it was trained on: the lower bound for every student."""
    return assessed_mismatch(teacher, data.take(torch.arange(len(data))), data.labels, key, levels)
