r"""Covariate shift: does a student meet states that it handles badly, and does the teacher help
there? (DDIL, Garrepalli et al. 2024, App. E, Tables 5 to 7)

A student of n steps and a teacher of N = r n DDIM steps meet at the student's times t_0 > ... > t_n
= 0: transition j, from t_j to t_{j+1}, is one jump of the student or r steps of the teacher. So at
every t_j either may go on, and a generation is a word of n letters over {teacher, student}:

- ``mixing``: at each transition of each sample the teacher with probability p, independently (Table
  5);
- ``teacher_then_student``: the teacher down to the time of a switch, then the student (Table 6);
- ``student_then_teacher``: the other way round (Table 7).

How quality changes with who makes which transition shows where the student's errors arise and
whether the teacher can mend them later (``sensitivity`` measures it one transition at a time). Each
sample's start, class and uniform numbers are the same in every row: a transition that is the
teacher's at p is the teacher's at every larger p.

Words of one letter are the two models' own sampling, bit for bit. The two grids share their times
up to rounding only, so each model is called with its own.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, device_of
from fewstep.errors import UserError
from fewstep.metrics.prompted import PromptedMeasures
from fewstep.metrics.quality import Evaluator, Sample
from fewstep.networks import Codec
from fewstep.random import Key
from fewstep.runs.sampler import BATCH
from fewstep.solvers import EULER, FlowMap, solve
from fewstep.states import Prior

PROBABILITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class Relay:
    """A teacher and a student that start from one ``prior`` and meet at ``times`` (n + 1,),
    decreasing from the prior's time to 0.

    ``fine`` (N + 1,): the teacher's times, of which every (N / n)-th is the student's
    (``times.nested_times`` with N and with n steps gives both). The student is a ``FlowMap`` from
    one of its times to the next: ``Solver(student, 1)`` for a DDIM student, ``Renoise`` for a
    consistency model. Raises ``UserError`` for grids that are not nested. ``guidance``: the scale
    that the condition carries, for a student that was conditioned on one; the teacher is then
    ``Guided`` and reads the same. ``codec``: makes pictures of samples that are latents. ``batch``:
    of samples that are made at a time.
    """

    teacher: Denoiser
    student: FlowMap
    prior: Prior
    times: Tensor
    fine: Tensor
    guidance: float | None = None
    codec: Codec | None = None
    batch: int = BATCH

    def __post_init__(self) -> None:
        steps, fine_steps = len(self.times) - 1, len(self.fine) - 1
        if steps < 1 or fine_steps < steps or fine_steps % steps:
            raise UserError(
                f"a teacher of {fine_steps} steps does not meet a student of {steps} at each of its times; "
                "make the one a multiple of the other."
            )
        for name, times in (("student", self.times), ("teacher", self.fine)):
            if not bool((times.diff() < 0).all()) or float(times[-1]) != 0:
                raise UserError(f"the {name}'s times must decrease and end at 0; use nested_times.")
        if not torch.allclose(self.fine[:: self.ratio], self.times, rtol=1e-9, atol=0):
            raise UserError(
                "the student's times are not among the teacher's; make both with nested_times on one grid, "
                "from one first time."
            )
        if abs(float(self.times[0]) - self.prior.time) > 1e-9:
            raise UserError(
                f"the student's times begin at {float(self.times[0]):g}, but its prior is at "
                f"{self.prior.time:g}; begin where the prior is."
            )

    @property
    def transitions(self) -> int:
        """The student's number of steps, n."""
        return len(self.times) - 1

    @property
    def ratio(self) -> int:
        """The teacher's steps to one of the student's, N / n."""
        return (len(self.fine) - 1) // (len(self.times) - 1)

    def starts(self, key: Key, rows: int, labels: Tensor | None, start: int) -> tuple[Tensor, Condition]:
        """Noise (rows, *D) of the samples ``start`` ... of a place, as the student's own sampler
        draws it, and their condition; where the teacher is.
        """
        state = self.prior.at(key, "prior", rows, labels, start).to(device_of(self.teacher))
        return state.x, state.condition if self.guidance is None else replace(
            state.condition, guidance=torch.full((rows,), self.guidance, device=state.x.device)
        )

    def pictured(self, x: Tensor) -> Tensor:
        """The samples x (B, *D) as pictures, on the CPU."""
        if self.codec is None:
            return x.cpu()
        return torch.cat([self.codec.decode(part).cpu() for part in x.split(self.codec.rows)])

    def taught(self, x: Tensor, transition: int, condition: Condition) -> Tensor:
        """x (B, *D) carried over a transition in [0, n) by the teacher."""
        first = transition * self.ratio
        return solve(EULER, self.teacher, x, self.fine[first : first + self.ratio + 1], condition)


class Selection(abc.ABC):
    """Which samples the teacher carries over which transitions; a function of the place and of the
    samples' global indices.
    """

    @abc.abstractmethod
    def teaches(self, key: Key, rows: int, start: int, transition: int) -> Tensor:
        """(rows,) bool for the samples ``start`` ... at a transition in [0, n)."""


@dataclass(frozen=True)
class Stochastic(Selection):
    """The teacher with ``probability`` in [0, 1], for each sample and transition by itself."""

    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"the probability of the teacher must be in [0, 1], got {self.probability}.")

    def teaches(self, key: Key, rows: int, start: int, transition: int) -> Tensor:
        return key.uniform(f"shift-{transition}", rows, start) < self.probability


@dataclass(frozen=True)
class TeacherFirst(Selection):
    """The teacher for the transitions before ``switch``, then the student: 0 is the student alone,
    n the teacher.
    """

    switch: int

    def teaches(self, key: Key, rows: int, start: int, transition: int) -> Tensor:
        return torch.full((rows,), transition < self.switch)


@dataclass(frozen=True)
class StudentFirst(Selection):
    """The student for the transitions before ``switch``, then the teacher: 0 is the teacher alone,
    n the student.
    """

    switch: int

    def teaches(self, key: Key, rows: int, start: int, transition: int) -> Tensor:
        return torch.full((rows,), transition >= self.switch)


def mixed_sampler(relay: Relay, selection: Selection) -> Sample:
    """A sampler ``(place, rows, labels) -> (rows, *D)`` whose every transition is made by whom the
    selection says; pictures where there is a codec; not clamped, without gradient, a function of
    the place.

    A model that no sample of a batch needs is not called; otherwise it sees the whole batch, since
    a row's last bits may depend on how many go with it.
    """

    @torch.no_grad()
    def sample(key: Key, rows: int, labels: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, rows, relay.batch):
            count = min(relay.batch, rows - start)
            part = None if labels is None else labels[start : start + count]
            student, (x, condition) = relay.student.at(key, start), relay.starts(key, count, part, start)
            for index in range(relay.transitions):
                teaches = selection.teaches(key, count, start, index)
                x = _carried(relay, student, x, index, teaches, condition)
            parts.append(relay.pictured(x))
        return torch.cat(parts)

    return sample


def _carried(relay: Relay, student: FlowMap, x: Tensor, index: int, teaches: Tensor, condition: Condition) -> Tensor:
    if bool(teaches.all()):
        return relay.taught(x, index, condition)
    jumped = student(x, relay.times[index], relay.times[index + 1], condition)
    if not bool(teaches.any()):
        return jumped
    chosen = teaches.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.where(chosen, relay.taught(x, index, condition), jumped)


@dataclass(frozen=True)
class ShiftRow:
    """One row of a table: ``setting`` is the teacher's probability or the time of the switch;
    ``accuracy`` is None without a classifier; ``diversity`` is relative to the data's;
    ``prompt_accuracy``, of the first draw, is None without prompts or a reader of them.
    """

    setting: float
    fd: float | None
    fd_spread: float | None
    accuracy: float | None
    recall: float | None
    coverage: float | None
    diversity: float | None
    prompt_accuracy: float | None = None


def shift_row(relay: Relay, evaluator: Evaluator, selection: Selection, setting: float, draws: int = 1) -> ShiftRow:
    """The quality of one selection's samples, clamped to the data's range."""
    sampler, data = mixed_sampler(relay, selection), evaluator.data
    assert data is not None
    first: list[tuple[Tensor, Tensor | None]] = []

    def drawn(key: Key, rows: int, labels: Tensor | None) -> Tensor:
        samples = sampler(key, rows, labels).clamp(data.low, data.high)
        if not first:
            first.append((samples, labels))
        return samples

    found = evaluator.describe(drawn, draws)
    quality, breadth = found.quality, found.breadth
    return ShiftRow(
        float(setting),
        quality.fd,
        quality.fd_spread,
        quality.accuracy,
        breadth.recall,
        breadth.coverage,
        breadth.diversity,
        _prompt_accuracy(evaluator, relay.prior.conditions.texts, *first[0]),
    )


def _prompt_accuracy(
    evaluator: Evaluator, texts: Sequence[str], pictures: Tensor, numbers: Tensor | None
) -> float | None:
    if not texts or numbers is None:
        return None
    measures = PromptedMeasures(evaluator.features, evaluator.readings)
    accuracy, _ = measures.accuracy(pictures, [texts[number] for number in numbers.tolist()])
    return None if accuracy is None else accuracy["all"]


def mixing(
    relay: Relay, evaluator: Evaluator, probabilities: Sequence[float] = PROBABILITIES, draws: int = 1
) -> tuple[ShiftRow, ...]:
    """A row for each probability of the teacher."""
    return tuple(
        shift_row(relay, evaluator, Stochastic(probability), probability, draws) for probability in probabilities
    )


def teacher_then_student(relay: Relay, evaluator: Evaluator, draws: int = 1) -> tuple[ShiftRow, ...]:
    """A row for each of the student's times, at which it takes over: the first is the student
    alone, the last (t = 0) the teacher.
    """
    return tuple(
        shift_row(relay, evaluator, TeacherFirst(index), float(time), draws) for index, time in enumerate(relay.times)
    )


def student_then_teacher(relay: Relay, evaluator: Evaluator, draws: int = 1) -> tuple[ShiftRow, ...]:
    """A row for each of the student's times, at which the teacher takes over: the first is the
    teacher alone, the last (t = 0) the student.
    """
    return tuple(
        shift_row(relay, evaluator, StudentFirst(index), float(time), draws) for index, time in enumerate(relay.times)
    )
