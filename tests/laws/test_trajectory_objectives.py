"""Laws of the objectives along trajectories: exact zeros where the flow is known, orders where only
the teacher's solver errs, gradients in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, three_gaussians, tiny_denoiser
from torch import Tensor, nn
from trajectory_kit import ExactJump, FromFunction, TinyJump, carried, exact_step, noisy, rung_below, trajectory

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import Boundary, Denoiser, GaussianMixture, Guided, TrajectoryDenoiser, copy_of, freeze
from fewstep.errors import UserError
from fewstep.objectives import (
    L1,
    ConsistencyDistillation,
    Denoising,
    DenoisingWeight,
    Distance,
    EDMWeight,
    EndpointRegression,
    InverseConsistency,
    Ladder,
    Objective,
    Perceptual,
    ProgressiveDistillation,
    PseudoHuber,
    SNRPlusOne,
    SoftConsistency,
    SquaredL2,
    TruncatedSNR,
    UnitWeight,
    VelocityRegression,
    straightness,
)
from fewstep.random import Key
from fewstep.schedule import KarrasVE, RectifiedFlow, Schedule
from fewstep.solvers import EULER, HEUN, Rule, Solver, ddim_between, solve, teacher_step, x0_of_transition
from fewstep.states import State, Step
from fewstep.targets import Fixed
from fewstep.times import RhoGrid, UniformGrid, UniformTimes, nested_times

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_rule = pytest.mark.parametrize("rule", [EULER, HEUN], ids=["euler", "heun"])
FLOW = RectifiedFlow()
DISTANCES: dict[str, Distance] = {
    "l2": SquaredL2(),
    "l1": L1(),
    "huber": PseudoHuber(0.3),
    "perceptual": Perceptual(torch.sin),
}


def _rungs(schedule: Schedule, steps: int, first: float = 8.0) -> tuple[float, ...]:
    """Times from noise level ``first`` to t_min."""
    return tuple(RhoGrid().between(schedule, float(schedule.time_at_sigma(first)), schedule.t_min, steps + 1).tolist())


def _spread_over(times: tuple[float, ...], rows: int) -> Tensor:
    """Each of the starts in turn, (rows,)."""
    return torch.tensor([times[i % (len(times) - 1)] for i in range(rows)], dtype=torch.float64)


def _loss(objective: Objective, state: State, key: Key | None = None, start: int = 0) -> Tensor:
    return objective(Step(key or Key(0, "law"), len(state.x), start), state).total


class _Affine(nn.Module):
    """x0 = scale x + shift."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor([0.2, -0.1], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.scale * x + self.shift


def _student(schedule: Schedule) -> FromFunction:
    return FromFunction(schedule, lambda x, t, _: torch.tanh(x) + 0.3)


# Distances


def test_distances_are_as_documented() -> None:
    a, b = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]]]), torch.tensor([[[0.0, -4.0]], [[1.0, 1.0]]])
    assert SquaredL2()(a, b).tolist() == [12.5, 0.0]
    assert L1()(a, b).tolist() == [3.5, 0.0]
    torch.testing.assert_close(PseudoHuber(12.0)(a, b), torch.tensor([1.0, 0.0]))
    c = 0.00054 * math.sqrt(2)
    torch.testing.assert_close(PseudoHuber()(a, b), torch.tensor([math.sqrt(25 + c**2) - c, 0.0]))
    assert torch.equal(Perceptual(lambda x: 2 * x.flatten(1)[:, :1])(a, b), torch.tensor([36.0, 0.0]))


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())
def test_a_distance_is_symmetric_positive_and_per_sample(distance: Distance) -> None:
    a, b = normals(5, 1, 3, 3), normals(5, 1, 3, 3, seed=1)
    found = distance(a, b)
    assert found.shape == (5,)
    assert bool((found > 0).all())
    torch.testing.assert_close(found, distance(b, a))
    torch.testing.assert_close(found[2:3], distance(a[2:3], b[2:3]))
    assert distance(a, a).tolist() == [0.0] * 5


def test_pseudo_huber_is_a_norm_far_away_and_a_square_nearby() -> None:
    a, b = normals(5, 3, 3), normals(5, 3, 3, seed=1)
    total = (a - b).square().flatten(1).sum(1)
    torch.testing.assert_close(PseudoHuber(1e-9)(a, b), total.sqrt(), rtol=1e-8, atol=0)
    torch.testing.assert_close(PseudoHuber(1e5)(a, b), total / 2e5, rtol=1e-8, atol=0)
    # In single precision sqrt(total + c^2) - c would be 0 here.
    near = PseudoHuber(1.0)(torch.zeros(1, 2), torch.full((1, 2), 1e-5))
    torch.testing.assert_close(near, torch.tensor([1e-10]), rtol=1e-4, atol=0)


def test_pseudo_hubers_gradient_is_bounded_and_finite_at_zero() -> None:
    a = torch.cat([torch.zeros(1, 4), 1e6 * torch.ones(1, 4)]).requires_grad_()
    (gradient,) = torch.autograd.grad(PseudoHuber(0.1)(a, torch.zeros(2, 4)).sum(), a)
    torch.testing.assert_close(gradient.norm(dim=1), torch.tensor([0.0, 1.0]))
    for c in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="'c' is"):
            PseudoHuber(c)


# Endpoint regression


def test_the_regressions_gradient_is_that_of_least_squares() -> None:
    student, state = (
        _Affine(),
        State(normals(50, 2), torch.full((50,), 0.5, dtype=torch.float64), x0=normals(50, 2, seed=1)),
    )
    gradients = torch.autograd.grad(_loss(EndpointRegression(student), state), list(student.parameters()))
    residual = student(state.x, state.t).detach() - state.x0
    torch.testing.assert_close(gradients[0], (residual * state.x).mean() * 2)
    torch.testing.assert_close(gradients[1], residual.mean(0))


@every_schedule
def test_endpoints_made_on_the_fly_are_the_stored_ones(schedule: Schedule) -> None:
    """Also where the states stand at different times, which are carried group by group."""
    teacher, student = three_gaussians(schedule), _Affine()
    solver = Solver(teacher, 4, HEUN)
    t = torch.tensor([0.8, 0.3, 0.8, 0.5], dtype=torch.float64)
    state = State(
        schedule.sigma(t)[:, None] * normals(4, 2),
        t,
        Condition(labels=torch.tensor([0, 1, -1, 0])),
        x0=normals(4, 2, seed=9),
    )
    x0 = torch.cat([solver(state.x[i : i + 1], t[i], 0.0, state.condition[i : i + 1]) for i in range(4)])
    stored = _loss(EndpointRegression(student, L1()), replace(state, x0=x0))
    torch.testing.assert_close(_loss(EndpointRegression(student, L1(), solver), state), stored, rtol=1e-12, atol=0)
    alike = replace(state, t=torch.full_like(t, 0.8))
    expected = _loss(EndpointRegression(student), replace(alike, x0=solver(alike.x, 0.8, 0.0, alike.condition)))
    assert torch.equal(_loss(EndpointRegression(student, endpoint=solver), alike), expected)


def test_a_student_that_is_the_flow_has_no_regression_loss() -> None:
    gaussian = one_gaussian(KarrasVE())
    student = FromFunction(gaussian.schedule, lambda x, t, _: carried(gaussian, x, t, 0.0))
    state = noisy(gaussian, torch.full((20,), 0.1, dtype=torch.float64))
    losses = [
        float(_loss(EndpointRegression(student, endpoint=Solver(gaussian, steps, HEUN)), state)) for steps in (32, 64)
    ]
    assert losses[1] < losses[0] / 8 < 1e-3
    assert float(_loss(EndpointRegression(student), replace(state, x0=carried(gaussian, state.x, state.t, 0.0)))) == 0.0


def test_regression_keeps_its_samples_and_refuses_states_without_endpoints() -> None:
    student = tiny_denoiser()
    state = State(
        normals(6, 2, dtype=torch.float32),
        torch.full((6,), 0.1, dtype=torch.float64),
        x0=normals(6, 2, dtype=torch.float32),
    )
    step = Step(Key(0), 6)
    EndpointRegression(student)(step, state)
    with cost.metered() as meter:
        samples = step.sample(student, state)
    assert meter.evaluations == 0
    assert torch.equal(samples, student(state.x, state.t))
    with pytest.raises(UserError, match="carry no x0"):
        EndpointRegression(student)(step, replace(state, x0=None))


# Progressive distillation


def _grids(schedule: Schedule, steps: int, first: float = 8.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    start = float(schedule.time_at_sigma(first))
    return tuple(nested_times(RhoGrid(), schedule, start, steps).tolist()), tuple(
        nested_times(RhoGrid(), schedule, start, 2 * steps).tolist()
    )


@every_schedule
def test_the_progressive_target_makes_two_ddim_steps_in_one(schedule: Schedule) -> None:
    teacher = three_gaussians(schedule)
    times, fine = _grids(schedule, 4)
    t = _spread_over(times, 8)
    state = noisy(teacher, t)
    target = ProgressiveDistillation(_Affine(), Fixed(teacher), times, fine).target(state)
    for row in range(8):
        index = row % 4
        x = state.x[row : row + 1]
        end = solve(EULER, teacher, x, torch.tensor(fine[2 * index : 2 * index + 3], dtype=torch.float64))
        wanted = target[row : row + 1]
        torch.testing.assert_close(
            ddim_between(schedule, x, wanted, times[index], times[index + 1]), end, rtol=1e-10, atol=1e-10
        )
        torch.testing.assert_close(
            wanted, x0_of_transition(schedule, x, end, times[index], times[index + 1]), rtol=1e-8, atol=1e-8
        )


def test_the_last_progressive_target_is_the_teachers_last_estimate() -> None:
    teacher = three_gaussians(KarrasVE())
    times, fine = _grids(teacher.schedule, 4)
    state = noisy(teacher, torch.full((5,), fine[-3], dtype=torch.float64))
    target = ProgressiveDistillation(_Affine(), Fixed(teacher), times, fine).target(state)
    between = ddim_between(teacher.schedule, state.x, teacher(state.x, state.t), state.t, fine[-2])
    assert torch.equal(target, teacher(between, torch.tensor(fine[-2], dtype=torch.float64)))


@every_schedule
def test_a_progressive_student_that_makes_the_teachers_steps_has_no_loss(schedule: Schedule) -> None:
    """For one point the denoiser is that student; for a Gaussian it is the one whose step is the
    exact flow, with such a teacher.
    """
    times, fine = _grids(schedule, 4)
    point = GaussianMixture(schedule, torch.ones(1), torch.tensor([[0.7, -1.2]]), torch.zeros(1))
    state = noisy(point, _spread_over(times, 12))
    assert float(_loss(ProgressiveDistillation(point, Fixed(point), times, fine, UnitWeight()), state)) < 1e-25
    gaussian = one_gaussian(schedule)
    student, teacher = exact_step(gaussian, rung_below(times)), exact_step(gaussian, rung_below(fine))
    assert float(_loss(ProgressiveDistillation(student, Fixed(teacher), times, fine, UnitWeight()), state)) < 1e-20
    assert float(_loss(ProgressiveDistillation(gaussian, Fixed(gaussian), times, fine, UnitWeight()), state)) > 1e-6


@every_schedule
@pytest.mark.parametrize("weight", [TruncatedSNR(), SNRPlusOne(), EDMWeight()])
def test_the_progressive_loss_is_the_weighted_square(schedule: Schedule, weight: DenoisingWeight) -> None:
    teacher = one_gaussian(schedule)
    times, fine = _grids(schedule, 4)
    state = noisy(teacher, _spread_over(times, 8))
    student = _student(schedule)
    objective = ProgressiveDistillation(student, Fixed(teacher), times, fine, weight)
    expected = (
        weight.at(schedule, state.t)[:, None] * (student(state.x, state.t) - objective.target(state)) ** 2
    ).mean()
    torch.testing.assert_close(_loss(objective, state), expected, rtol=1e-12, atol=0)


def test_the_weights_of_progressive_distillation() -> None:
    flow = RectifiedFlow()
    t = torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    torch.testing.assert_close(TruncatedSNR().at(flow, t), torch.tensor([16.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(SNRPlusOne().at(flow, t), torch.tensor([17.0, 2.0, 1.0625, 1.0], dtype=torch.float64))
    assert UnitWeight().at(flow, t).tolist() == [1.0] * 4


def test_no_gradient_reaches_the_progressive_teacher() -> None:
    """Also where the teacher could be trained, as a copy that was not frozen."""
    student, teacher = (tiny_denoiser(seed=seed).double() for seed in range(2))
    times, fine = _grids(teacher.schedule, 4)
    t = _spread_over(times, 8)
    state = State(teacher.schedule.sigma(t)[:, None] * normals(8, 2), t)
    _loss(ProgressiveDistillation(student, Fixed(teacher), times, fine), state).backward()
    assert all(value.grad is None for value in teacher.parameters())
    assert any(bool((value.grad != 0).any()) for value in student.parameters() if value.grad is not None)


def test_guidance_reaches_the_progressive_teacher() -> None:
    """w = 1 is the conditional teacher; another w is not."""
    teacher = three_gaussians(KarrasVE())
    times, fine = _grids(teacher.schedule, 4)
    state = noisy(teacher, _spread_over(times, 8))
    labels, ones = torch.tensor([0, 1] * 4), torch.ones(8, dtype=torch.float64)
    plain, guided = (
        ProgressiveDistillation(_Affine(), Fixed(each), times, fine) for each in (teacher, Guided(teacher, None))
    )
    expected = plain.target(replace(state, condition=Condition(labels)))
    torch.testing.assert_close(
        guided.target(replace(state, condition=Condition(labels, guidance=ones))), expected, rtol=1e-10, atol=1e-10
    )
    assert not torch.allclose(guided.target(replace(state, condition=Condition(labels, guidance=3 * ones))), expected)


def test_progressive_distillation_refuses_grids_and_times_that_do_not_fit() -> None:
    gaussian = one_gaussian(KarrasVE())
    times, fine = _grids(gaussian.schedule, 4)
    for bad_times, bad_fine in [
        (times, fine[:-1]),
        (times, times),
        (times[:-1], fine[:-2]),
        (times, (*fine[:2], fine[2] * 0.999, *fine[3:])),
    ]:
        with pytest.raises(UserError, match="must each be two of the teacher's"):
            ProgressiveDistillation(gaussian, Fixed(gaussian), bad_times, bad_fine)
    with pytest.raises(UserError, match="fall strictly"):
        ProgressiveDistillation(gaussian, Fixed(gaussian), times[::-1], fine)
    objective = ProgressiveDistillation(gaussian, Fixed(gaussian), times, fine)
    for t in (times[1] + 1e-6, 0.0):
        with pytest.raises(UserError, match="from which no step goes down"):
            _loss(objective, noisy(gaussian, torch.tensor([times[0], t], dtype=torch.float64)))
    _loss(objective, noisy(gaussian, torch.tensor([times[0], times[1] + 1e-10], dtype=torch.float64)))


# Ladders


def test_steps_on_a_ladder() -> None:
    times = (0.9, 0.7, 0.5, 0.3, 0.1)
    t = torch.tensor(times[:-1], dtype=torch.float64)
    for skip, edges, below, edge in [
        (1, (0.0,), [0.7, 0.5, 0.3, 0.1], [0.0] * 4),
        (3, (0.0,), [0.3, 0.1, 0.1, 0.1], [0.0] * 4),
        (1, (0.0, 0.5), [0.7, 0.5, 0.3, 0.1], [0.5, 0.5, 0.0, 0.0]),
        (3, (0.0, 0.3, 0.5), [0.5, 0.5, 0.3, 0.1], [0.5, 0.5, 0.3, 0.0]),
    ]:
        found = Ladder(times, skip, edges).below(t)
        assert [value.tolist() for value in found] == [below, edge]
    assert Ladder(times).starts == times[:-1]


def test_a_ladder_refuses_what_it_is_not() -> None:
    times = (0.9, 0.5, 0.1)
    for bad in [(0.9,), (0.5, 0.9), (0.9, 0.9, 0.1), (1.1, 0.5)]:
        with pytest.raises(UserError, match="fall strictly"):
            Ladder(bad)
    with pytest.raises(UserError, match="must be t_min"):
        Ladder((0.9, 0.5, 0.0))
    with pytest.raises(UserError, match="at least 1"):
        Ladder(times, 0)
    for edges in [(), (0.5,), (0.0, 0.4), (0.0, 0.1), (0.0, 0.9), (0.0, 0.5, 0.5)]:
        with pytest.raises(UserError, match="edges: must rise"):
            Ladder(times, 1, edges)
    for t in (0.6, 0.1):
        with pytest.raises(UserError, match=r"a state stands at t = 0\.[61]"):
            Ladder(times).below(torch.tensor([0.9, t], dtype=torch.float64))


# Consistency distillation


def _consistency(gaussian: GaussianMixture, ladder: Ladder) -> FromFunction:
    """The exact consistency function of each interval: to t_min in the lowest, elsewhere the
    estimate whose step to the edge is the flow (at the edge, anything).
    """
    schedule, edges = gaussian.schedule, torch.tensor(ladder.edges, dtype=torch.float64)

    def to_edge(x: Tensor, t: Tensor, _: object) -> Tensor:
        edge = edges[(edges < t[:, None] - 1e-12).sum(1) - 1]
        inner = torch.where(edge > 0, edge, 0.5 * t)
        upper = x0_of_transition(schedule, x, carried(gaussian, x, t, inner), t, inner)
        return torch.where((edge > 0)[:, None], upper, carried(gaussian, x, t, ladder.times[-1]))

    return FromFunction(schedule, to_edge)


LADDERS = {"plain": (1, 0), "skipping": (5, 0), "three-intervals": (1, 2), "skipping-in-intervals": (5, 2)}


def _ladder(schedule: Schedule, steps: int, skip: int, inner: int) -> Ladder:
    times = _rungs(schedule, steps)
    edges = sorted(times[steps * (k + 1) // (inner + 1)] for k in range(inner))
    return Ladder(times, skip, (0.0, *edges))


@every_schedule
@pytest.mark.parametrize("kind", LADDERS.values(), ids=LADDERS.keys())
def test_the_exact_consistency_function_has_no_loss_under_an_exact_teacher(
    schedule: Schedule, kind: tuple[int, int]
) -> None:
    ladder, gaussian = _ladder(schedule, 12, *kind), one_gaussian(schedule)
    student = _consistency(gaussian, ladder)
    teacher = exact_step(gaussian, lambda t: ladder.below(t)[0])
    state = noisy(gaussian, _spread_over(ladder.times, 36))
    assert float(_loss(ConsistencyDistillation(student, student, Fixed(teacher), ladder), state)) < 1e-18
    assert float(_loss(ConsistencyDistillation(student, student, Fixed(gaussian), ladder), state)) > 1e-6
    assert float(_loss(ConsistencyDistillation(_student(schedule), student, Fixed(teacher), ladder), state)) > 1e-3


@every_schedule
@every_rule
@pytest.mark.parametrize("inner", [0, 2], ids=["plain", "three-intervals"])
def test_the_loss_of_the_exact_function_is_the_teachers_local_error(schedule: Schedule, rule: Rule, inner: int) -> None:
    """Squared: 2^4 for Euler and 2^6 for Heun when the steps are doubled, at the same time."""
    gaussian, losses = one_gaussian(schedule), []
    for steps in (96, 192):
        ladder = _ladder(schedule, steps, 1, inner)
        student = _consistency(gaussian, ladder)
        state = noisy(gaussian, torch.full((16,), ladder.times[steps // 4], dtype=torch.float64))
        losses.append(float(_loss(ConsistencyDistillation(student, student, Fixed(gaussian), ladder, rule), state)))
    assert math.log2(losses[0] / losses[1]) == pytest.approx(2 * (rule.order + 1), abs=0.4)


@every_schedule
@every_rule
def test_around_one_point_the_boundary_is_the_consistency_function(schedule: Schedule, rule: Rule) -> None:
    point = GaussianMixture(schedule, torch.ones(1), torch.tensor([[0.7, -1.2]]), torch.zeros(1))
    student = Boundary(point)
    ladder = Ladder(_rungs(schedule, 10), 3)
    state = noisy(point, _spread_over(ladder.times, 20))
    assert float(_loss(ConsistencyDistillation(student, student, Fixed(point), ladder, rule), state)) < 1e-20


def test_the_last_steps_target_is_the_teachers_point() -> None:
    """Through the boundary condition, whatever the network; so the loss there has a closed form."""
    gaussian = one_gaussian(KarrasVE())
    ladder = Ladder(_rungs(gaussian.schedule, 10))
    state = noisy(gaussian, torch.full((8,), ladder.times[-2], dtype=torch.float64))
    student, wrong = (
        Boundary(_student(gaussian.schedule)),
        Boundary(FromFunction(gaussian.schedule, lambda x, t, _: 100 * x)),
    )
    x_s = teacher_step(HEUN, gaussian, state.x, state.t, ladder.times[-1])
    found = _loss(ConsistencyDistillation(student, wrong, Fixed(gaussian), ladder, HEUN, L1()), state)
    assert torch.equal(found, L1()(student(state.x, state.t), x_s).mean())


def test_consistencys_weight_distance_and_gradient() -> None:
    """lambda(t) distance(f, f_avg), differentiated through the student alone; the teacher and the
    average see their own times.
    """
    teacher, student, averaged = (tiny_denoiser(seed=seed).double() for seed in range(3))
    schedule = teacher.schedule
    ladder = Ladder(_rungs(schedule, 10), 2)
    t = _spread_over(ladder.times, 20)
    state = State(schedule.sigma(t)[:, None] * normals(20, 2), t)
    objective = ConsistencyDistillation(
        student, averaged, Fixed(teacher), ladder, EULER, PseudoHuber(0.1), EDMWeight(0.5)
    )
    loss = _loss(objective, state)
    s = rung_below(ladder.times, 2)(t)
    with torch.no_grad():
        target = averaged(ddim_between(schedule, state.x, teacher(state.x, t), t, s), s)
    expected = (EDMWeight(0.5).at(schedule, t) * PseudoHuber(0.1)(student(state.x, t), target)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(value, list(student.parameters())) for value in (loss, expected))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=0) for a, b in zip(ours, theirs, strict=True))
    _loss(objective, state).backward()
    assert all(value.grad is None for model in (teacher, averaged) for value in model.parameters())


def test_guidance_reaches_consistencys_teacher_and_student() -> None:
    teacher = three_gaussians(KarrasVE())
    ladder = Ladder(_rungs(teacher.schedule, 10), 4)
    condition = Condition(torch.tensor([0, 1] * 5), guidance=torch.linspace(2, 8, 10, dtype=torch.float64))
    state = replace(noisy(teacher, _spread_over(ladder.times, 10)), condition=condition)
    student = FromFunction(teacher.schedule, lambda x, t, given: x * given.guidance[:, None])
    s = rung_below(ladder.times, 4)(state.t)
    x_s = teacher_step(EULER, Guided(teacher, None), state.x, state.t, s, condition)
    expected = ((x_s - state.x) * condition.guidance[:, None]).square().mean()
    torch.testing.assert_close(
        _loss(ConsistencyDistillation(student, student, Fixed(Guided(teacher, None)), ladder), state),
        expected,
        rtol=1e-10,
        atol=0,
    )


# Soft consistency


@every_schedule
@pytest.mark.parametrize("max_steps", [1, 3, 100])
def test_the_exact_jump_has_no_loss_under_an_exact_teacher(schedule: Schedule, max_steps: int) -> None:
    gaussian, times = one_gaussian(schedule), _rungs(schedule, 12)
    model = trajectory(ExactJump(gaussian), schedule)
    teacher = exact_step(gaussian, rung_below(times))
    state = noisy(gaussian, _spread_over(times, 60))
    assert float(_loss(SoftConsistency(model, model, Fixed(teacher), times, EULER, max_steps), state)) < 1e-16
    assert float(_loss(SoftConsistency(model, model, Fixed(gaussian), times, EULER, max_steps), state)) > 1e-6
    wrong = freeze(trajectory(TinyJump(), schedule))
    assert float(_loss(SoftConsistency(wrong, model, Fixed(teacher), times, EULER, max_steps), state)) > 1e-3


@every_schedule
@every_rule
def test_the_loss_of_the_exact_jump_is_the_teachers_local_error(schedule: Schedule, rule: Rule) -> None:
    gaussian, losses = one_gaussian(schedule), []
    model = trajectory(ExactJump(gaussian), schedule)
    for steps in (96, 192):
        times = _rungs(schedule, steps)
        state = noisy(gaussian, torch.full((64,), times[steps // 4], dtype=torch.float64))
        losses.append(float(_loss(SoftConsistency(model, model, Fixed(gaussian), times, rule, 1), state)))
    assert math.log2(losses[0] / losses[1]) == pytest.approx(2 * (rule.order + 1), abs=0.4)


def _soft(
    times: tuple[float, ...], max_steps: int, student: TrajectoryDenoiser | None = None, teacher: Denoiser | None = None
) -> SoftConsistency:
    schedule = KarrasVE()
    averaged = freeze(trajectory(TinyJump(1), schedule))
    return SoftConsistency(
        student or trajectory(TinyJump(0), schedule),
        averaged,
        Fixed(teacher or one_gaussian(schedule)),
        times,
        HEUN,
        max_steps,
    )


@pytest.mark.parametrize("max_steps", [1, 2, 100])
def test_times_on_the_trajectory_are_ordered_bounded_and_uniform(max_steps: int) -> None:
    times = _rungs(KarrasVE(), 6)
    objective = _soft(times, max_steps)
    rows = 12_000
    state = State(torch.zeros(rows, 2), _spread_over(times, rows))
    now, between, end = objective.indices(Step(Key(0), rows), state)
    assert bool(((now < between) & (between <= end) & (end <= 6) & (between - now <= max_steps)).all())
    at_first = now == 0
    counts = torch.bincount(end[at_first], minlength=7)[1:]
    assert float(((counts - counts.sum() / 6) ** 2 / (counts.sum() / 6)).sum()) < 20.5
    chosen = torch.bincount(between[at_first & (end == 6)], minlength=7)[1 : min(max_steps, 6) + 1].double()
    assert float(((chosen - chosen.mean()) ** 2 / chosen.mean()).sum()) < 20.5


def test_soft_consistency_is_equation_9() -> None:
    """Sample by sample, with the teacher's steps counted out, and its gradient through the outer
    jump.
    """
    schedule = KarrasVE()
    times = _rungs(schedule, 6)
    teacher = one_gaussian(schedule)
    objective = _soft(times, 3, teacher=teacher)
    state = noisy(teacher, _spread_over(times, 18))
    now, between, end = objective.indices(Step(Key(0, "law"), 18), state)
    assert len(set((between - now).tolist())) == 3
    apart = []
    for row in range(18):
        x, s = state.x[row : row + 1], times[int(end[row])]
        with torch.no_grad():
            x_u = x
            for index in range(int(now[row]), int(between[row])):
                x_u = teacher_step(HEUN, teacher, x_u, times[index], times[index + 1])
            target = objective.averaged.jump(objective.averaged.jump(x_u, times[int(between[row])], s), s, 0.0)
        estimate = objective.averaged.jump(objective.student.jump(x, times[int(now[row])], s), s, 0.0)
        apart.append((estimate - target).square().mean())
    expected, found = torch.stack(apart).mean(), _loss(objective, state)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    ours, theirs = (torch.autograd.grad(value, list(objective.student.parameters())) for value in (found, expected))
    assert all(
        torch.allclose(a, b, rtol=1e-7, atol=1e-12) and bool((a != 0).any()) for a, b in zip(ours, theirs, strict=True)
    )


def test_soft_consistencys_teacher_runs_only_where_it_must() -> None:
    teacher = freeze(tiny_denoiser().double())
    times = _rungs(teacher.schedule, 6)
    student = freeze(trajectory(TinyJump(), teacher.schedule))
    objective = _soft(times, 100, student, teacher)
    state = State(normals(30, 2), _spread_over(times, 30))
    now, between, _ = objective.indices(Step(Key(0, "law"), 30), state)
    with cost.metered() as meter:
        _loss(objective, state)
    # Two jumps on either side, and Heun's two evaluations a step.
    assert meter.evaluations == 4 * 30 + 2 * int((between - now).sum())


def test_soft_consistency_over_two_processes_is_that_over_one() -> None:
    times = _rungs(KarrasVE(), 6)
    objective = _soft(times, 3)
    state = noisy(one_gaussian(KarrasVE()), _spread_over(times, 12))
    halves = [
        _loss(objective, State(state.x[part], state.t[part]), start=part.start) for part in (slice(0, 6), slice(6, 12))
    ]
    torch.testing.assert_close(_loss(objective, state), (halves[0] + halves[1]) / 2, rtol=1e-10, atol=0)


def test_the_last_rung_of_soft_consistency_is_consistency_distillation() -> None:
    """From the last start there is one u and one s, t_min, and the jump there is all that is
    compared (seen through the average's last one).
    """
    gaussian = one_gaussian(KarrasVE())
    times = _rungs(gaussian.schedule, 6)
    objective = _soft(times, 3)
    state = noisy(gaussian, torch.full((5,), times[-2], dtype=torch.float64))
    x_u = teacher_step(HEUN, gaussian, state.x, times[-2], times[-1])
    landed = [
        objective.averaged.jump(x, times[-1], 0.0) for x in (objective.student.jump(state.x, times[-2], times[-1]), x_u)
    ]
    assert torch.equal(_loss(objective, state), SquaredL2()(*landed).mean())


def test_denoising_trains_the_trajectorys_denoiser() -> None:
    """The second term of the paper's loss is the objective that denoisers have, at s = t."""
    model = trajectory(TinyJump(), KarrasVE())
    t = torch.tensor([0.1, 0.01, 0.5], dtype=torch.float64)
    state = State(normals(3, 2), t, x0=normals(3, 2, seed=1))
    expected = (model.estimate(state.x, t, t) - state.x0).square().mean()
    torch.testing.assert_close(_loss(Denoising(model, UnitWeight()), state), expected, rtol=1e-12, atol=0)


def test_soft_consistency_refuses_what_has_no_meaning() -> None:
    times = _rungs(KarrasVE(), 6)
    model = trajectory(TinyJump(), KarrasVE())
    fixed = Fixed(one_gaussian(KarrasVE()))
    with pytest.raises(UserError, match="must be frozen"):
        SoftConsistency(model, copy_of(model), fixed, times)
    for bad, steps in (((*times, 0.0), 1), (times, 0)):
        with pytest.raises(UserError, match="must end at t_min"):
            SoftConsistency(model, freeze(copy_of(model)), fixed, bad, HEUN, steps)
    with pytest.raises(UserError, match="from which no step goes down"):
        _loss(_soft(times, 1), State(normals(1, 2), torch.tensor([times[-1]], dtype=torch.float64)))


# Inverse consistency


def _spread_up(times: tuple[float, ...], rows: int) -> Tensor:
    """Each of the times from which a step goes up in turn, (rows,)."""
    return torch.tensor([times[1 + i % (len(times) - 1)] for i in range(rows)], dtype=torch.float64)


def _rung_above(times: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """The time one rung above each t; the first stays."""
    grid = torch.tensor(times, dtype=torch.float64)
    return lambda t: grid[((t[:, None] - grid).abs().argmin(1) - 1).clamp(min=0)]


@every_schedule
@pytest.mark.parametrize("max_steps", [1, 3, 100])
def test_the_exact_jump_upwards_has_no_loss_under_an_exact_teacher(schedule: Schedule, max_steps: int) -> None:
    gaussian, times = one_gaussian(schedule), _rungs(schedule, 12)
    model = trajectory(ExactJump(gaussian), schedule)
    teacher = exact_step(gaussian, _rung_above(times))
    state = noisy(gaussian, _spread_up(times, 60))
    # From t_min a jump is 1e4 times its network's output less its input, so that rounding shows
    # there.
    assert float(_loss(InverseConsistency(model, model, Fixed(teacher), times, EULER, max_steps), state)) < 1e-13
    assert float(_loss(InverseConsistency(model, model, Fixed(gaussian), times, EULER, max_steps), state)) > 1e-6
    wrong = freeze(trajectory(TinyJump(), schedule))
    assert float(_loss(InverseConsistency(wrong, model, Fixed(teacher), times, EULER, max_steps), state)) > 1e-3


@every_rule
def test_the_loss_of_the_exact_jump_upwards_is_the_teachers_local_error(rule: Rule) -> None:
    gaussian, losses = one_gaussian(KarrasVE()), []
    model = trajectory(ExactJump(gaussian), gaussian.schedule)
    for steps in (96, 192):
        times = _rungs(gaussian.schedule, steps)
        state = noisy(gaussian, torch.full((64,), times[steps // 2], dtype=torch.float64))
        losses.append(float(_loss(InverseConsistency(model, model, Fixed(gaussian), times, rule, 1), state)))
    assert math.log2(losses[0] / losses[1]) == pytest.approx(2 * (rule.order + 1), abs=0.4)


def _inverse(times: tuple[float, ...], max_steps: int, teacher: Denoiser | None = None) -> InverseConsistency:
    schedule = KarrasVE()
    averaged = freeze(trajectory(TinyJump(1), schedule))
    return InverseConsistency(
        trajectory(TinyJump(0), schedule), averaged, Fixed(teacher or one_gaussian(schedule)), times, HEUN, max_steps
    )


@pytest.mark.parametrize("max_steps", [1, 2, 100])
def test_times_upwards_are_ordered_bounded_and_uniform(max_steps: int) -> None:
    times = _rungs(KarrasVE(), 6)
    rows = 12_000
    state = State(torch.zeros(rows, 2), _spread_up(times, rows))
    now, between, end = _inverse(times, max_steps).indices(Step(Key(0), rows), state)
    assert bool(((end <= between) & (between < now) & (end >= 0) & (now - between <= max_steps)).all())
    at_last = now == 6
    counts = torch.bincount(end[at_last], minlength=6)
    assert float(((counts - counts.sum() / 6) ** 2 / (counts.sum() / 6)).sum()) < 20.5
    chosen = torch.bincount(between[at_last & (end == 0)], minlength=6)[max(6 - max_steps, 0) :].double()
    assert float(((chosen - chosen.mean()) ** 2 / chosen.mean()).sum()) < 20.5


def test_inverse_consistency_is_its_formula_sample_by_sample_and_so_is_its_gradient() -> None:
    schedule = KarrasVE()
    times, teacher = _rungs(schedule, 6), one_gaussian(schedule)
    objective = _inverse(times, 3)
    state = noisy(teacher, _spread_up(times, 18))
    now, between, end = objective.indices(Step(Key(0, "law"), 18), state)
    assert len(set((now - between).tolist())) == 3
    apart = []
    for row in range(18):
        x, s = state.x[row : row + 1], times[int(end[row])]
        with torch.no_grad():
            x_u = x
            for index in range(int(now[row]), int(between[row]), -1):
                x_u = teacher_step(HEUN, teacher, x_u, times[index], times[index - 1])
            target = objective.averaged.jump(x_u, times[int(between[row])], s)
        apart.append(
            (
                (objective.student.jump(x, times[int(now[row])], s) - target)
                / schedule.sigma(torch.tensor(s, dtype=torch.float64))
            )
            .square()
            .mean()
        )
    expected, found = torch.stack(apart).mean(), _loss(objective, state)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    ours, theirs = (torch.autograd.grad(value, list(objective.student.parameters())) for value in (found, expected))
    assert all(
        torch.allclose(a, b, rtol=1e-7, atol=1e-12) and bool((a != 0).any()) for a, b in zip(ours, theirs, strict=True)
    )


class _Turned(nn.Module):
    """The exact flow upwards, off by ``error`` times the noise level of the end in every
    direction.
    """

    def __init__(self, gaussian: GaussianMixture):
        super().__init__()
        self.gaussian, self.error = gaussian, nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, condition: Condition, s: Tensor) -> Tensor:
        schedule = self.gaussian.schedule
        wrong = carried(self.gaussian, x, t, s) + self.error * schedule.sigma(s)[:, None]
        return x0_of_transition(schedule, x, wrong, t, s)


def test_an_error_in_units_of_noise_costs_its_square_at_every_level_with_the_gradient_of_a_square() -> None:
    """On a Gaussian the upward map is known: a jump that is off by e sigma_s has the loss e^2 and
    the gradient 2 e, whatever t, u and s.
    """
    gaussian = one_gaussian(KarrasVE())
    times = _rungs(gaussian.schedule, 6)
    student, exact = _Turned(gaussian), freeze(trajectory(ExactJump(gaussian), gaussian.schedule))
    objective = InverseConsistency(
        trajectory(student, gaussian.schedule), exact, Fixed(exact_step(gaussian, _rung_above(times))), times, EULER, 3
    )
    for t in times[1:]:
        loss = _loss(objective, noisy(gaussian, torch.full((8,), t, dtype=torch.float64)))
        assert float(loss.detach()) == pytest.approx(0.01, rel=1e-5)
        assert float(torch.autograd.grad(loss, student.error)[0]) == pytest.approx(0.2, rel=1e-5)


def test_inverse_consistencys_teacher_runs_only_where_it_must() -> None:
    teacher = freeze(tiny_denoiser().double())
    times = _rungs(teacher.schedule, 6)
    model = freeze(trajectory(TinyJump(), teacher.schedule))
    objective = InverseConsistency(model, model, Fixed(teacher), times, HEUN, 100)
    state = State(normals(30, 2), _spread_up(times, 30))
    now, between, _ = objective.indices(Step(Key(0, "law"), 30), state)
    with cost.metered() as meter:
        _loss(objective, state)
    assert meter.evaluations == 2 * 30 + 2 * int((now - between).sum())


def test_inverse_consistency_over_two_processes_is_that_over_one() -> None:
    times = _rungs(KarrasVE(), 6)
    objective = _inverse(times, 3)
    state = noisy(one_gaussian(KarrasVE()), _spread_up(times, 12))
    halves = [
        _loss(objective, State(state.x[part], state.t[part]), start=part.start) for part in (slice(0, 6), slice(6, 12))
    ]
    torch.testing.assert_close(_loss(objective, state), (halves[0] + halves[1]) / 2, rtol=1e-10, atol=0)


def test_inverse_consistency_refuses_what_has_no_meaning() -> None:
    times = _rungs(KarrasVE(), 6)
    model = trajectory(TinyJump(), KarrasVE())
    fixed = Fixed(one_gaussian(KarrasVE()))
    with pytest.raises(UserError, match="inverse consistency: the averaged model must be frozen"):
        InverseConsistency(model, copy_of(model), fixed, times)
    for bad, steps in (((*times, 0.0), 1), (times, 0)):
        with pytest.raises(UserError, match="inverse consistency: its times must end at t_min"):
            InverseConsistency(model, freeze(copy_of(model)), fixed, bad, HEUN, steps)
    with pytest.raises(
        UserError, match=r"from which no step goes up on its times .*; draw the states' times from all but the first"
    ):
        _loss(_inverse(times, 1), State(normals(1, 2), torch.tensor([times[0]], dtype=torch.float64)))


# Rectified flow


def _coupled(gaussian: GaussianMixture, z: Tensor) -> Tensor:
    """The data at which the flow of one Gaussian arrives from noise z at t = 1."""
    return carried(gaussian, z, 1.0, 0.0)


def _reflowed(gaussian: GaussianMixture) -> FromFunction:
    """The denoiser of that coupling: x_t = (1 - t) (m + C^1/2 z) + t z can be solved for z."""
    roots = gaussian.variances[0].sqrt()

    def estimate(x: Tensor, t: Tensor, _: object) -> Tensor:
        scale = (1 - t[:, None]) * roots + t[:, None]
        turned = (x - (1 - t[:, None]) * gaussian.means[0]) @ gaussian.vectors[0] / scale * roots
        return gaussian.means[0] + turned @ gaussian.vectors[0].T

    return FromFunction(FLOW, estimate)


def _pairs(gaussian: GaussianMixture, rows: int) -> State:
    z = normals(rows, 2)
    return State(z, torch.ones(rows, dtype=torch.float64), x0=_coupled(gaussian, z))


class _FlowStudent(FromFunction):
    """x0 = tanh(gain x) t, remembering its inputs."""

    def __init__(self) -> None:
        super().__init__(FLOW, self._estimate)
        self.gain = nn.Parameter(torch.tensor([0.7, 1.3], dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor]] = []

    def _estimate(self, x: Tensor, t: Tensor, _: object) -> Tensor:
        self.calls.append((x, t))
        return torch.tanh(self.gain * x) * t[:, None]


def test_the_loss_of_a_denoiser_is_that_of_its_velocity() -> None:
    student = _FlowStudent()
    state = _pairs(one_gaussian(FLOW), 40)
    objective = VelocityRegression(student, UniformTimes(0.2, 0.9))
    found = _loss(objective, state)
    x_t, t = student.calls[-1]
    torch.testing.assert_close(x_t, (1 - t)[:, None] * state.x0 + t[:, None] * state.x)
    assert 0.2 <= float(t.min()) < 0.3
    assert 0.8 < float(t.max()) <= 0.9
    velocity = (x_t - student(x_t, t)) / t[:, None]
    torch.testing.assert_close(found, (velocity - (state.x - state.x0)).square().mean(), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(found, student.gain)
    expected = torch.autograd.grad((velocity - (state.x - state.x0)).square().mean(), student.gain)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=0)


def test_the_velocity_of_a_straight_coupling_has_no_loss() -> None:
    gaussian = one_gaussian(FLOW)
    state = _pairs(gaussian, 200)
    assert float(_loss(VelocityRegression(_reflowed(gaussian)), state)) < 1e-20
    assert float(_loss(VelocityRegression(gaussian), state)) > 1e-2


def test_velocity_regression_refuses_what_is_no_pair() -> None:
    with pytest.raises(UserError, match="needs a denoiser under RectifiedFlow"):
        VelocityRegression(one_gaussian(KarrasVE()))
    state = _pairs(one_gaussian(FLOW), 4)
    for bad in (replace(state, x0=None), replace(state, t=0.9 * state.t)):
        with pytest.raises(UserError, match="needs pairs of noise"):
            _loss(VelocityRegression(one_gaussian(FLOW)), bad)


def test_reflow_is_straight_and_one_step_of_it_exact() -> None:
    gaussian = one_gaussian(FLOW)
    z = normals(100, 2)
    assert straightness(_reflowed(gaussian), z, 50) < 1e-24
    torch.testing.assert_close(
        Solver(_reflowed(gaussian), 1, grid=UniformGrid())(z, 1.0, 0.0), _coupled(gaussian, z), rtol=1e-10, atol=1e-10
    )


def test_the_straightness_of_a_gaussians_first_flow() -> None:
    """With h(t)^2 = (1 - t)^2 v + t^2 along each axis, Z_t = (1 - t) m + h z, so S = E z^2 (int
    h'^2 dt - (1 - sqrt v)^2), by fine quadrature.
    """
    gaussian = one_gaussian(FLOW)
    z = normals(400, 2)
    t = (torch.arange(20_000, dtype=torch.float64)[:, None] + 0.5) / 20_000
    v = gaussian.variances[0]
    rate = (t - (1 - t) * v) / torch.sqrt((1 - t) ** 2 * v + t**2)
    power = (z @ gaussian.vectors[0]).square().mean(0)
    exact = float((power * (rate.square().mean(0) - (1 - v.sqrt()) ** 2)).sum())
    assert exact > 0.05
    errors = [abs(straightness(gaussian, z, steps) - exact) for steps in (100, 200, 400)]
    assert errors[2] < 0.01 * exact
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.25)


def test_straightness_tells_a_bent_flow_and_refuses_what_has_none() -> None:
    z = normals(100, 2)
    assert straightness(three_gaussians(FLOW), z, 50) > 0.1
    labels = torch.zeros(100, dtype=torch.int64)
    assert straightness(three_gaussians(FLOW), z, 50, labels) != straightness(three_gaussians(FLOW), z, 50)
    assert straightness(one_gaussian(FLOW), z, 1) == 0.0
    with pytest.raises(UserError, match="needs a denoiser under RectifiedFlow"):
        straightness(one_gaussian(KarrasVE()), z)
    for steps in (0, 1001):
        with pytest.raises(UserError, match="between 1 and 1000 steps"):
            straightness(one_gaussian(FLOW), z, steps)
