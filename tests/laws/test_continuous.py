"""Laws of consistency in continuous time: the tangent along exact trajectories, TrigFlow's
coordinates on every schedule, the gradient written out, and the limit of small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, randomised, three_gaussians, tiny_denoiser
from torch import Tensor
from trajectory_kit import FromFunction, carried, noisy

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, GaussianMixture, freeze
from fewstep.errors import UserError
from fewstep.objectives import (
    ConsistencyDistillation,
    ContinuousConsistency,
    Denoising,
    DistributionMatching,
    DMDWeight,
    EDMWeight,
    Ladder,
    LogWeight,
    UnitWeight,
    loss_of,
)
from fewstep.objectives.trajectories.continuous_time import TrigFlow
from fewstep.prediction import EDM
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, Schedule
from fewstep.solvers import EULER, HEUN, solve
from fewstep.states import State, Step
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
SD = 0.6


def _times(schedule: Schedule) -> Tensor:
    """From the least noise to t_max, where a flow has no signal left.

    A discrete schedule has corners at its knots, where no derivative is two-sided: times lie
    between them, and at the end.
    """
    if isinstance(schedule, DiscreteVP):
        return (torch.tensor([1, 10, 100, 400, 700, 950, 999.5], dtype=torch.float64) + 0.5) / schedule.steps
    return torch.linspace(schedule.t_min, schedule.t_max, 7, dtype=torch.float64)


def _state(teacher: GaussianMixture, copies: int = 3) -> State:
    return noisy(one_gaussian(teacher.schedule), _times(teacher.schedule).repeat(copies))


def _rate(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / d t at t (B,), by differences of fourth order; ``function`` answers (B, *D)."""
    width = torch.minimum(1e-3 * t, torch.full_like(t, 1e-6))
    inner, outer = (function(t + k * width) - function(t - k * width) for k in (1, 2))
    return (8 * inner - outer) / (12 * width.reshape(-1, *[1] * (inner.ndim - 1)))


def _close(found: Tensor, wanted: Tensor, relative: float = 1e-6) -> None:
    """Row by row, relative to the row's largest entry."""
    apart, size = (value.abs().flatten(1).amax(1) for value in (found - wanted, wanted))
    assert bool((apart <= relative * size).all()), (apart / size).tolist()


def _bent(model: Denoiser, amount: Tensor) -> FromFunction:
    """A student that is off by a function of x and t, with ``amount`` as its only parameter."""
    schedule = model.schedule

    def bent(x: Tensor, t: Tensor, condition: object) -> Tensor:
        sigma = schedule.sigma(t)[:, None]
        return model(x, t) + amount * torch.tanh(x) * sigma / (1 + sigma)

    return FromFunction(schedule, bent)


def _objective(student: Denoiser, teacher: Denoiser, warmup: int = 0, constant: float = 0.1) -> ContinuousConsistency:
    return ContinuousConsistency(student, Fixed(teacher), LogWeight(), SD, warmup, constant)


def _loss(objective: ContinuousConsistency, state: State, number: int = 0) -> Tensor:
    return objective(Step(Key(0, "law", number), len(state.x)), state).total


# The tangent


@every_schedule
def test_the_tangent_is_the_derivative_along_the_teachers_trajectory(schedule: Schedule) -> None:
    """Of the student's estimate and of TrigFlow's position, by the angle, along the exact flow of a
    Gaussian teacher; a flow has no signal at the last of these times.
    """
    teacher, student, flow = one_gaussian(schedule), three_gaussians(schedule), TrigFlow(schedule, SD)
    state = _state(teacher)
    along = flow.tangents(state.x, teacher(state.x, state.t), state.t)
    estimate, slope = Step(Key(0), len(state.x)).jvp(student, state.x, state.t, Condition(), along)
    turning = _rate(flow.angle, state.t)[:, None]
    assert torch.equal(estimate, student(state.x, state.t))
    assert not slope.requires_grad
    _close(slope, _rate(lambda t: student(carried(teacher, state.x, state.t, t), t), state.t) / turning)
    _close(along[0], _rate(lambda t: carried(teacher, state.x, state.t, t), state.t) / turning)
    _close(along[1][:, None], 1 / turning)
    drift = flow.drift(state.x, teacher(state.x, state.t), state.t)
    _close(drift, _rate(lambda t: flow.position(carried(teacher, state.x, state.t, t), t), state.t) / turning)


@every_schedule
def test_the_tangent_follows_a_mixtures_trajectory_as_the_solver_does(schedule: Schedule) -> None:
    """Which works in other coordinates, and needs a signal."""
    teacher, student, flow = three_gaussians(schedule), one_gaussian(schedule), TrigFlow(schedule, SD)
    t = _times(schedule)
    t = t[schedule.alpha(t) > 0.05]
    x = noisy(one_gaussian(schedule), t).x
    width = 1e-4 * t
    ends = []
    for sign in (1, -1):
        to = t + sign * width
        moved = torch.cat([solve(HEUN, teacher, x[i : i + 1], torch.stack([t[i], to[i]])) for i in range(len(t))])
        ends.append((student(moved, to), flow.angle(to)))
    expected = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])[:, None]
    along = flow.tangents(x, teacher(x, t), t)
    _close(Step(Key(0), len(x)).jvp(student, x, t, Condition(), along)[1], expected)


@every_schedule
def test_the_exact_consistency_function_does_not_move(schedule: Schedule) -> None:
    """Where the student is the end of a Gaussian teacher's exact flow, d f / d u = 0 and nothing is
    learned; elsewhere something is.
    """
    teacher = one_gaussian(schedule)
    state, still = _state(teacher), torch.zeros((), dtype=torch.float64, requires_grad=True)
    exact = FromFunction(schedule, lambda x, t, _: carried(teacher, x, t, 0.0) + still)
    flow = TrigFlow(schedule, SD)
    along = flow.tangents(state.x, teacher(state.x, state.t), state.t)
    slope, moves = (
        Step(Key(0), len(state.x)).jvp(model, state.x, state.t, Condition(), along)[1] for model in (exact, teacher)
    )
    assert float(slope.abs().max()) < 1e-6 * float(moves.abs().max())
    gradient, other = (
        torch.autograd.grad(_loss(_objective(model, teacher), state), still)[0]
        for model in (exact, _shifted(teacher, still))
    )
    assert float(gradient.abs()) < 1e-6 * float(other.abs())


def _shifted(model: Denoiser, shift: Tensor) -> FromFunction:
    return FromFunction(model.schedule, lambda x, t, _: model(x, t) + shift)


# Coordinates


@every_schedule
def test_coordinates_are_trigflows(schedule: Schedule) -> None:
    """x~ = cos u x0 + sin u sd eps; the angle rises from 0 to that of t_max, pi / 2 where no signal
    is left.
    """
    flow, t = TrigFlow(schedule, SD), _times(schedule)
    x0, noise = normals(len(t), 2), normals(len(t), 2, seed=1)
    x = schedule.add_noise(x0, t, noise)
    cos, sin = (value[:, None] for value in flow.turn(t))
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))
    torch.testing.assert_close(sin / cos, schedule.rho(t)[:, None] / SD)
    torch.testing.assert_close(flow.position(x, t), cos * x0 + sin * SD * noise, rtol=1e-10, atol=1e-12)
    angles = flow.angle(torch.cat([torch.zeros(1, dtype=torch.float64), t]))
    assert float(angles[0]) == 0.0
    assert bool((angles.diff() > 0).all())
    if float(schedule.alpha(schedule.t_max)) == 0.0:
        assert float(angles[-1]) == pytest.approx(math.pi / 2, abs=1e-15)


@every_schedule
def test_the_raw_output_gives_the_estimate_back(schedule: Schedule) -> None:
    """D = cos u x~ - sin u sd F for any estimate; of the clean sample itself, sd F = d x~ / d u =
    cos u sd eps - sin u x0.
    """
    flow, t = TrigFlow(schedule, SD), _times(schedule)
    x0, noise, estimate = (normals(len(t), 2, seed=seed) for seed in range(3))
    x = schedule.add_noise(x0, t, noise)
    cos, sin = (value[:, None] for value in flow.turn(t))
    torch.testing.assert_close(
        cos * flow.position(x, t) - sin * SD * flow.raw(x, estimate, t), estimate, rtol=1e-9, atol=1e-11
    )
    torch.testing.assert_close(SD * flow.raw(x, x0, t), cos * SD * noise - sin * x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(flow.drift(x, x0, t), cos * SD * noise - sin * x0, rtol=1e-7, atol=1e-7)


@every_schedule
def test_the_raw_output_is_minus_edms(schedule: Schedule) -> None:
    flow, t = TrigFlow(schedule, SD), _times(schedule)
    x, emitted = normals(len(t), 2), normals(len(t), 2, seed=1)
    torch.testing.assert_close(flow.raw(x, EDM(SD).to_x0(schedule, emitted, x, t), t), -emitted, rtol=1e-7, atol=1e-9)


# The objective


def _written_out(student: Denoiser, teacher: Denoiser, state: State, share: float) -> Tensor:
    """The tangent as the paper writes it, with the derivative of F itself: -cos^2 (sd F - d x~ / d
    u) - share cos sin (x~ + sd d F / d u).
    """
    flow = TrigFlow(student.schedule, SD)
    target_x0 = teacher(state.x, state.t)
    cos, sin = (value[:, None] for value in flow.turn(state.t))
    raw, slope = torch.func.jvp(
        lambda x, t: flow.raw(x, student(x, t), t), (state.x, state.t), flow.tangents(state.x, target_x0, state.t)
    )
    moving = flow.position(state.x, state.t) + SD * slope
    return (-(cos**2) * (SD * raw - flow.drift(state.x, target_x0, state.t)) - share * cos * sin * moving).detach()


@every_schedule
@pytest.mark.parametrize(
    ("warmup", "number", "share"), [(0, 0, 1.0), (8, 0, 0.125), (8, 3, 0.5), (8, 7, 1.0), (8, 900, 1.0)]
)
def test_both_forms_of_the_tangent_agree_at_every_step_of_the_warmup(
    schedule: Schedule, warmup: int, number: int, share: float
) -> None:
    teacher, student = one_gaussian(schedule), three_gaussians(schedule)
    state, flow = _state(teacher), TrigFlow(schedule, SD)
    target_x0 = teacher(state.x, state.t)
    x0, slope = Step(Key(0), len(state.x)).jvp(
        student, state.x, state.t, Condition(), flow.tangents(state.x, target_x0, state.t)
    )
    found = _objective(student, teacher, warmup).tangent(
        flow, state, flow.raw(state.x, x0, state.t), slope, target_x0, number
    )
    expected = _written_out(student, teacher, state, share)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    if share == 1.0:
        cos = flow.turn(state.t)[0][:, None]
        torch.testing.assert_close(found, cos * slope, rtol=1e-12, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("constant", [0.1, 3.0])
def test_the_gradient_is_minus_twice_the_weighted_tangent(schedule: Schedule, constant: float) -> None:
    """-2 exp(w) <g / (|g| + c), d F>, |g| the root mean square of a sample; the weight's own is
    mean d w (exp(w) |g / (|g| + c)|^2 - 1).
    """
    amount = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    teacher = one_gaussian(schedule)
    student, state = _bent(three_gaussians(schedule), amount), _state(teacher)
    objective, flow = _objective(student, teacher, warmup=8, constant=constant), TrigFlow(schedule, SD)
    randomised(objective.log_weight)
    tangent = _written_out(student, teacher, state, 0.5)
    tangent = tangent / (tangent.square().mean(1, keepdim=True).sqrt() + constant)
    log_weight = objective.log_weight(flow.angle(state.t))
    raw = flow.raw(state.x, student(state.x, state.t), state.t)
    surrogate = (-2 * log_weight.detach().exp() * (tangent * raw).mean(1)).mean()
    of_weight = (log_weight * (log_weight.detach().exp() * tangent.square().mean(1) - 1)).mean()
    total = _loss(objective, state, 3)
    found, *of_weights = torch.autograd.grad(total, [amount, *objective.log_weight.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(surrogate, amount)[0], rtol=1e-6, atol=0)
    for ours, theirs in zip(
        of_weights, torch.autograd.grad(of_weight, list(objective.log_weight.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    value = (log_weight.exp() * tangent.square().mean(1) - log_weight).mean()
    torch.testing.assert_close(total, value, rtol=1e-6, atol=0)


def test_the_weight_is_none_at_first_and_best_where_it_undoes_the_mean_square() -> None:
    """At one angle w is one number: its gradient vanishes at -log E |g|^2, where the loss is 1 +
    log E |g|^2, its least.
    """
    schedule = KarrasVE()
    teacher, student = one_gaussian(schedule), three_gaussians(schedule)
    state = noisy(teacher, torch.full((40,), 0.01, dtype=torch.float64))
    objective = _objective(student, teacher)
    assert objective.log_weight(torch.linspace(0, 1.5, 9)).tolist() == [0.0] * 9
    square = float(_loss(objective, state).detach())
    bias = objective.log_weight.last.bias

    def at(value: float) -> tuple[float, float]:
        with torch.no_grad():
            bias.fill_(value)
        total = _loss(objective, state)
        return float(total.detach()), float(torch.autograd.grad(total, bias)[0])

    best = -math.log(square)
    assert at(best)[1] == pytest.approx(0.0, abs=1e-6)
    assert at(best)[0] == pytest.approx(1 + math.log(square), rel=1e-6)
    assert min(at(best + 0.1)[0], at(best - 0.1)[0]) > at(best)[0]
    assert at(best - 0.1)[1] < 0 < at(best + 0.1)[1]


@every_schedule
def test_without_a_weight_it_is_the_weight_that_is_not_yet_learned(schedule: Schedule) -> None:
    """Loss and gradient, bit for bit; nothing is owned."""
    amount = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    teacher = one_gaussian(schedule)
    student, state = _bent(three_gaussians(schedule), amount), _state(teacher)
    weighted = _objective(student, teacher)
    plain = replace(weighted, log_weight=None)
    assert plain.owned == ()
    losses = [_loss(each, state) for each in (weighted, plain)]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(each, amount)[0] for each in losses))


@every_schedule
def test_the_exact_student_is_still_for_consistency_and_for_distribution_matching(schedule: Schedule) -> None:
    """The end of a Gaussian teacher's exact flow, from the exact noise: what it makes is the data,
    so that the teacher is the exact fake score, and both parts of rCM leave it where it is.
    """
    teacher, shift = one_gaussian(schedule), torch.zeros((), dtype=torch.float64, requires_grad=True)
    exact = FromFunction(schedule, lambda x, t, _: carried(teacher, x, t, 0.0) + shift)
    state = _state(teacher)
    matching = DistributionMatching(exact, teacher, Fixed(teacher), LogNormalTimes(), DMDWeight())
    consistency = replace(_objective(exact, teacher), log_weight=None)
    gradients = [
        torch.autograd.grad(each(Step(Key(0), len(state.x)), state).total, shift)[0]
        for each in (matching, consistency, replace(consistency, student=_shifted(teacher, shift)))
    ]
    assert float(gradients[0]) == 0
    assert float(gradients[1].abs()) < 1e-6 * float(gradients[2].abs())


def _float_state(schedule: Schedule, rows: int) -> State:
    t = torch.linspace(0.001, 0.5, rows, dtype=torch.float64)
    return State(
        schedule.sigma(t)[:, None].float() * normals(rows, 2, dtype=torch.float32),
        t,
        Condition(torch.zeros(rows, dtype=torch.int64)),
    )


def test_it_counts_and_trains_what_it_runs() -> None:
    """The teacher 1 and the student 3 and 1 for the derivative; student and weight have gradients,
    the teacher none.
    """
    student, teacher = tiny_denoiser(classes=2), tiny_denoiser(classes=2, seed=1)
    objective = ContinuousConsistency(student, Fixed(teacher), LogWeight())
    assert list(objective.owned) == [objective.log_weight]
    with cost.metered() as meter:
        loss_of(objective, Step(Key(0), 6), _float_state(KarrasVE(), 6)).total.backward()
    assert meter.evaluations == (1 + 3 + 1) * 6
    assert all(value.grad is not None for value in [*student.parameters(), *objective.log_weight.parameters()])
    assert all(value.grad is None for value in teacher.parameters())


def test_it_is_computed_in_full_precision_wherever_the_run_is_not() -> None:
    """Bit for bit; another objective is not, in the same place."""
    student, teacher = tiny_denoiser(), freeze(tiny_denoiser(seed=1))
    state = replace(_float_state(KarrasVE(), 6), condition=Condition(), x0=normals(6, 2, dtype=torch.float32))
    objective, other = ContinuousConsistency(student, Fixed(teacher), LogWeight()), Denoising(student, EDMWeight())

    def gradients(each: ContinuousConsistency | Denoising, halved: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=halved):
            total = (loss_of(each, Step(Key(0), 6), state) if halved else each(Step(Key(0), 6), state)).total
        return [total, *torch.autograd.grad(total, list(student.parameters()))]

    assert all(torch.equal(a, b) for a, b in zip(gradients(objective, True), gradients(objective, False), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(gradients(other, True), gradients(other, False), strict=True))


def test_settings_out_of_bounds_are_refused() -> None:
    model = one_gaussian(KarrasVE())
    for settings in ({"warmup": -1}, {"constant": 0.0}, {"constant": math.nan}):
        with pytest.raises(UserError, match="'warmup' must be at least 0 and 'constant' above 0"):
            _objective(model, model, **settings)


# The limit of small steps


@every_schedule
def test_small_steps_of_consistency_distillation_tend_to_it(schedule: Schedule) -> None:
    """At one time, with one step of the teacher and the student as its own target, the discrete
    gradient over the angle of the step tends to sd tan(u) times the continuous one before its
    normalisation, by the step's first power.
    """
    t = (
        float((torch.tensor(400.9) / 1000).double())
        if isinstance(schedule, DiscreteVP)
        else float(schedule.time_at_sigma(0.9))
    )
    amount = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    teacher = one_gaussian(schedule)
    student, flow = _bent(three_gaussians(schedule), amount), TrigFlow(schedule, SD)
    state = noisy(teacher, torch.full((24,), t, dtype=torch.float64))
    # So large a constant divides all tangents alike.
    constant = 1e9
    (gradient,) = torch.autograd.grad(_loss(_objective(student, teacher, constant=constant), state), amount)
    cos, sin = (float(value[0]) for value in flow.turn(state.t))
    limit, errors = float(gradient) * constant * SD * sin / cos, []
    for width in (1e-3 * t, 5e-4 * t):
        discrete = ConsistencyDistillation(
            student, student, Fixed(teacher), Ladder((t, t - width)), EULER, weight=UnitWeight()
        )
        total = discrete(Step(Key(0), 24), state).total
        angles = flow.angle(torch.tensor([t, t - width], dtype=torch.float64))
        errors.append(float(torch.autograd.grad(total, amount)[0]) / float(angles[0] - angles[1]) / limit - 1)
    assert abs(errors[1]) < 0.02
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.1)
