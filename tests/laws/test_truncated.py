"""Laws of truncated consistency: below the boundary the first model answers, without one it is easy
consistency tuning bit for bit, and the boundary's loss is what a collapsed student pays.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, three_gaussians
from torch import Tensor
from trajectory_kit import FromFunction

from fewstep.denoisers import Truncated
from fewstep.errors import UserError
from fewstep.objectives import EasyConsistency, EDMWeight, GapCurriculum, UnitWeight
from fewstep.random import Key
from fewstep.schedule import Schedule
from fewstep.states import State, Step
from fewstep.times import LateTimes, LogNormalTimes, UniformTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
LEVELS = (0.05, 0.3, 1.0, 3.0, 8.0)
# At the fourth stage a nearer point lies at half of the noise level or more.
LATE = 4


def _data(schedule: Schedule, levels: tuple[float, ...] = LEVELS) -> State:
    t = schedule.time_at_sigma(torch.tensor(levels, dtype=torch.float64)).repeat(3)
    x0, noise = normals(len(t), 2), normals(len(t), 2, seed=1)
    return State(schedule.add_noise(x0, t, noise), t, x0=x0, noise=noise)


def _step(state: State, number: int = LATE) -> Step:
    return Step(Key(0, "law", number), len(state.x))


def _linear(schedule: Schedule, weight: Tensor) -> FromFunction:
    return FromFunction(schedule, lambda x, t, _: (x @ weight) / (1 + schedule.sigma(t)[:, None]) + 0.2 * t[:, None])


@every_schedule
def test_below_the_boundary_the_first_model_answers(schedule: Schedule) -> None:
    """And at the boundary itself the other one."""
    late, first = three_gaussians(schedule), one_gaussian(schedule)
    state = _data(schedule)
    found = Truncated(late, first, float(state.t[2]))(state.x, state.t)
    above = (state.t >= state.t[2])[:, None]
    assert 0 < int(above.sum()) < len(above)
    assert torch.equal(found, torch.where(above, late(state.x, state.t), first(state.x, state.t)))


@every_schedule
def test_without_a_boundary_it_is_easy_consistency_bit_for_bit(schedule: Schedule) -> None:
    """Loss and gradient; with one it is not."""
    weight = normals(2, 2, seed=4).requires_grad_()
    student, state = _linear(schedule, weight), _data(schedule)
    plain = EasyConsistency(student, GapCurriculum(stage=1), EDMWeight(0.7))
    expected = plain(_step(state), state).total
    for boundary, alike in ((schedule.t_min, True), (float(state.t[2]), False)):
        nearer = Truncated(student, one_gaussian(schedule), boundary)
        found = replace(plain, nearer=nearer)(_step(state), state).total
        gradients = [torch.autograd.grad(each, weight, retain_graph=True)[0] for each in (found, expected)]
        assert torch.equal(found, expected) == alike
        assert torch.equal(*gradients) == alike


@every_schedule
def test_at_the_boundary_the_student_is_told_the_first_models_estimate(schedule: Schedule) -> None:
    """At the nearer point, whatever the student is below."""
    state, first = _data(schedule, (1.0,)), three_gaussians(schedule)
    weight = normals(2, 2, seed=4).requires_grad_()
    student = _linear(schedule, weight)
    curriculum = GapCurriculum(stage=1)
    objective = EasyConsistency(
        student, curriculum, UnitWeight(), 0.0, nearer=Truncated(student, first, float(state.t[0]))
    )
    r = curriculum.below(schedule, state.t, LATE)
    assert bool(((r > 0) & (r < state.t)).all())
    wanted = first(schedule.add_noise(state.x0, r, state.noise), r)
    expected = (student(state.x, state.t) - wanted).square().mean()
    total = objective(_step(state), state).total
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, weight)[0] for each in (total, expected)))


@every_schedule
def test_a_student_that_is_the_same_everywhere_pays_at_the_boundary_alone(schedule: Schedule) -> None:
    """The trivial solution of late times, which the boundary's loss rules out."""
    constant = FromFunction(schedule, lambda x, t, _: torch.full_like(x, 0.7))
    at_boundary, later = _data(schedule, (1.0,)), _data(schedule, (3.0, 8.0))
    nearer = Truncated(constant, one_gaussian(schedule), float(at_boundary.t[0]))
    objective = EasyConsistency(constant, GapCurriculum(stage=1), nearer=nearer)
    assert float(objective.curriculum.below(schedule, later.t, LATE).min()) >= nearer.boundary
    assert float(objective(_step(later), later).total) == 0
    assert float(objective(_step(at_boundary), at_boundary).total) > 0.01


@every_schedule
def test_the_exact_function_of_one_point_has_no_loss(schedule: Schedule) -> None:
    point = torch.tensor([0.4, -1.1], dtype=torch.float64)
    exact = FromFunction(schedule, lambda x, t, _: point.expand(len(x), 2))
    state = _data(schedule)
    x0 = point.expand(len(state.x), 2)
    state = replace(state, x0=x0, x=schedule.add_noise(x0, state.t, state.noise))
    objective = EasyConsistency(exact, GapCurriculum(stage=1), nearer=Truncated(exact, exact, float(state.t[2])))
    assert float(objective(_step(state), state).total) == 0


@every_schedule
def test_a_gap_goes_on_from_where_another_stage_has_ended(schedule: Schedule) -> None:
    t = _data(schedule).t
    whole, later = GapCurriculum(2.0, 10), GapCurriculum(2.0, 10, begun=25)
    for number in (0, 4, 5, 40):
        assert torch.equal(later.below(schedule, t, number), whole.below(schedule, t, 25 + number))
    with pytest.raises(UserError, match="'begun' at least 0"):
        GapCurriculum(begun=-1)


@every_schedule
@pytest.mark.parametrize("source", [LogNormalTimes(-0.4, 1.2), UniformTimes()])
def test_late_times_are_the_sources_given_that_they_are_late(
    schedule: Schedule, source: LogNormalTimes | UniformTimes
) -> None:
    """The same quantiles as of the draws of the source that lie there."""
    low = float(source.quantile(schedule, torch.tensor([0.6], dtype=torch.float64)))
    times, u = LateTimes(source, low), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert times.low_share(schedule) == pytest.approx(0.6, abs=1e-9)
    torch.testing.assert_close(times.quantile(schedule, u), source.quantile(schedule, 0.6 + 0.4 * u))
    assert float(times.quantile(schedule, torch.zeros(1, dtype=torch.float64))) >= low
    with pytest.raises(UserError, match=r"none of them lie at t = 0\.9 or above"):
        LateTimes(UniformTimes(high=0.5), 0.9).quantile(schedule, u)
