r"""Which step of a student matters: DDIL's "sensitivity of timestep in reverse process" (Garrepalli
et al. 2024, App. E.1, Figure 4).

From the noise z of one sample, let T be the teacher's own generation, and replace one transition j
of n (see ``shift``):

    student_once_j = E | f(teacher except at j, where the student) - f(T) |     the student's error
    at states of the teacher, carried on by the teacher,
    teacher_once_j = E | f(student except at j, where the teacher) - f(T) |     what is left of the
    student's error when the teacher helps it once,
    student        = E | f(student throughout) - f(T) |,

with the Euclidean norm of a sample in the feature space of f (the sample itself, unless one is
given). A student that is the teacher's r steps in one has zeros everywhere.

If the teacher were affine and the student erred at its own states as it does at the teacher's, its
whole error would be the sum of the n errors of ``student_once`` as vectors, hence ``student`` at
most the sum of ``student_once``: what is above that comes from states which the teacher would not
visit, or from how it carries on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.metrics.frechet import features_of
from fewstep.random import Key
from fewstep.studies.shift import Relay, Selection, TeacherFirst, mixed_sampler


@dataclass(frozen=True)
class StudentOnce(Selection):
    """The teacher everywhere but at one ``transition``."""

    transition: int

    def teaches(self, key: Key, rows: int, start: int, transition: int) -> Tensor:
        return torch.full((rows,), transition != self.transition)


@dataclass(frozen=True)
class TeacherOnce(Selection):
    """The student everywhere but at one ``transition``."""

    transition: int

    def teaches(self, key: Key, rows: int, start: int, transition: int) -> Tensor:
        return torch.full((rows,), transition == self.transition)


@dataclass(frozen=True)
class Sensitivity:
    """Mean distances, >= 0, from the teacher's own samples; ``times`` (n,): where each transition
    begins. See the module's docstring.
    """

    times: tuple[float, ...]
    student_once: tuple[float, ...]
    teacher_once: tuple[float, ...]
    student: float


def step_sensitivity(
    relay: Relay, key: Key, rows: int, labels: Tensor | None = None, features: Callable[[Tensor], Tensor] | None = None
) -> Sensitivity:
    """Over ``rows`` samples of a place with labels (rows,) or None, all from the same noise;
    ``features``: (B, *D) -> (B, d).
    """

    def generated(selection: Selection) -> Tensor:
        samples = mixed_sampler(relay, selection)(key, rows, labels)
        return (samples if features is None else features_of(samples, features)).flatten(1).double()

    reference = generated(TeacherFirst(relay.transitions))

    def distance(selection: Selection) -> float:
        return float((generated(selection) - reference).norm(dim=1).mean())

    return Sensitivity(
        tuple(relay.times[:-1].tolist()),
        tuple(distance(StudentOnce(index)) for index in range(relay.transitions)),
        tuple(distance(TeacherOnce(index)) for index in range(relay.transitions)),
        distance(TeacherFirst(0)),
    )
