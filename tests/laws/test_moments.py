"""Laws of moment matching: the posterior's transitions, distribution matching as its one step from
pure noise, and the conditional means of a Gaussian student in closed form.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, three_gaussians, tiny_denoiser, trained_times
from torch import Tensor
from trajectory_kit import FromFunction

from fewstep import cost
from fewstep.errors import UserError
from fewstep.objectives import (
    AuxiliaryMoment,
    Descent,
    DiffInstructWeight,
    DistributionMatching,
    MomentMatching,
    UnitWeight,
)
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.solvers import Ancestral, Renoise
from fewstep.solvers.transition import ancestral
from fewstep.states import State, Step
from fewstep.targets import Fixed
from fewstep.times import GridTimes, LogNormalTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
without_signal = pytest.mark.parametrize(
    "schedule",
    [each for each in SCHEDULES.values() if float(each.alpha(each.t_max)) == 0],
    ids=[name for name, each in SCHEDULES.items() if float(each.alpha(each.t_max)) == 0],
)


def _step(rows: int) -> Step:
    return Step(Key(0, "law"), rows)


def _pairs(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """All times t, s with s at most t."""
    times = trained_times(schedule, 9)
    t, s = (each.flatten() for each in torch.meshgrid(times, times, indexing="ij"))
    return t[s <= t], s[s <= t]


def _signal_and_noise(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, (B, 1)."""
    return schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]


# The transition


@every_schedule
def test_a_transition_keeps_the_forward_process(schedule: Schedule) -> None:
    """Of x_t = alpha_t x_0 + sigma_t eps it is alpha_s x_0 + sigma_s eps', in mean and variance."""
    t, s = _pairs(schedule)
    zero, one = torch.zeros(len(t), 1, dtype=torch.float64), torch.ones(len(t), 1, dtype=torch.float64)
    of_x, of_x0, of_noise = (
        ancestral(schedule, *(one if each == place else zero for each in (0, 1)), t, s, one if place == 2 else zero)
        for place in (0, 1, 2)
    )
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _signal_and_noise(schedule, t), _signal_and_noise(schedule, s)
    torch.testing.assert_close(of_x * alpha_t + of_x0, alpha_s)
    torch.testing.assert_close((of_x * sigma_t).square() + of_noise.square(), sigma_s.square())


@every_schedule
def test_a_transition_is_a_ddim_step_with_its_noise_drawn_anew(schedule: Schedule) -> None:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) eps', v the posterior's variance."""
    t, s = _pairs(schedule)
    apart = s < t
    t, s = t[apart], s[apart]
    x, x0, noise = (normals(len(t), 2, seed=seed) for seed in range(3))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _signal_and_noise(schedule, t), _signal_and_noise(schedule, s)
    variance = sigma_s**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    expected = alpha_s * x0 + torch.sqrt(sigma_s**2 - variance) * (x - alpha_t * x0) / sigma_t + variance.sqrt() * noise
    torch.testing.assert_close(ancestral(schedule, x, x0, t, s, noise), expected, rtol=1e-6, atol=1e-8)


@every_schedule
def test_a_transition_to_the_same_time_and_to_clean_data_is_exact(schedule: Schedule) -> None:
    t = trained_times(schedule, 9)
    x, x0, noise = (normals(len(t), 2, seed=seed) for seed in range(3))
    assert torch.equal(ancestral(schedule, x, x0, t, t, noise), x)
    assert torch.equal(ancestral(schedule, x, x0, t, 0.0, noise), x0)


@without_signal
def test_an_ancestral_jump_from_pure_noise_is_renoising(schedule: Schedule) -> None:
    """Bit for bit; from below it is not."""
    model, x = one_gaussian(schedule), normals(5, 2)
    jumps = [kind(model, schedule, Key(3)) for kind in (Ancestral, Renoise)]
    assert torch.equal(*(jump(x, schedule.t_max, 0.4) for jump in jumps))
    assert not torch.equal(*(jump(x, 0.9 * schedule.t_max, 0.4) for jump in jumps))
    assert torch.equal(*(jump(x, 0.9 * schedule.t_max, 0.0) for jump in jumps))


# Where a transition lands


def test_a_transition_lands_at_the_next_times_alone() -> None:
    times = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)
    descent, shares = Descent(times, 2), torch.linspace(0, 1, 201, dtype=torch.float64)[:-1]
    for t, expected in ((1.0, {0.8, 0.6}), (0.6, {0.4, 0.2}), (0.5, {0.4, 0.2}), (0.2, {0.1}), (0.1, {0.1})):
        found = descent.below(torch.full_like(shares, t), shares)
        assert set(found.tolist()) == expected
        if len(expected) == 2:
            assert float((found == max(expected)).double().mean()) == 0.5


def test_times_that_are_no_descent_are_refused() -> None:
    for times, reach in (((0.5, 0.0), 1), ((0.5, 0.2), 0)):
        with pytest.raises(UserError, match="must end above 0"):
            Descent(times, reach)
    with pytest.raises(UserError, match="moment matching's times: needs at least two times"):
        Descent((0.2, 0.5))


# Degenerate


@without_signal
def test_from_pure_noise_without_signal_it_is_distribution_matching_bit_for_bit(schedule: Schedule) -> None:
    """Loss and gradient, at the one time where transitions land; from below it is not."""
    weight = normals(2, 2, seed=4).requires_grad_()
    student = FromFunction(schedule, lambda x, t, _: x @ weight)
    fake, teacher, s = three_gaussians(schedule), one_gaussian(schedule), 0.4
    moments = MomentMatching(student, fake, Fixed(teacher), Descent((1.0, s)), DiffInstructWeight())
    plain = DistributionMatching(student, fake, Fixed(teacher), GridTimes((s,)), DiffInstructWeight())
    for t, alike in ((schedule.t_max, True), (0.7, False)):
        state = State(normals(8, 2), torch.full((8,), t, dtype=torch.float64))
        losses = [each(_step(8), state).total for each in (moments, plain)]
        assert torch.equal(*losses) == alike
        assert torch.equal(*(torch.autograd.grad(each, weight)[0] for each in losses)) == alike


# Closed forms: a student that is linear in x_t, and data about 0


class _Linear:
    """x_t ~ N(0, V), x = g x_t and x_s = (a + b g) x_t + d eps, of which E[x given x_s] is linear;
    ``variance``: of the data.
    """

    def __init__(self, schedule: Schedule, t: float, s: float, variance: float = 0.8):
        at = [float(each) for time in (t, s) for each in (schedule.alpha(time), schedule.sigma(time))]
        alpha_t, sigma_t, alpha_s, sigma_s = at
        kept = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
        self.spread = alpha_t**2 * variance + sigma_t**2
        self.a, self.b = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, (1 - kept) * alpha_s
        self.noise = (1 - kept) * sigma_s**2
        self.teacher = alpha_s * variance / (alpha_s**2 * variance + sigma_s**2)

    def mean(self, gain: float) -> float:
        """E[x given x_s] / x_s."""
        whole = self.a + self.b * gain
        return gain * whole * self.spread / (whole**2 * self.spread + self.noise)

    def slope(self, gain: float, towards: float) -> float:
        """The gradient of the student's loss by its gain, for one dimension."""
        return (self.mean(gain) - self.teacher) / (1 + towards) * (self.a + self.b * gain) * self.spread


def _gain(factor: float | Tensor, schedule: Schedule) -> FromFunction:
    return FromFunction(schedule, lambda x, t, _: factor * x)


@every_schedule
@pytest.mark.parametrize("towards", [0.0, 1.0, 3.0])
def test_the_auxiliary_denoiser_is_best_between_the_samples_mean_and_the_teacher(
    schedule: Schedule, towards: float
) -> None:
    """Among those that are linear in x_s, at the mean of the batch's best one and the teacher's,
    weighted by 1 and rho.
    """
    t, s, rows = 0.6, 0.3, 64
    exact = _Linear(schedule, t, s)
    student, teacher = _gain(0.4, schedule), _gain(exact.teacher, schedule)
    state = State(exact.spread**0.5 * normals(rows, 2), torch.full((rows,), t, dtype=torch.float64))
    factor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    objective = AuxiliaryMoment(
        _gain(factor, schedule),
        student,
        LogNormalTimes(),
        UnitWeight(),
        teacher=Fixed(teacher),
        descent=Descent((t, s)),
        towards=towards,
    )
    x0 = 0.4 * state.x
    x_s, _ = objective.descent.landed(_step(rows), schedule, x0, state)
    own = float((x0 * x_s).sum() / x_s.square().sum())
    with torch.no_grad():
        factor.fill_((own + towards * exact.teacher) / (1 + towards))
    (slope,) = torch.autograd.grad(objective(_step(rows), state).total, factor)
    assert abs(float(slope)) < 1e-12 * (1 + float(x_s.square().mean()))
    with torch.no_grad():
        factor.add_(0.1)
    (slope,) = torch.autograd.grad(objective(_step(rows), state).total, factor)
    assert float(slope) == pytest.approx(0.2 * (1 + towards) * float(x_s.square().mean()), rel=1e-9)


@every_schedule
@pytest.mark.parametrize("towards", [0.0, 1.0])
def test_the_students_gradient_is_that_of_the_conditional_means(schedule: Schedule, towards: float) -> None:
    """In the mean over many samples, with the best auxiliary denoiser, and on either side of the
    gain at which both means agree.
    """
    t, s, rows = 0.6, 0.3, 40_000
    exact = _Linear(schedule, t, s)
    state = State(exact.spread**0.5 * normals(rows, 1), torch.full((rows,), t, dtype=torch.float64))
    matched = _root(exact)
    for gain in (0.5 * matched, matched, 1.5 * matched):
        best = (exact.mean(gain) + towards * exact.teacher) / (1 + towards)
        factor = torch.tensor(gain, dtype=torch.float64, requires_grad=True)
        objective = MomentMatching(
            _gain(factor, schedule),
            _gain(best, schedule),
            Fixed(_gain(exact.teacher, schedule)),
            Descent((t, s)),
            DiffInstructWeight(),
        )
        (found,) = torch.autograd.grad(objective(_step(rows), state).total, factor)
        scale = abs(best - exact.teacher) * ((exact.a + exact.b * gain) ** 2 * exact.spread + exact.noise) ** 0.5
        # Six deviations of a mean of products of two normals.
        allowed = 6 * 2**0.5 * scale * exact.spread**0.5 / rows**0.5
        assert abs(float(found) - exact.slope(gain, towards)) <= allowed + 1e-12
        assert (exact.slope(gain, towards) > 0) == (gain > matched) or gain == matched


def _root(exact: _Linear) -> float:
    """The gain at which the student's conditional mean is the teacher's, by bisection."""
    low, high = 0.0, exact.teacher * 10 + 1
    assert exact.mean(low) < exact.teacher < exact.mean(high)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if exact.mean(middle) < exact.teacher else (low, middle)
    return low


# What it runs


def test_it_counts_and_trains_what_it_runs() -> None:
    """The student 3 and both estimates 2; the auxiliary denoiser 3, its samples 1, the teacher that
    it is held near 1.
    """
    student, fake, teacher = (tiny_denoiser(seed=seed) for seed in range(3))
    state = State(normals(6, 2, dtype=torch.float32), torch.full((6,), 0.01, dtype=torch.float64))
    descent = Descent((0.02, 0.005, 0.002))
    moments = MomentMatching(student, fake, Fixed(teacher), descent, DiffInstructWeight())
    learning = AuxiliaryMoment(fake, student, LogNormalTimes(), UnitWeight(), teacher=Fixed(teacher), descent=descent)
    for objective, trained, evaluations in ((moments, student, 5), (learning, fake, 5)):
        with cost.metered() as meter:
            objective(_step(6), state).total.backward()
        assert meter.evaluations == evaluations * 6
        assert all(value.grad is not None for value in trained.parameters())
        others = [each for each in (student, fake, teacher) if each is not trained]
        assert all(value.grad is None for each in others for value in each.parameters())
        trained.zero_grad(set_to_none=True)
    with pytest.raises(UserError, match="'towards' must be at least 0"):
        AuxiliaryMoment(
            fake, student, LogNormalTimes(), UnitWeight(), teacher=Fixed(teacher), descent=descent, towards=-1.0
        )
    assert moments(Step(Key(0), 6), state).total.dtype == torch.float32
    assert KarrasVE().t_min < 0.002
