"""Laws of the average velocity: the exact jump has no loss, at equal times it is flow matching, and
the target is the paper's, its derivative taken by differences along the exact flow.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, tiny_denoiser
from torch import Tensor
from trajectory_kit import ExactJump, TinyJump, carried, noisy, trajectory

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import GaussianMixture, TrajectoryDenoiser, trajectory_of
from fewstep.errors import UserError
from fewstep.objectives import FlowLine, MeanFlow, VelocityRegression, loss_of
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule
from fewstep.states import State, Step
from fewstep.targets import Fixed

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def _state(teacher: GaussianMixture) -> State:
    """At times between the knots of a discrete schedule, where a trajectory has corners."""
    schedule = teacher.schedule
    if isinstance(schedule, DiscreteVP):
        t = (torch.tensor([40, 100, 250, 400, 700, 900], dtype=torch.float64) + 0.5) / schedule.steps
    else:
        t = schedule.time_at_sigma(torch.tensor([0.05, 0.2, 0.7, 1.5, 4.0, 9.0], dtype=torch.float64))
    return noisy(teacher, t.repeat(3))


def _step(state: State, number: int = 0) -> Step:
    return Step(Key(0, "law", number), len(state.x))


def _tiny(schedule: Schedule) -> TrajectoryDenoiser:
    return trajectory(TinyJump(), schedule)


# The line


@every_schedule
def test_the_line_is_the_straight_one_and_its_times_come_back(schedule: Schedule) -> None:
    """z = (1 - w) x0 + w eps; under a rectified flow w is t."""
    line, state = FlowLine(schedule), _state(one_gaussian(schedule))
    place, x0, noise = line.place(state.t), normals(len(state.t), 2), normals(len(state.t), 2, seed=1)
    z = schedule.add_noise(x0, state.t, noise) / (schedule.alpha(state.t) + schedule.sigma(state.t))[:, None]
    torch.testing.assert_close(z, (1 - place)[:, None] * x0 + place[:, None] * noise)
    torch.testing.assert_close(line.time(place), state.t, rtol=1e-7, atol=1e-9)
    assert float(line.time(torch.zeros(1, dtype=torch.float64))) == 0.0
    if isinstance(schedule, RectifiedFlow):
        torch.testing.assert_close(place, state.t)


@every_schedule
def test_the_tangent_is_the_derivative_along_the_exact_flow(schedule: Schedule) -> None:
    """By central differences, along a Gaussian's trajectory."""
    teacher = one_gaussian(schedule)
    line, state = FlowLine(schedule), _state(teacher)
    found, rate = line.tangents(state.x, teacher(state.x, state.t), state.t)
    width = 1e-6 * state.t
    ends = [(carried(teacher, state.x, state.t, t), line.place(t)) for t in (state.t + width, state.t - width)]
    turning = ends[0][1] - ends[1][1]
    torch.testing.assert_close(found, (ends[0][0] - ends[1][0]) / turning[:, None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rate, 2 * width / turning, rtol=1e-5, atol=0)


# The objective


@every_schedule
def test_the_exact_jump_has_no_loss_and_another_has_one(schedule: Schedule) -> None:
    """Along a Gaussian teacher's trajectories, at all pairs of times down to t_min."""
    teacher = one_gaussian(schedule)
    state = _state(teacher)
    exact = trajectory(ExactJump(teacher), schedule)
    totals = [
        float(MeanFlow(student, Fixed(teacher), 0.3, 0.0, power=0.0)(_step(state), state).total.detach())
        for student in (exact, _tiny(schedule))
    ]
    assert totals[0] < 1e-8 * totals[1]


@every_schedule
def test_the_target_is_the_papers(schedule: Schedule) -> None:
    """u = (z - g) / w is trained on v - (w - r) d u / d w, the derivative by differences along the
    exact flow, and the loss is the mean square of what is between them.
    """
    teacher, student = one_gaussian(schedule), _tiny(schedule)
    line, state = FlowLine(schedule), _state(teacher)
    objective = MeanFlow(student, Fixed(teacher), 0.3, 0.0, power=0.0)
    place = line.place(state.t)
    until = objective.until(_step(state), place)
    s = torch.where(until == place, state.t, line.time(torch.where(until == place, 0.0, until)))

    def average(t: Tensor) -> Tensor:
        x, w = carried(teacher, state.x, state.t, t), line.place(t)[:, None]
        z = x / (schedule.alpha(t) + schedule.sigma(t))[:, None]
        return (z - student.estimate(x, t, s, Condition())) / w

    width = 1e-5 * state.t
    above, below = state.t + width, state.t - width
    slope = (average(above) - average(below)) / (line.place(above) - line.place(below))[:, None]
    z = state.x / (schedule.alpha(state.t) + schedule.sigma(state.t))[:, None]
    velocity = (z - teacher(state.x, state.t)) / place[:, None]
    wanted = (velocity - (place - until)[:, None] * slope).detach()
    expected = (average(state.t) - wanted).square().mean()
    total = objective(_step(state), state).total
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(total, list(student.parameters())),
        torch.autograd.grad(expected, list(student.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_at_equal_times_it_is_flow_matching() -> None:
    """The loss of a rectified flow on its own pairs, and its gradient."""
    schedule = RectifiedFlow()
    student, rows = _tiny(schedule), 16
    noise, x0 = normals(rows, 2), normals(rows, 2, seed=1)
    pairs = State(noise, torch.ones(rows, dtype=torch.float64), x0=x0)
    matching = VelocityRegression(student)
    t = matching.times.draw(schedule, _step(pairs).key, "velocity-time", rows)
    state = State(schedule.add_noise(x0, t, noise), t, x0=x0, noise=noise)
    losses = [
        matching(_step(pairs), pairs).total,
        MeanFlow(student, None, same=1.0, end=0.0, power=0.0)(_step(state), state).total,
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(each, list(student.parameters())) for each in losses), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@every_schedule
def test_a_jump_to_clean_samples_is_trained_by_the_estimates_slope_alone(schedule: Schedule) -> None:
    """At r = 0, k = 1: the error of g is w d g / d w, which is 0 for a consistency function."""
    teacher, student = one_gaussian(schedule), _tiny(schedule)
    line, state = FlowLine(schedule), _state(teacher)
    zero = torch.zeros_like(state.t)
    x0 = teacher(state.x, state.t)
    estimate, slope = _step(state).jvp(
        lambda x, t, condition: student.estimate(x, t, zero, condition),
        state.x,
        state.t,
        state.condition,
        line.tangents(state.x, x0, state.t),
    )
    total = MeanFlow(student, Fixed(teacher), 0.0, 1.0, power=0.0)(_step(state), state).total
    torch.testing.assert_close(total, slope.square().mean(), rtol=1e-8, atol=0)
    assert estimate.requires_grad


@pytest.mark.parametrize(("power", "constant"), [(1.0, 1e-3), (0.5, 2.0)])
def test_the_weight_divides_a_samples_square_and_has_no_gradient(power: float, constant: float) -> None:
    schedule = KarrasVE()
    teacher, student = one_gaussian(schedule), _tiny(schedule)
    state, weights = _state(teacher), list(_tiny(schedule).parameters())
    weights = list(student.parameters())
    expected = [torch.zeros_like(value) for value in weights]
    mean = 0.0
    plain = MeanFlow(student, Fixed(teacher), 0.0, 1.0, power=0.0)
    for row in range(len(state.x)):
        alone = replace(state, x=state.x[row : row + 1], t=state.t[row : row + 1])
        square = plain(Step(Key(0), 1), alone).total
        weight = float((square.detach() + constant) ** -power)
        mean += weight * float(square.detach()) / len(state.x)
        for total, part in zip(expected, torch.autograd.grad(square, weights), strict=True):
            total += weight * part / len(state.x)
    total = MeanFlow(student, Fixed(teacher), 0.0, 1.0, power, constant)(_step(state), state).total
    assert float(total.detach()) == pytest.approx(mean, rel=1e-9)
    for ours, theirs in zip(torch.autograd.grad(total, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def test_shares_of_equal_times_and_of_ends_are_as_asked() -> None:
    place = torch.full((4000,), 0.6, dtype=torch.float64)
    objective = MeanFlow(_tiny(KarrasVE()), None, 0.5, 0.2)
    until = objective.until(Step(Key(0), 4000), place)
    assert float((until == place).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((until == 0).double().mean()) == pytest.approx(0.2, abs=0.03)
    between = until[(until > 0) & (until < place)]
    assert float(between.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(between.std()) == pytest.approx(0.6 / 12**0.5, abs=0.02)


def test_it_counts_what_it_runs_and_trains_the_student_alone() -> None:
    """The teacher 1 and the student 3 and 1 for the derivative; no teacher, 4."""
    teacher = tiny_denoiser(seed=1)
    student = trajectory_of(tiny_denoiser())
    t = torch.linspace(0.001, 0.5, 6, dtype=torch.float64)
    x0, noise = (normals(6, 2, seed=seed, dtype=torch.float32) for seed in range(2))
    state = State(KarrasVE().add_noise(x0, t, noise), t, x0=x0, noise=noise)
    for target, count in ((Fixed(teacher), 5), (None, 4)):
        with cost.metered() as meter:
            loss_of(MeanFlow(student, target), Step(Key(0), 6), state).total.backward()
        assert meter.evaluations == count * 6
    assert any(value.grad is not None for value in student.parameters())
    assert all(value.grad is None for value in teacher.parameters())


def test_what_it_cannot_do_is_refused() -> None:
    student = _tiny(KarrasVE())
    with pytest.raises(UserError, match=r"at most 1 in sum, got 0\.7 and 0\.4"):
        MeanFlow(student, None, 0.7, 0.4)
    with pytest.raises(UserError, match=r"'power' must be at least 0 and 'constant' above 0, got 1\.0 and 0\.0"):
        MeanFlow(student, None, constant=0.0)
    state = _state(one_gaussian(KarrasVE()))
    with pytest.raises(UserError, match="these states carry no x0"):
        MeanFlow(student, None)(_step(state), state)
