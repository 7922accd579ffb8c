"""Laws of trajectory consistency: the exact jump has no loss, the jump to clean samples is
consistency distillation bit for bit, and strategic sampling keeps the forward process' levels.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian
from torch import Tensor
from trajectory_kit import ExactJump, FromFunction, TinyJump, carried, exact_step, noisy, rung_below, trajectory

from fewstep.denoisers import EndJump
from fewstep.errors import UserError
from fewstep.objectives import ConsistencyDistillation, Ladder, TrajectoryConsistency
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.solvers import EULER, HEUN, Renoise
from fewstep.solvers.stochastic import Strategic
from fewstep.states import State, Step
from fewstep.targets import Fixed
from fewstep.times import RhoGrid

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def _ladder(schedule: Schedule, skip: int = 1) -> Ladder:
    first = float(schedule.time_at_sigma(8.0))
    return Ladder(tuple(RhoGrid().between(schedule, first, schedule.t_min, 7).tolist()), skip)


def _state(schedule: Schedule, ladder: Ladder) -> State:
    return noisy(one_gaussian(schedule), torch.tensor(ladder.starts * 4, dtype=torch.float64))


def _step(state: State) -> Step:
    return Step(Key(0, "law"), len(state.x))


def _loss(objective: TrajectoryConsistency | ConsistencyDistillation, state: State) -> Tensor:
    return objective(_step(state), state).total


@every_schedule
@pytest.mark.parametrize("skip", [1, 2])
def test_the_exact_jump_has_no_loss_under_an_exact_teacher(schedule: Schedule, skip: int) -> None:
    """Up to what t_min is above 0, since the exact jump to 0 is told t_min."""
    ladder, gaussian = _ladder(schedule, skip), one_gaussian(schedule)
    teacher = exact_step(gaussian, rung_below(ladder.times, skip))
    state = _state(schedule, ladder)
    exact, other = (
        float(_loss(TrajectoryConsistency(model, model, Fixed(teacher), ladder, EULER), state).detach())
        for model in (trajectory(network, schedule) for network in (ExactJump(gaussian), TinyJump()))
    )
    assert exact < 1e-4 * other


@every_schedule
def test_to_clean_samples_it_is_consistency_distillation_bit_for_bit(schedule: Schedule) -> None:
    """Loss and gradient, of g(x, t, 0) as the consistency function."""
    ladder, student, averaged = _ladder(schedule), *(trajectory(TinyJump(seed), schedule) for seed in range(2))
    teacher, state = Fixed(one_gaussian(schedule)), _state(schedule, ladder)
    losses = [
        _loss(TrajectoryConsistency(student, averaged, teacher, ladder, HEUN, end=1.0), state),
        _loss(ConsistencyDistillation(EndJump(student), EndJump(averaged), teacher, ladder, HEUN), state),
    ]
    assert torch.equal(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(each, list(student.parameters())) for each in losses), strict=True):
        assert torch.equal(ours, theirs)


@every_schedule
def test_to_the_next_time_the_target_is_the_teachers_point(schedule: Schedule) -> None:
    """From the second to last rung half of all ends are there, the others at 0."""
    ladder = _ladder(schedule)
    t = torch.full((64,), ladder.times[-3], dtype=torch.float64)
    state, model, teacher = noisy(one_gaussian(schedule), t), trajectory(TinyJump(), schedule), one_gaussian(schedule)
    objective = TrajectoryConsistency(model, model, Fixed(teacher), ladder, HEUN)
    until = objective.until(_step(state), ladder.below(t)[0])
    assert set(until.tolist()) == {ladder.times[-2], 0.0}
    seen = FromFunction(schedule, lambda x, t, _: teacher(x, t))
    near = until > 0
    moved = TrajectoryConsistency(model, model, Fixed(seen), ladder, HEUN)
    expected = model.jump(state.x, t, until)
    target = carried(teacher, state.x, t, ladder.below(t)[0])
    clean = model.jump(target, ladder.below(t)[0], until)
    wanted = torch.where(near[:, None], target, clean)
    torch.testing.assert_close(_loss(moved, state), (expected - wanted).square().mean(), rtol=2e-2, atol=0)


def test_ends_are_uniform_from_the_next_time_down() -> None:
    ladder = _ladder(KarrasVE())
    model = trajectory(TinyJump(), KarrasVE())
    u = torch.full((6000,), ladder.times[2], dtype=torch.float64)
    teacher = Fixed(one_gaussian(KarrasVE()))
    for end, shares in ((0.0, [0.2] * 5), (0.5, [0.1] * 4 + [0.6])):
        objective = TrajectoryConsistency(model, model, teacher, ladder, end=end)
        until = objective.until(Step(Key(0), 6000), u)
        found = [float((until == s).double().mean()) for s in (*ladder.times[2:-1], 0.0)]
        assert found == pytest.approx(shares, abs=0.03)


# Strategic sampling


@every_schedule
def test_gamma_0_is_the_jump_and_gamma_1_is_renoise(schedule: Schedule) -> None:
    model, x, key = trajectory(TinyJump(), schedule), normals(6, 2), Key(0, "law")
    t, s = (float(schedule.time_at_sigma(level)) for level in (5.0, 0.6))
    assert torch.equal(Strategic(model, 0.0, key)(x, t, s), model.jump(x, t, s))
    assert torch.equal(Strategic(model, 0.7, key)(x, t, 0.0), model.jump(x, t, 0.0))
    torch.testing.assert_close(
        Strategic(model, 1.0, key)(x, t, s), Renoise(EndJump(model), schedule, key)(x, t, s), rtol=1e-9, atol=1e-9
    )


@every_schedule
@pytest.mark.parametrize("gamma", [0.2, 0.8])
def test_a_strategic_jump_of_the_exact_model_keeps_the_gaussians_moments(schedule: Schedule, gamma: float) -> None:
    """Linear in x and the noise, so that mean and covariance follow exactly from single points."""
    gaussian, key = one_gaussian(schedule), Key(0, "law")
    model = trajectory(ExactJump(gaussian), schedule)
    t, s = (float(schedule.time_at_sigma(level)) for level in (5.0, 1.0))
    points = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    jump = Strategic(model, gamma, key)
    below = (1 - gamma) * torch.tensor(s, dtype=torch.float64)
    noise = key.normal(f"renoise-{s:.12g}", points.shape)
    drawn = (schedule.sigma(s) ** 2 - (schedule.alpha(s) / schedule.alpha(below) * schedule.sigma(below)) ** 2).sqrt()
    landed = jump(points, t, s) - drawn * noise
    mean, slope = landed[0], (landed[1:] - landed[0]).T
    started, wanted = (
        (
            schedule.alpha(time) * gaussian.means[0],
            (gaussian.vectors[0] * (schedule.alpha(time) ** 2 * gaussian.variances[0] + schedule.sigma(time) ** 2))
            @ gaussian.vectors[0].T,
        )
        for time in (t, s)
    )
    torch.testing.assert_close(mean + slope @ started[0], wanted[0], rtol=1e-6, atol=1e-6)
    spread = slope @ started[1] @ slope.T + drawn**2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(spread, wanted[1], rtol=1e-6, atol=1e-6)


def test_what_it_cannot_do_is_refused() -> None:
    schedule = KarrasVE()
    model, ladder = trajectory(TinyJump(), schedule), _ladder(schedule)
    teacher = Fixed(one_gaussian(schedule))
    with pytest.raises(UserError, match=r"'end' must be a share in \[0, 1\] and its ladder one piece, got 1\.5"):
        TrajectoryConsistency(model, model, teacher, ladder, end=1.5)
    with pytest.raises(UserError, match="and 2 intervals"):
        TrajectoryConsistency(model, model, teacher, Ladder.in_parts(ladder.times, 1, 2))
    with pytest.raises(UserError, match=r"strategic sampling: gamma must be in \[0, 1\], got 2"):
        Strategic(model, 2.0)
    with pytest.raises(UserError, match=r"only gamma = 0 carries data to noise, here it is 0\.5"):
        Strategic(model, 0.5)(normals(2, 2), 0.1, 0.2)
