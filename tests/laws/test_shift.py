"""Laws of mixed generations: the two models' own samples at the ends, closed forms of an affine
teacher between.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from law_kit import SCHEDULES, normals, three_gaussians, tiny_denoiser
from torch import Tensor

from fewstep.condition import Classes, Condition
from fewstep.data import InMemory
from fewstep.denoisers import GaussianMixture
from fewstep.errors import UserError
from fewstep.metrics.quality import Evaluator
from fewstep.random import Key
from fewstep.runs.sampler import BATCH, StudentSampler
from fewstep.schedule import KarrasVE, Schedule
from fewstep.solvers import EULER, FlowMap, Renoise, Solver, solve
from fewstep.states import Prior
from fewstep.studies.sensitivity import StudentOnce, TeacherOnce, step_sensitivity
from fewstep.studies.shift import (
    PROBABILITIES,
    Relay,
    Selection,
    Stochastic,
    StudentFirst,
    TeacherFirst,
    mixed_sampler,
    mixing,
    student_then_teacher,
    teacher_then_student,
)
from fewstep.times import RhoGrid, nested_times

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
PLACE = Key(3, "test")
STD = 0.6


@dataclass(frozen=True, eq=False)
class Composed(FlowMap):
    """The teacher's own steps between two of the student's times: the student that has nothing left
    to learn.
    """

    teacher: GaussianMixture
    times: Tensor
    fine: Tensor

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        ratio = (len(self.fine) - 1) // (len(self.times) - 1)
        first = ratio * int((self.times - t).abs().argmin())
        return solve(EULER, self.teacher, x, self.fine[first : first + ratio + 1], condition)


@dataclass(frozen=True, eq=False)
class Shifted(Composed):
    """The same, with a shift after the jump that begins at one of the times."""

    wrong: int
    shift: float

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        end = super().__call__(x, t, s, condition)
        return end + self.shift if float(t) == float(self.times[self.wrong]) else end


def _grids(schedule: Schedule, steps: int, ratio: int, level: float = 4.0) -> tuple[Tensor, Tensor]:
    first = float(schedule.time_at_sigma(level))
    times, fine = (nested_times(RhoGrid(), schedule, first, count) for count in (steps, steps * ratio))
    return times, fine


def _relay(schedule: Schedule, steps: int = 4, ratio: int = 3) -> Relay:
    """A mixture as the teacher, another as a DDIM student."""
    times, fine = _grids(schedule, steps, ratio)
    student = GaussianMixture(
        schedule, torch.ones(2), torch.tensor([[1.0, 0.3], [-0.5, 0.8]]), torch.tensor([0.3, 0.5]), torch.arange(2)
    )
    return Relay(
        three_gaussians(schedule),
        Solver(student, 1),
        Prior(schedule, (2,), float(times[0]), conditions=Classes(2)),
        times,
        fine,
    )


def _affine(schedule: Schedule, steps: int = 2, ratio: int = 4) -> Relay:
    """A round Gaussian as the teacher, and its own coarse DDIM steps as the student."""
    times, fine = _grids(schedule, steps, ratio)
    teacher = GaussianMixture(schedule, torch.ones(1), torch.zeros(1, 2), torch.full((1,), STD**2))
    return Relay(teacher, Solver(teacher, 1), Prior(schedule, (2,), float(times[0])), times, fine)


def _with_composed(relay: Relay) -> Relay:
    assert isinstance(relay.teacher, GaussianMixture)
    return Relay(relay.teacher, Composed(relay.teacher, relay.times, relay.fine), relay.prior, relay.times, relay.fine)


def _factors(relay: Relay) -> tuple[list[float], list[float]]:
    """What each transition multiplies x by, of the teacher and of the student: DDIM with D = a g x,
    g = v / (a^2 v + s^2), is r + (a_end - r a) a g, r = s_end / s.
    """
    schedule = relay.prior.schedule

    def factor(t: Tensor, s: Tensor) -> float:
        alpha, sigma, ratio = (
            float(schedule.alpha(t)),
            float(schedule.sigma(t)),
            float(schedule.sigma(s) / schedule.sigma(t)),
        )
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return ratio + (float(schedule.alpha(s)) - ratio * alpha) * gain

    fine = [factor(t, s) for t, s in itertools.pairwise(relay.fine)]
    teacher = [math.prod(fine[j * relay.ratio : (j + 1) * relay.ratio]) for j in range(relay.transitions)]
    return teacher, [factor(t, s) for t, s in itertools.pairwise(relay.times)]


def _starts(relay: Relay, rows: int, labels: Tensor | None = None) -> list[tuple[Tensor, Condition, int]]:
    """Noise and conditions by batches."""
    parts = []
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        state = relay.prior.at(PLACE, "prior", count, None if labels is None else labels[start : start + count], start)
        parts.append((state.x, state.condition, start))
    return parts


# The ends: one of the two models alone


@every_schedule
@pytest.mark.parametrize(
    "selection", [Stochastic(0.0), TeacherFirst(0), StudentFirst(4)], ids=["mixing", "teacher-first", "student-first"]
)
def test_without_the_teacher_it_is_the_student_bit_for_bit(schedule: Schedule, selection: Selection) -> None:
    relay = _relay(schedule)
    labels = torch.arange(700) % 2
    parts = []
    with torch.no_grad():
        for x, condition, _ in _starts(relay, 700, labels):
            for t, s in itertools.pairwise(relay.times):
                x = relay.student(x, t, s, condition)
            parts.append(x)
    assert torch.equal(mixed_sampler(relay, selection)(PLACE, 700, labels), torch.cat(parts))


@every_schedule
@pytest.mark.parametrize(
    "selection", [Stochastic(1.0), TeacherFirst(4), StudentFirst(0)], ids=["mixing", "teacher-first", "student-first"]
)
def test_without_the_student_it_is_the_teachers_ddim_bit_for_bit(schedule: Schedule, selection: Selection) -> None:
    relay = _relay(schedule)
    labels = torch.arange(700) % 2
    expected = torch.cat(
        [solve(EULER, relay.teacher, x, relay.fine, condition) for x, condition, _ in _starts(relay, 700, labels)]
    )
    assert torch.equal(mixed_sampler(relay, selection)(PLACE, 700, labels), expected)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_consistency_student_alone_is_its_sampler_bit_for_bit(steps: int) -> None:
    """Its noise is bound to the place and to the samples' indices."""
    schedule, model = KarrasVE(), tiny_denoiser(classes=2)
    times, fine = _grids(schedule, steps, 2)
    prior = Prior(schedule, (2,), float(times[0]), conditions=Classes(2))
    relay = Relay(three_gaussians(schedule), Renoise(model, schedule, Key(99, "elsewhere"), 7), prior, times, fine)
    labels = torch.arange(700) % 2
    expected = StudentSampler(-9.0, 9.0, model, prior).draw(PLACE, 700, labels, steps)
    assert torch.equal(mixed_sampler(relay, Stochastic(0.0))(PLACE, 700, labels), expected)
    if steps > 1:
        assert not torch.equal(mixed_sampler(relay, TeacherFirst(1))(PLACE, 700, labels), expected)


@pytest.mark.parametrize(
    "selection",
    [Stochastic(p) for p in PROBABILITIES] + [TeacherFirst(2), StudentFirst(2), StudentOnce(1), TeacherOnce(3)],
    ids=str,
)
def test_a_student_that_is_the_teacher_changes_nothing(selection: Selection) -> None:
    relay = _with_composed(_relay(KarrasVE()))
    labels = torch.arange(60) % 2
    alone = mixed_sampler(relay, Stochastic(1.0))(PLACE, 60, labels)
    assert torch.equal(mixed_sampler(relay, selection)(PLACE, 60, labels), alone)


# Between the ends


@every_schedule
@pytest.mark.parametrize("switch", [1, 2, 3])
def test_a_switch_is_one_model_down_to_its_time_and_the_other_from_there(schedule: Schedule, switch: int) -> None:
    relay = _relay(schedule)
    labels = torch.arange(40) % 2
    (x, condition, _) = _starts(relay, 40, labels)[0]
    with torch.no_grad():

        def student(x: Tensor, times: Tensor) -> Tensor:
            for t, s in itertools.pairwise(times):
                x = relay.student(x, t, s, condition)
            return x

        def teacher(x: Tensor, times: Tensor) -> Tensor:
            return solve(EULER, relay.teacher, x, times, condition)

        early, late = relay.fine[: switch * 3 + 1], relay.fine[switch * 3 :]
        down = student(teacher(x, early), relay.times[switch:])
        up = teacher(student(x, relay.times[: switch + 1]), late)
    assert torch.equal(mixed_sampler(relay, TeacherFirst(switch))(PLACE, 40, labels), down)
    assert torch.equal(mixed_sampler(relay, StudentFirst(switch))(PLACE, 40, labels), up)


@every_schedule
@pytest.mark.parametrize("probability", [0.2, 0.5, 0.8])
def test_words_are_as_frequent_as_independent_choices_a_sample_make_them(
    schedule: Schedule, probability: float
) -> None:
    """An affine teacher multiplies by one factor a transition, so a sample tells which word made
    it.
    """
    relay, rows = _affine(schedule), 2000
    teacher, student = _factors(relay)
    samples = mixed_sampler(relay, Stochastic(probability))(PLACE, rows, None)
    start = torch.cat([x for x, _, _ in _starts(relay, rows)])
    found = ((samples * start).sum(1) / start.square().sum(1)).double()
    torch.testing.assert_close(samples.double(), found[:, None] * start.double(), rtol=1e-3, atol=1e-4)
    for word in itertools.product([True, False], repeat=2):
        factor = math.prod(teacher[j] if own else student[j] for j, own in enumerate(word))
        share = math.prod(probability if own else 1 - probability for own in word)
        count = int(((found / factor - 1).abs() < 1e-3).sum())
        assert abs(count - rows * share) < 4 * math.sqrt(rows * share * (1 - share)), word


def test_choices_belong_to_the_samples_indices_and_to_the_transition() -> None:
    whole = Stochastic(0.5).teaches(PLACE, 500, 0, 1)
    assert torch.equal(torch.cat([Stochastic(0.5).teaches(PLACE, 250, start, 1) for start in (0, 250)]), whole)
    assert not torch.equal(whole[:250], whole[250:])
    assert not torch.equal(Stochastic(0.5).teaches(PLACE, 500, 0, 2), whole)


def test_what_the_teacher_takes_it_also_takes_at_larger_probabilities() -> None:
    chosen = torch.stack([Stochastic(p).teaches(PLACE, 500, 0, 1) for p in PROBABILITIES])
    assert bool((chosen[1:] >= chosen[:-1]).all())
    assert int(chosen[0].sum()) == 0
    assert int(chosen[-1].sum()) == 500


@pytest.mark.parametrize("selection", [Stochastic(0.5), TeacherFirst(2)], ids=["mixing", "teacher-first"])
def test_a_sample_does_not_depend_on_how_many_there_are(selection: Selection) -> None:
    sampler = mixed_sampler(_relay(KarrasVE()), selection)
    many, few = sampler(PLACE, 2 * BATCH, torch.arange(2 * BATCH) % 2), sampler(PLACE, BATCH, torch.arange(BATCH) % 2)
    assert torch.equal(many[:BATCH], few)
    assert torch.equal(sampler(PLACE, BATCH, torch.arange(BATCH) % 2), few)
    assert not torch.equal(many[BATCH:], few)
    assert not torch.equal(sampler(Key(4, "test"), BATCH, torch.arange(BATCH) % 2), few)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Stochastic(0.0), 0),
        (Stochastic(1.0), 12),
        (Stochastic(0.5), 12),
        (TeacherFirst(1), 3),
        (StudentFirst(3), 3),
        (StudentOnce(2), 9),
    ],
)
def test_the_teacher_is_called_only_where_it_is_needed(selection: Selection, expected: int) -> None:
    relay = _relay(KarrasVE())
    calls: list[int] = []
    relay.teacher.register_forward_hook(lambda *_: calls.append(1))
    mixed_sampler(relay, selection)(PLACE, 40, torch.arange(40) % 2)
    assert len(calls) == expected


def test_samples_carry_no_gradient() -> None:
    relay, student = _relay(KarrasVE()), tiny_denoiser(classes=2)
    assert student(relay.times.new_zeros(1, 2).float(), relay.times[0], None).requires_grad
    trained = Relay(relay.teacher, Solver(student, 1), relay.prior, relay.times, relay.fine)
    assert not mixed_sampler(trained, Stochastic(0.5))(PLACE, 20, torch.arange(20) % 2).requires_grad


# The tables


def _evaluator(samples: int, std: float = STD, bound: float = 50.0) -> Evaluator:
    return Evaluator(
        InMemory(std * normals(samples, 2, dtype=torch.float32), None, 0, -bound, bound), lambda x: x, samples=samples
    )


def test_distances_by_probability_have_the_closed_form() -> None:
    """Samples have the variance s^2 prod_j (p T_j^2 + (1 - p) S_j^2), at Frechet distance 2 (std -
    std_data)^2 but for what finite samples add.
    """
    relay = _affine(KarrasVE())
    teacher, student = _factors(relay)
    rows = mixing(relay, _evaluator(4000))
    assert [row.setting for row in rows] == list(PROBABILITIES)
    for row in rows:
        p = row.setting
        std = 4.0 * math.prod(math.sqrt(p * a**2 + (1 - p) * b**2) for a, b in zip(teacher, student, strict=True))
        assert row.fd == pytest.approx(2 * (std - STD) ** 2, abs=0.012)
        assert row.accuracy is None
    # The student's coarse steps contract too much: the teacher helps, and brings back diversity.
    assert rows[0].fd > 4 * rows[-1].fd
    for less, more in itertools.pairwise(rows):
        assert less.fd > more.fd
        assert less.diversity < more.diversity
    assert rows[0].recall < rows[-1].recall
    assert rows[0].diversity == pytest.approx(4.0 * math.prod(student) / STD, rel=0.05)


def test_rows_are_what_the_evaluator_says_of_clamped_samples() -> None:
    relay, evaluator = _affine(KarrasVE()), _evaluator(400, bound=0.5)
    row = mixing(relay, evaluator, [0.6], draws=2)[0]
    sampler = mixed_sampler(relay, Stochastic(0.6))
    found = evaluator.describe(lambda key, rows, labels: sampler(key, rows, labels).clamp(-0.5, 0.5), 2)
    assert (row.fd, row.fd_spread, row.recall, row.diversity) == (
        found.quality.fd,
        found.quality.fd_spread,
        found.breadth.recall,
        found.breadth.diversity,
    )
    assert row.fd_spread > 0


def test_switches_run_from_one_model_alone_to_the_other() -> None:
    relay, evaluator = _affine(KarrasVE(), steps=3, ratio=2), _evaluator(300)
    ends = mixing(relay, evaluator, [0.0, 1.0])
    down, up = teacher_then_student(relay, evaluator), student_then_teacher(relay, evaluator)
    for rows in (down, up):
        assert [row.setting for row in rows] == relay.times.tolist()
    assert [down[0].fd, down[-1].fd] == [up[-1].fd, up[0].fd] == [row.fd for row in ends]
    teacher, student = _factors(relay)
    start = torch.cat([x for x, _, _ in _starts(relay, 300)])
    for index, (first, second) in enumerate(zip(down, up, strict=True)):
        for row, selection, factors in (
            (first, TeacherFirst(index), teacher[:index] + student[index:]),
            (second, StudentFirst(index), student[:index] + teacher[index:]),
        ):
            torch.testing.assert_close(
                mixed_sampler(relay, selection)(PLACE, 300, None), math.prod(factors) * start, rtol=1e-3, atol=1e-5
            )
            own = evaluator.describe(mixed_sampler(relay, selection), 1)
            assert (row.fd, row.recall, row.diversity) == (own.quality.fd, own.breadth.recall, own.breadth.diversity)


# Sensitivity


@every_schedule
def test_sensitivity_has_the_closed_form_of_an_affine_teacher(schedule: Schedule) -> None:
    """|prod of the mixed factors - prod of the teacher's| E|x|."""
    relay = _affine(schedule, steps=3, ratio=4)
    teacher, student = _factors(relay)
    found = step_sensitivity(relay, PLACE, 700)
    norm = float(torch.cat([x for x, _, _ in _starts(relay, 700)]).double().norm(dim=1).mean())

    def distance(own: list[bool]) -> float:
        return (
            abs(
                math.prod(a if mine else b for a, b, mine in zip(teacher, student, own, strict=True))
                - math.prod(teacher)
            )
            * norm
        )

    assert found.times == tuple(relay.times[:-1].tolist())
    assert found.student_once == pytest.approx([distance([j != i for j in range(3)]) for i in range(3)], rel=2e-3)
    assert found.teacher_once == pytest.approx([distance([j == i for j in range(3)]) for i in range(3)], rel=2e-3)
    assert found.student == pytest.approx(distance([False] * 3), rel=2e-3)
    assert min(*found.student_once, *found.teacher_once, found.student) > 0.001


def test_it_is_zero_of_the_teacher_in_fewer_steps() -> None:
    found = step_sensitivity(_with_composed(_relay(KarrasVE())), PLACE, 50, torch.arange(50) % 2)
    assert found.student_once == found.teacher_once == (0.0,) * 4
    assert found.student == 0.0


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_one_wrong_step_is_found_and_what_is_left_of_it_is_known(wrong: int) -> None:
    """A shift c in the plane is c sqrt(2), times the teacher's factors of the transitions after
    it.
    """
    relay = _affine(KarrasVE(), steps=3)
    assert isinstance(relay.teacher, GaussianMixture)
    shifted = Relay(
        relay.teacher, Shifted(relay.teacher, relay.times, relay.fine, wrong, 0.3), relay.prior, relay.times, relay.fine
    )
    found = step_sensitivity(shifted, PLACE, 100)
    left = 0.3 * math.sqrt(2) * math.prod(_factors(relay)[0][wrong + 1 :])
    assert found.student_once == pytest.approx([left if j == wrong else 0.0 for j in range(3)], rel=1e-4)
    assert found.teacher_once == pytest.approx([0.0 if j == wrong else left for j in range(3)], rel=1e-4)
    assert found.student == pytest.approx(left, rel=1e-4)


def test_distances_are_taken_in_the_feature_space_given() -> None:
    relay = _affine(KarrasVE())
    plain, scaled = step_sensitivity(relay, PLACE, 50), step_sensitivity(relay, PLACE, 50, features=lambda x: 3.0 * x)
    assert scaled.student_once == pytest.approx([3.0 * value for value in plain.student_once], rel=1e-4)
    blind = step_sensitivity(relay, PLACE, 50, features=lambda x: 0.0 * x)
    assert blind.student_once == (0.0, 0.0)


# What does not fit is refused


@pytest.mark.parametrize(
    ("times", "fine", "time", "message"),
    [
        ([0.5, 0.2, 0.0], [0.5, 0.4, 0.2, 0.0], 0.5, "teacher of 3 steps does not meet a student of 2"),
        ([0.5, 0.2, 0.0], [0.5, 0.0], 0.5, "does not meet"),
        ([0.5, 0.2, 0.0], [0.5, 0.4, 0.3, 0.1, 0.0], 0.5, "not among the teacher's"),
        ([0.5, 0.2, 0.1], [0.5, 0.4, 0.2, 0.15, 0.1], 0.5, "student's times must decrease and end at 0"),
        ([0.5, 0.2, 0.0], [0.5, 0.1, 0.2, 0.1, 0.0], 0.5, "teacher's times must decrease"),
        ([0.5, 0.2, 0.0], [0.5, 0.4, 0.2, 0.1, 0.0], 0.6, "its prior is at 0.6"),
    ],
)
def test_grids_that_are_not_nested_are_refused(
    times: list[float], fine: list[float], time: float, message: str
) -> None:
    schedule = KarrasVE()
    teacher = three_gaussians(schedule)
    with pytest.raises(UserError, match=message):
        Relay(
            teacher,
            Solver(teacher, 1),
            Prior(schedule, (2,), time),
            torch.tensor(times, dtype=torch.float64),
            torch.tensor(fine, dtype=torch.float64),
        )


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_probabilities_are_in_the_unit_interval(probability: float) -> None:
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        Stochastic(probability)
