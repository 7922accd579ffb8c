"""Laws of the stochastic sampler: it is the solver where nothing is added, Algorithm 2 step by
step, and right in the marginal variance to the order of a step.
"""

from __future__ import annotations

import math

import pytest
import torch
from law_kit import SCHEDULES, normals, three_gaussians, tiny_denoiser
from pydantic import ValidationError
from torch import Tensor

from fewstep import cost
from fewstep.condition import Classes
from fewstep.denoisers import GaussianMixture
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.recipes.config import SamplerChoice
from fewstep.runs.sampler import TeacherSampler
from fewstep.schedule import KarrasVE, RectifiedFlow, Schedule
from fewstep.solvers import DPM2M, EULER, HEUN, NO_CHURN, Churn, Rule, solve, solve_with_churn
from fewstep.times import RhoGrid, UniformGrid

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
both_rules = pytest.mark.parametrize("rule", [EULER, HEUN], ids=["euler", "heun"])
PLACE = Key(3, "churn")


def start_of(schedule: Schedule, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Noise at sigma / alpha = 8, and 12 steps down to t = 0."""
    first = float(schedule.time_at_sigma(8.0))
    return float(schedule.sigma(first)) * normals(rows, 2), RhoGrid().times(schedule, 12, first)


@every_schedule
@both_rules
@pytest.mark.parametrize(
    "churn",
    [NO_CHURN, Churn(0.0, noise=1.5), Churn(10.0, low=9.0), Churn(10.0, high=1e-4)],
    ids=["none", "amount 0", "all below", "all above"],
)
def test_without_churn_it_is_the_solver_bit_for_bit(schedule: Schedule, rule: Rule, churn: Churn) -> None:
    mixture = three_gaussians(schedule)
    x, times = start_of(schedule)
    assert torch.equal(solve_with_churn(rule, churn, mixture, x, times, PLACE), solve(rule, mixture, x, times))


def test_it_is_algorithm_2() -> None:
    """Karras et al. 2022, Algorithm 2, transcribed; D is a network's estimate."""
    schedule = KarrasVE(0.002, 80.0)
    denoiser = tiny_denoiser(schedule).double()
    steps, churn = 18, Churn(40.0, 0.05, 50.0, 1.003)
    grid = RhoGrid().times(schedule, steps)
    start = 80.0 * normals(4, 2)

    def estimate(x: Tensor, sigma: float) -> Tensor:
        return denoiser(x, torch.tensor(sigma / 80.0, dtype=torch.float64))

    x, lifted = start, 0
    for t, t_next in zip((80.0 * grid[:-1]).tolist(), (80.0 * grid[1:]).tolist(), strict=True):
        gamma = min(churn.amount / steps, math.sqrt(2) - 1) if churn.low <= t <= churn.high else 0.0
        lifted += gamma > 0
        eps = churn.noise * PLACE.normal(f"churn-{t / 80.0:.12g}", (4, 2)).double()
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * eps
        d = (x_hat - estimate(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next > 0:
            x = x_hat + (t_next - t_hat) * (0.5 * d + 0.5 * (x - estimate(x, t_next)) / t_next)
    assert 5 < lifted < steps
    with torch.no_grad():
        torch.testing.assert_close(solve_with_churn(HEUN, churn, denoiser, start, grid, PLACE), x, rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_marginal_variance_of_a_gaussian_is_right_to_the_order_of_a_step(schedule: Schedule) -> None:
    """Every draw adds what the solver takes away, up to the solver's own error, which twice as many
    steps halve.
    """
    gaussian = GaussianMixture(schedule, torch.ones(1), torch.zeros(1, 1), torch.tensor([0.49]))
    rows = 40_000
    first, last = float(schedule.time_at_sigma(4.0)), float(schedule.time_at_sigma(0.2))
    exact = [float(schedule.alpha(t) ** 2 * 0.49 + schedule.sigma(t) ** 2) for t in (first, last)]
    start = math.sqrt(exact[0]) * torch.randn(rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = start * math.sqrt(exact[0] / float(start.square().mean()))
    errors = []
    for steps in (8, 16, 32):
        times = RhoGrid().between(schedule, first, last, steps + 1)
        ends = solve_with_churn(EULER, Churn(2.0), gaussian, start, times, PLACE)
        errors.append(abs(float(ends.square().mean()) / exact[1] - 1))
    assert errors[0] > 0.02
    assert errors[1] < 0.65 * errors[0]
    assert errors[2] < 0.4 * errors[0]
    # The second-order rule is far closer, so that what is left above is the solver's, not the
    # noise's.
    ends = solve_with_churn(HEUN, Churn(2.0), gaussian, start, times, PLACE)
    assert float(ends.square().mean()) == pytest.approx(exact[1], rel=0.025)
    doubled = solve_with_churn(HEUN, Churn(2.0, noise=1.5), gaussian, start, times, PLACE)
    assert float(doubled.square().mean()) > 1.2 * exact[1]


@both_rules
def test_noise_is_a_function_of_place_and_sample(rule: Rule) -> None:
    mixture = three_gaussians(KarrasVE())
    x, times = start_of(KarrasVE())
    churn = Churn(5.0)
    whole = solve_with_churn(rule, churn, mixture, x, times, PLACE)
    state = torch.get_rng_state()
    assert torch.equal(whole, solve_with_churn(rule, churn, mixture, x, times, PLACE))
    assert torch.equal(state, torch.get_rng_state())
    parts = torch.cat([solve_with_churn(rule, churn, mixture, x[i : i + 2], times, PLACE, i) for i in (0, 2, 4)])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(whole, solve_with_churn(rule, churn, mixture, x, times, Key(4, "churn")), atol=1e-3)


@pytest.mark.parametrize(("steps", "evaluations"), [(6, 11), (8, 15), (40, 79), (256, 511)])
def test_it_takes_the_evaluations_that_the_papers_tables_have(steps: int, evaluations: int) -> None:
    denoiser = tiny_denoiser()
    sampler = TeacherSampler(
        -1.0, 1.0, denoiser, HEUN, RhoGrid(), Classes(), Churn(amount=40.0, low=0.05, high=50.0, noise=1.003)
    )
    with cost.metered() as meter:
        sampler(3, steps=steps)
    assert meter.evaluations == 3 * evaluations == 3 * HEUN.evaluations(steps)


def test_networks_are_not_called_above_their_highest_level_nor_pure_noise_noised() -> None:
    schedule = KarrasVE(0.002, 80.0)
    highest = torch.tensor(1.0, dtype=torch.float64)
    assert float(Churn(1e6).lifted_time(schedule, highest, 1)) == 1.0
    below = Churn(1e6).lifted_time(schedule, highest / 2, 1)
    assert float(below) == pytest.approx(0.5 * math.sqrt(2))
    flow = three_gaussians(RectifiedFlow())
    times = UniformGrid().times(flow.schedule, 2)
    assert float(Churn(1e6).lifted_time(flow.schedule, times[0], 2)) == 1.0
    assert bool(solve_with_churn(HEUN, Churn(1.0), flow, normals(3, 2), times, PLACE).isfinite().all())


def test_a_teachers_samples_do_not_depend_on_how_many_are_drawn() -> None:
    mixture = three_gaussians(KarrasVE())
    sampler = TeacherSampler(
        -9.0, 9.0, mixture, HEUN, RhoGrid(), Classes(mixture.classes), Churn(amount=5.0, from_steps=4)
    )
    torch.testing.assert_close(sampler(6, 1, 0, 5)[:2], sampler(2, 1, 0, 5))
    torch.testing.assert_close(sampler.draw(PLACE, 5, None, 5)[3:], sampler.draw(PLACE, 2, None, 5, 3))
    plain = TeacherSampler(-9.0, 9.0, sampler.denoiser, HEUN, RhoGrid(), Classes(mixture.classes))
    assert torch.equal(sampler(3, steps=3), plain(3, steps=3))
    assert not torch.equal(sampler(3, steps=4), plain(3, steps=4))


def test_what_cannot_be_is_refused() -> None:
    x, times = start_of(KarrasVE())
    with pytest.raises(UserError, match="'dpm2m' extrapolates from its last step"):
        solve_with_churn(DPM2M, Churn(1.0), three_gaussians(KarrasVE()), x, times, PLACE)
    for values in ((-1.0, 0.0, 1.0, 1.0), (1.0, 2.0, 1.0, 1.0), (1.0, 0.0, 1.0, 0.0), (math.nan, 0.0, 1.0, 1.0)):
        with pytest.raises(UserError, match=r"Churn: '(amount|low|high|noise)' is|'low' is"):
            Churn(*values)
    with pytest.raises(ValidationError, match="'churn' goes with the rules euler and heun only"):
        SamplerChoice(rule="dpm2m", churn=Churn(amount=1.0))
    with pytest.raises(UserError, match="must not lie above"):
        Churn(amount=1.0, low=2.0, high=1.0)
    assert Churn(amount=1.0, from_steps=5).at(4) is NO_CHURN
    assert Churn(amount=1.0, from_steps=5).at(5) == Churn(1.0, from_steps=5)
