"""Laws of jumps: boundary conditions bit for bit, the exact flow of a Gaussian, and samplers that
degenerate to simpler ones.
"""

from __future__ import annotations

import math

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, three_gaussians, time, tiny_denoiser
from torch import Tensor
from trajectory_kit import ExactJump, FromFunction, TinyJump, carried, trajectory

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import (
    Boundary,
    EDMInputs,
    EndJump,
    GaussianMixture,
    NetworkDenoiser,
    TimestepInputs,
    TrajectoryDenoiser,
    freeze,
    trajectory_of,
)
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.prediction import EDM, X0, Epsilon
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule
from fewstep.solvers import (
    DPM2M,
    EULER,
    HEUN,
    Gamma,
    Renoise,
    Rule,
    ddim_between,
    solve,
    teacher_step,
    x0_of_transition,
)
from fewstep.solvers.rule import ddim_step
from fewstep.times import RhoGrid

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_rule = pytest.mark.parametrize("rule", [EULER, HEUN], ids=["euler", "heun"])
FLOW = RectifiedFlow()


def _times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Transitions


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_transition_to_the_same_time_or_to_zero_is_exact(schedule: Schedule, dtype: torch.dtype) -> None:
    x, x0 = normals(3, 1, 2, 2, dtype=dtype), normals(3, 1, 2, 2, seed=1, dtype=dtype)
    t = _times(schedule.t_min, 0.4, 1.0)
    assert torch.equal(ddim_between(schedule, x, x0, t, t), x)
    assert torch.equal(ddim_between(schedule, x, x0, t, 0.0), x0)


@every_schedule
def test_transitions_are_ddim_steps_sample_by_sample(schedule: Schedule) -> None:
    x, x0 = normals(4, 2), normals(4, 2, seed=1)
    t, s = _times(0.9, 0.2, 1.0, 0.3), _times(0.4, 0.7, 0.5, 0.0)
    apart = torch.cat([ddim_step(schedule, x[i : i + 1], x0[i : i + 1], t[i], s[i]) for i in range(4)])
    torch.testing.assert_close(ddim_between(schedule, x, x0, t, s), apart, rtol=1e-10, atol=1e-10)


@every_schedule
def test_the_estimate_of_a_transition_makes_it(schedule: Schedule) -> None:
    x_t, x_s = normals(4, 2), normals(4, 2, seed=1)
    t, s = _times(0.9, 0.2, 1.0, 0.3), _times(0.4, 0.7, 0.5, 0.0)
    x0 = x0_of_transition(schedule, x_t, x_s, t, s)
    torch.testing.assert_close(ddim_between(schedule, x_t, x0, t, s), x_s, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        x0_of_transition(schedule, x_t, ddim_between(schedule, x_t, x_s, t, s), t, s), x_s, rtol=1e-10, atol=1e-10
    )


@every_schedule
@every_rule
def test_a_teachers_step_is_the_solvers_sample_by_sample(schedule: Schedule, rule: Rule) -> None:
    """Times of each kind in one batch: inner ones, a step to 0, a step from t = 1 (alpha = 0 for
    flows), a step up.
    """
    mixture = three_gaussians(schedule)
    t, s = _times(0.9, 0.3, 1.0, 0.2), _times(0.6, 0.0, 0.8, 0.5)
    x = schedule.sigma(t)[:, None] * normals(4, 2)
    labels = torch.tensor([0, 1, -1, 0])
    together = teacher_step(rule, mixture, x, t, s, Condition(labels=labels))
    apart = torch.cat(
        [
            solve(rule, mixture, x[i : i + 1], torch.stack([t[i], s[i]]), Condition(labels=labels[i : i + 1]))
            for i in range(4)
        ]
    )
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


@every_rule
def test_a_teachers_step_to_the_end_costs_one_evaluation_and_carries_gradients(rule: Rule) -> None:
    x = normals(3, 2, dtype=torch.float32).requires_grad_()
    with cost.metered() as meter:
        end = teacher_step(rule, freeze(tiny_denoiser(KarrasVE())), x, 0.5, 0.0)
    assert meter.evaluations == 9
    end = teacher_step(rule, tiny_denoiser(DiscreteVP()), x, _times(0.5, 1.0, 0.3), _times(0.0, 0.5, 0.1))
    (gradient,) = torch.autograd.grad(end.sum(), x)
    assert bool(torch.isfinite(gradient).all())


def test_a_rule_with_memory_is_no_teachers_step() -> None:
    with pytest.raises(UserError, match="extrapolates from the last step"):
        teacher_step(DPM2M, one_gaussian(KarrasVE()), normals(2, 2), 0.5, 0.4)


# The trajectory model


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jump_nowhere_is_the_identity_and_a_jump_to_the_end_the_estimate(
    schedule: Schedule, dtype: torch.dtype
) -> None:
    model = trajectory(TinyJump(), schedule)
    x, t = normals(4, 2, dtype=dtype), _times(schedule.t_min, 0.3, 0.8, 1.0)
    assert torch.equal(model.jump(x, t, t), x)
    assert torch.equal(model.jump(x, t, 0.0), model.estimate(x, t, 0.0))
    assert torch.equal(EndJump(model)(x, t), model.estimate(x, t, 0.0))
    assert torch.equal(model(x, t), model.estimate(x, t, t))
    assert not torch.equal(model(x, t), EndJump(model)(x, t))


def test_under_variance_exploding_a_jump_is_the_papers_formula() -> None:
    model = trajectory(TinyJump(), KarrasVE())
    x, t, s = normals(3, 2), _times(0.9, 0.5, 0.1), _times(0.3, 0.05, 0.4)
    ratio = (s / t)[:, None]
    torch.testing.assert_close(
        model.jump(x, t, s), ratio * x + (1 - ratio) * model.estimate(x, t, s), rtol=1e-12, atol=1e-12
    )


def test_the_network_is_told_both_times_and_no_end_below_t_min() -> None:
    schedule, network = KarrasVE(), TinyJump()
    inputs = EDMInputs(0.5)
    model = TrajectoryDenoiser(network, schedule, EDM(0.5), inputs, (2,))
    t, s = _times(0.5, 0.2, 0.1), _times(0.3, 0.0, 1e-9)
    model.jump(normals(3, 2), t, s)
    (label, end_label) = network.labels[0]
    assert torch.equal(label, inputs.scale_and_label(schedule, t)[1])
    assert torch.equal(end_label, inputs.scale_and_label(schedule, _times(0.3, schedule.t_min, schedule.t_min))[1])


def test_the_estimate_is_the_predictions() -> None:
    """skip x + out F with the network fed scale x: EDM's preconditioning around a known F."""
    schedule, network = KarrasVE(), TinyJump()
    model = TrajectoryDenoiser(network, schedule, EDM(0.5), EDMInputs(0.5), (2,))
    x, sigma = normals(3, 2), 40.0
    emitted = network(
        x / math.sqrt(sigma**2 + 0.25),
        *(torch.full((3,), math.log(v) / 4, dtype=torch.float64) for v in (sigma,)),
        Condition(),
        _times(*[math.log(8.0) / 4] * 3),
    )
    expected = 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / math.sqrt(sigma**2 + 0.25) * emitted
    torch.testing.assert_close(model.estimate(x, 0.5, 0.1), expected, rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_exact_jump_is_the_flow_and_runs_both_ways(schedule: Schedule) -> None:
    gaussian = one_gaussian(schedule)
    model = trajectory(ExactJump(gaussian), schedule)
    x, t, s, u = normals(4, 2), _times(0.9, 0.2, 0.7, 1.0), _times(0.4, 0.8, 0.1, 0.5), _times(0.6, 0.5, 0.5, 0.5)
    torch.testing.assert_close(model.jump(x, t, s), carried(gaussian, x, t, s), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.jump(model.jump(x, t, u), u, s), model.jump(x, t, s), rtol=1e-9, atol=1e-9)
    up, top = schedule.t_min, 0.95
    torch.testing.assert_close(model.jump(model.jump(x, up, top), top, up), x, rtol=1e-8, atol=1e-8)


def test_a_trajectory_model_begins_as_the_denoiser_it_is_made_of() -> None:
    denoiser = NetworkDenoiser(
        build({"kind": "residual-mlp", "dim": 2, "width": 8, "depth": 1}), KarrasVE(), EDM(0.5), EDMInputs(0.5), (2,)
    )
    with torch.no_grad():
        for value in denoiser.parameters():
            value.copy_(0.3 * normals(*value.shape, dtype=torch.float32))
    model = trajectory_of(denoiser)
    x, t = normals(3, 2, dtype=torch.float32), _times(0.9, 0.3, 0.01)
    assert torch.equal(model(x, t), denoiser(x, t))
    assert torch.equal(model.jump(x, t, 0.0), denoiser(x, t))
    assert (model.schedule, model.shape, model.classes) == (denoiser.schedule, (2,), 0)


def test_a_trajectory_model_refuses_what_a_denoiser_refuses_and_counts_its_cost() -> None:
    with pytest.raises(UserError, match="eps prediction"):
        TrajectoryDenoiser(TinyJump(), FLOW, Epsilon(), TimestepInputs(), (2,))
    with pytest.raises(UserError, match="EDM's inputs"):
        TrajectoryDenoiser(TinyJump(), FLOW, X0(), EDMInputs(), (2,))
    with cost.metered() as meter, torch.no_grad():
        trajectory(TinyJump(), FLOW).jump(normals(5, 2), 0.5, 0.1)
    assert meter.evaluations == 5


# The boundary condition of consistency models


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_consistency_function_is_the_identity_at_t_min(schedule: Schedule, dtype: torch.dtype) -> None:
    model = Boundary(FromFunction(schedule, lambda x, t, _: torch.sin(3 * x) + 5))
    x = normals(4, 2, dtype=dtype)
    t = _times(schedule.t_min, 1.0, schedule.t_min, 0.5)
    found = model(x, t)
    assert torch.equal(found[0::2], x[0::2])
    assert bool(torch.isfinite(found).all())
    assert not bool((found[1::2] == x[1::2]).any())


@every_schedule
def test_far_from_t_min_a_consistency_function_is_its_denoiser(schedule: Schedule) -> None:
    """Up to the noise that belongs to t_min, sigma_min / sigma times x - alpha D."""
    denoiser = FromFunction(schedule, lambda x, t, _: torch.sin(3 * x))
    x = schedule.sigma(1.0) * normals(4, 2)
    difference = Boundary(denoiser)(x, time(1.0)) - denoiser(x, time(1.0))
    bound = schedule.sigma(schedule.t_min) / schedule.sigma(1.0) * (x.abs() + 1) + (1 - schedule.alpha(schedule.t_min))
    assert bool((difference.abs() <= bound).all())


@every_schedule
def test_around_one_point_the_boundary_makes_a_denoiser_a_consistency_function(schedule: Schedule) -> None:
    """The same value, x at t_min, anywhere on a trajectory."""
    point = GaussianMixture(schedule, torch.ones(1), torch.tensor([[0.7, -1.2]]), torch.zeros(1))
    x = normals(4, 2) * 0.5
    model = Boundary(point)
    t = _times(0.1, 0.4, 0.7, 1.0)
    torch.testing.assert_close(model(x, t), carried(point, x, t, schedule.t_min), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.3, 5.0, 80.0])
def test_the_factor_on_edms_network_is_that_of_consistency_models(sigma: float) -> None:
    """sd (sigma - epsilon) / sqrt(sigma^2 + sd^2); that on x is near sd^2 / ((sigma - epsilon)^2 +
    sd^2), to order epsilon / sigma.
    """
    schedule, t = KarrasVE(0.002, 80.0), time(sigma / 80)
    skip, out = EDM(0.5).coefficients(schedule, t)
    zero, one = (
        Boundary(FromFunction(schedule, lambda x, t, _, emitted=emitted: skip * x + out * emitted))
        for emitted in (0.0, 1.0)
    )
    x = torch.ones(1, 2, dtype=torch.float64)
    published = 0.5 * (sigma - 0.002) / math.sqrt(sigma**2 + 0.25)
    torch.testing.assert_close(one(x, t) - zero(x, t), published * x, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        zero(x, t), 0.25 / ((sigma - 0.002) ** 2 + 0.25) * x, rtol=0, atol=2 * 0.002 / (sigma + 0.002)
    )


# Gamma-sampling


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_0_is_the_jump_and_gamma_1_is_renoise(schedule: Schedule, dtype: torch.dtype) -> None:
    model, key = trajectory(TinyJump(), schedule), Key(7, "law", 3)
    x = normals(6, 2, dtype=dtype)
    for t, s in [(1.0, 0.5), (0.5, 0.02), (0.5, 0.0)]:
        assert torch.equal(Gamma(model, 0.0, key)(x, t, s), model.jump(x, t, s))
        assert torch.equal(Gamma(model, 1.0, key, 11)(x, t, s), Renoise(EndJump(model), schedule, key, 11)(x, t, s))
    assert torch.equal(Gamma(model, 0.0)(x, 0.2, 0.9), model.jump(x, 0.2, 0.9))


@every_schedule
@pytest.mark.parametrize("gamma", [0.2, 0.7, 1.0])
def test_gamma_replaces_its_share_of_the_noise(schedule: Schedule, gamma: float) -> None:
    """Around one point m, x_s = alpha_s m + sigma_s (sqrt(1 - gamma^2) e + gamma eps), where e is
    the noise in x_t.
    """
    point = torch.tensor([0.7, -1.2], dtype=torch.float64)
    model = trajectory(ExactJump(GaussianMixture(schedule, torch.ones(1), point[None], torch.zeros(1))), schedule)
    key, t, s = Key(1, "law"), 1.0, 0.3
    noise = normals(5, 2)
    found = Gamma(model, gamma, key)(schedule.alpha(t) * point + schedule.sigma(t) * noise, t, s)
    fresh = key.normal("renoise-0.3", (5, 2)).double()
    expected = schedule.alpha(s) * point + schedule.sigma(s) * (math.sqrt(1 - gamma**2) * noise + gamma * fresh)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_gamma_draws_by_place_and_index() -> None:
    model = trajectory(TinyJump(), KarrasVE())
    x, key = normals(6, 2), Key(3)
    whole = Gamma(model, 0.5).at(key)(x, 0.9, 0.4)
    parts = torch.cat([Gamma(model, 0.5).at(key, start)(x[start : start + 3], 0.9, 0.4) for start in (0, 3)])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    assert not torch.equal(whole, Gamma(model, 0.5).at(key.at(1))(x, 0.9, 0.4))


def test_gamma_refuses_what_has_no_meaning() -> None:
    model = trajectory(TinyJump(), KarrasVE())
    for gamma in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=r"gamma must be in \[0, 1\]"):
            Gamma(model, gamma)
    with pytest.raises(UserError, match="only gamma = 0 carries data to noise"):
        Gamma(model, 0.5)(normals(2, 2), 0.3, 0.6)


def test_the_exact_model_inverts_through_gamma_0() -> None:
    gaussian = one_gaussian(DiscreteVP())
    flow_map = Gamma(trajectory(ExactJump(gaussian), gaussian.schedule), 0.0)
    x = normals(4, 2)
    top = flow_map(flow_map(x, 0.05, 0.5), 0.5, 0.9)
    torch.testing.assert_close(top, carried(gaussian, x, 0.05, 0.9), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow_map(flow_map(top, 0.9, 0.3), 0.3, 0.05), x, rtol=1e-8, atol=1e-8)


@every_schedule
@every_rule
def test_the_local_error_of_a_teachers_step(schedule: Schedule, rule: Rule) -> None:
    """Order 1 more than the rule's: 2 for Euler, 3 for Heun."""
    gaussian = one_gaussian(schedule)
    first, last = float(schedule.time_at_sigma(2.0)), float(schedule.time_at_sigma(0.1))
    x, errors = normals(6, 2), []
    for steps in (64, 128):
        grid = RhoGrid().between(schedule, first, last, steps + 1)
        errors.append(
            float((teacher_step(rule, gaussian, x, grid[0], grid[1]) - carried(gaussian, x, grid[0], grid[1])).norm())
        )
    assert math.log2(errors[0] / errors[1]) == pytest.approx(rule.order + 1, abs=0.15)
