"""Laws of easy consistency tuning: at r = 0 it is denoising bit for bit, in the mean over the data
it is consistency distillation by the exact denoiser, and the gap is the paper's.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, tiny_denoiser
from torch import Tensor
from trajectory_kit import FromFunction, noisy

from fewstep import cost
from fewstep.denoisers import GaussianMixture
from fewstep.errors import UserError
from fewstep.objectives import Denoising, EasyConsistency, EDMWeight, GapCurriculum, UnitWeight
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.solvers import ddim_between
from fewstep.states import State, Step

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
NO_NEARER_POINT = GapCurriculum(widening=1e9, falling=0.0)


def _times(schedule: Schedule) -> Tensor:
    return schedule.time_at_sigma(torch.tensor([0.05, 0.3, 1.0, 3.0, 8.0], dtype=torch.float64)).repeat(3)


def _data(schedule: Schedule) -> State:
    t = _times(schedule)
    x0, noise = normals(len(t), 2), normals(len(t), 2, seed=1)
    return State(schedule.add_noise(x0, t, noise), t, x0=x0, noise=noise)


def _step(state: State, number: int = 0) -> Step:
    return Step(Key(0, "law", number), len(state.x))


def _linear(schedule: Schedule, weight: Tensor) -> FromFunction:
    """Linear in x at each time."""
    return FromFunction(schedule, lambda x, t, _: (x @ weight) / (1 + schedule.sigma(t)[:, None]) + 0.2 * t[:, None])


@every_schedule
def test_without_a_nearer_point_it_is_denoising_bit_for_bit(schedule: Schedule) -> None:
    """Loss and gradient, with the plain square."""
    weight = normals(2, 2, seed=4).requires_grad_()
    student, state = _linear(schedule, weight), _data(schedule)
    assert not bool(NO_NEARER_POINT.below(schedule, state.t, 0).any())
    losses = [
        EasyConsistency(student, NO_NEARER_POINT, EDMWeight(0.7), power=0.0)(_step(state), state).total,
        Denoising(student, EDMWeight(0.7))(_step(state), state).total,
    ]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(each, weight)[0] for each in losses))


@every_schedule
def test_the_gap_is_the_papers_and_narrows_by_its_factor(schedule: Schedule) -> None:
    curriculum, t = GapCurriculum(2.0, 10, 8.0, 1.0), _times(schedule)
    rho = schedule.rho(t)
    shares = []
    for number, stage in ((0, 0), (9, 0), (10, 1), (35, 3), (95, 9)):
        share = 1 - 2.0 ** -(stage + 1) * (1 + 8.0 / (1 + torch.exp(rho)))
        r = curriculum.below(schedule, t, number)
        wanted = torch.where(share > 0, share * rho, 0.0)
        kept = r > 0
        torch.testing.assert_close(schedule.rho(r)[kept], wanted[kept], rtol=1e-6, atol=1e-9)
        least = float(schedule.rho(schedule.t_min))
        assert bool((wanted[~kept] <= least * (1 + 1e-9)).all())
        assert bool((r <= t).all())
        shares.append(share)
    torch.testing.assert_close((1 - shares[2]) * 2, 1 - shares[0])
    # Denoising at low noise first, and at the end a gap that is nearly closed.
    assert bool((curriculum.below(schedule, t, 0) == 0)[rho < 0.5].all())
    assert float(shares[-1].min()) > 0.99


@every_schedule
def test_in_the_mean_it_is_consistency_distillation_by_the_exact_denoiser(schedule: Schedule) -> None:
    """For a student that is linear in x, at any gap: the samples behind each x_t come in pairs
    whose mean is the exact denoiser's estimate, and x_r is in the mean its DDIM step.
    """
    weight = normals(2, 2, seed=4).requires_grad_()
    student, teacher = _linear(schedule, weight), one_gaussian(schedule)
    t = _times(schedule)
    x = noisy(teacher, t).x
    mean, off = teacher(x, t), normals(len(t), 2, seed=2)
    x0 = torch.cat([mean + off, mean - off])
    both = State(x.repeat(2, 1), t.repeat(2))
    alpha, sigma = schedule.alpha(both.t)[:, None], schedule.sigma(both.t)[:, None]
    both = replace(both, x0=x0, noise=(both.x - alpha * x0) / sigma)
    curriculum = GapCurriculum(4.0, 1, 0.0)
    total = EasyConsistency(student, curriculum, UnitWeight(), power=0.0)(_step(both), both).total
    r = curriculum.below(schedule, t, 0)
    assert bool((r > 0).any())
    there = r.clamp(min=schedule.t_min)
    wanted = torch.where((r > 0)[:, None], student(ddim_between(schedule, x, mean, t, there), there), mean).detach()
    expected = (student(x, t) - wanted).square().mean()
    torch.testing.assert_close(*(torch.autograd.grad(each, weight)[0] for each in (total, expected)))


def test_the_weight_is_a_pseudo_hubers_gradient() -> None:
    """At p = 1 / 2 the gradient is that of 2 sqrt(square + c), sample by sample."""
    schedule, weight = KarrasVE(), normals(2, 2, seed=4).requires_grad_()
    student, state = _linear(schedule, weight), _data(KarrasVE())
    objective = EasyConsistency(student, GapCurriculum(), UnitWeight(), 0.5, 0.01)
    target = objective.target(state, objective.curriculum.below(schedule, state.t, 0))
    square = (student(state.x, state.t) - target).square().mean(1)
    expected = torch.autograd.grad((2 * torch.sqrt(square + 0.01)).mean(), weight)[0]
    torch.testing.assert_close(torch.autograd.grad(objective(_step(state), state).total, weight)[0], expected)


def test_the_exact_function_of_one_point_has_no_loss() -> None:
    """Where the data are one point, its consistency function is that point at every level."""
    schedule = KarrasVE()
    point = torch.tensor([[0.4, -1.1]], dtype=torch.float64)
    teacher = GaussianMixture(schedule, torch.ones(1), point, 1e-24 * torch.eye(2).double()[None])
    state = _data(schedule)
    x0 = point.expand(len(state.x), 2)
    state = replace(state, x0=x0, x=schedule.add_noise(x0, state.t, state.noise))
    for number in (0, 3000):
        assert float(EasyConsistency(teacher, GapCurriculum())(_step(state, number), state).total) < 1e-12


def test_it_counts_what_it_runs_and_follows_the_step() -> None:
    """Four evaluations a sample; a later step has another target."""
    student = tiny_denoiser()
    state = _data(KarrasVE())
    state = State(state.x.float(), state.t, x0=state.x0.float(), noise=state.noise.float())
    objective = EasyConsistency(student, GapCurriculum(stage=5))
    with cost.metered() as meter:
        objective(_step(state), state).total.backward()
    assert meter.evaluations == 4 * len(state.x)
    totals = [float(objective(_step(state, number), state).total.detach()) for number in (0, 4, 5)]
    assert totals[0] == totals[1] != totals[2]


def test_what_it_cannot_do_is_refused() -> None:
    for settings in ({"factor": 1.0}, {"stage": 0}, {"widening": -1.0}, {"falling": math.nan}):
        with pytest.raises(UserError, match="gap curriculum: 'factor' must be above 1"):
            GapCurriculum(**settings)
    student = tiny_denoiser()
    with pytest.raises(UserError, match="'power' must be at least 0 and 'constant' above 0"):
        EasyConsistency(student, GapCurriculum(), constant=0.0)
    state = replace(_data(KarrasVE()), noise=None)
    with pytest.raises(UserError, match="carry no clean sample and noise"):
        EasyConsistency(student, GapCurriculum())(_step(state), state)
