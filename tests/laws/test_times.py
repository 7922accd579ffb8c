"""Laws of time grids and time distributions."""

from __future__ import annotations

import math

import pytest
import torch
from law_kit import SCHEDULES

from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import KarrasVE, RectifiedFlow, Schedule
from fewstep.times import (
    Grid,
    LateTimes,
    LogNormalTimes,
    LogSNRGrid,
    RhoGrid,
    RhoTimes,
    TimeDistribution,
    UniformGrid,
    UniformTimes,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
GRIDS: dict[str, Grid] = {"rho": RhoGrid(), "rho-3": RhoGrid(3.0), "log-snr": LogSNRGrid(), "uniform": UniformGrid()}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
DISTRIBUTIONS: dict[str, TimeDistribution] = {
    "uniform": UniformTimes(),
    "uniform-dmd": UniformTimes(0.02, 0.98),
    "log-normal": LogNormalTimes(),
    "late": LateTimes(LogNormalTimes(), 0.05),
    "rho": RhoTimes(low=0.05, high=10.0),
}
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
MIDPOINTS = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


def _first(schedule: Schedule) -> float:
    return 0.97 if float(schedule.alpha(schedule.t_max)) == 0 else schedule.t_max


@every_schedule
@every_grid
@pytest.mark.parametrize("steps", [1, 2, 3, 18, 50])
def test_sampling_grids_fall_between_exact_ends(schedule: Schedule, grid: Grid, steps: int) -> None:
    times = grid.times(schedule, steps, _first(schedule))
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert bool((times.diff() < 0).all())
    assert float(times[0]) == _first(schedule)
    assert float(times[-1]) == 0.0
    if steps > 1:
        assert float(times[-2]) == schedule.t_min


@every_schedule
@every_grid
def test_grids_between_two_times_have_exactly_those_ends(schedule: Schedule, grid: Grid) -> None:
    times = grid.between(schedule, 0.83, 0.21, 9)
    assert times.shape == (9,)
    assert (float(times[0]), float(times[-1])) == (0.83, 0.21)
    assert bool((times.diff() < 0).all())
    assert grid.between(schedule, 0.83, 0.21, 1).tolist() == [0.83]


@pytest.mark.parametrize("exponent", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("steps", [2, 18, 40])
def test_rho_grid_is_karras_equation_5(exponent: float, steps: int) -> None:
    schedule = KarrasVE(0.002, 80.0)
    sigmas = [
        (80 ** (1 / exponent) + i / (steps - 1) * (0.002 ** (1 / exponent) - 80 ** (1 / exponent))) ** exponent
        for i in range(steps)
    ]
    ours = schedule.sigma(RhoGrid(exponent).times(schedule, steps))
    torch.testing.assert_close(ours, torch.tensor([*sigmas, 0.0], dtype=torch.float64), rtol=1e-11, atol=0)


@every_schedule
def test_grids_are_uniform_in_what_they_say(schedule: Schedule) -> None:
    first, last = _first(schedule), schedule.t_min
    for grid, measure in (
        (RhoGrid(7.0), lambda t: schedule.rho(t) ** (1 / 7)),
        (LogSNRGrid(), schedule.log_snr),
        (UniformGrid(), lambda t: t),
    ):
        gaps = measure(grid.between(schedule, first, last, 33)).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(32), rtol=1e-8, atol=0)


@pytest.mark.parametrize("grid", [RhoGrid(), LogSNRGrid()], ids=["rho", "log-snr"])
def test_grids_of_levels_refuse_pure_noise(grid: Grid) -> None:
    with pytest.raises(UserError, match="alpha is 0"):
        grid.times(RectifiedFlow(), 4)


@every_grid
def test_a_grid_needs_a_step(grid: Grid) -> None:
    with pytest.raises(UserError, match="at least 1 step"):
        grid.times(KarrasVE(), 0)


@every_schedule
@every_distribution
def test_draws_stay_in_the_trained_range_and_rise_with_u(schedule: Schedule, distribution: TimeDistribution) -> None:
    u = torch.cat(
        [torch.zeros(1, dtype=torch.float64), MIDPOINTS[::50], torch.tensor([1 - 2.0**-53], dtype=torch.float64)]
    )
    t = distribution.quantile(schedule, u)
    assert t.dtype == torch.float64
    assert float(t.min()) >= schedule.t_min
    assert float(t.max()) <= schedule.t_max
    assert bool((t.diff() >= 0).all())


@every_schedule
@every_distribution
def test_a_draw_is_a_function_of_the_samples_index(schedule: Schedule, distribution: TimeDistribution) -> None:
    key = Key(3, "stage", 7)
    whole = distribution.draw(schedule, key, "time", 64)
    halves = [distribution.draw(schedule, key, "time", 32, start) for start in (0, 32)]
    assert torch.equal(whole, torch.cat(halves))
    assert torch.equal(whole, distribution.quantile(schedule, key.uniform("time", 64)))


@every_schedule
def test_uniform_times_are_uniform_between_their_bounds(schedule: Schedule) -> None:
    for low, high in ((0.02, 0.98), (0.3, 0.3), (None, None), (0.0, 1.0)):
        least = schedule.t_min if low is None else max(low, schedule.t_min)
        most = schedule.t_max if high is None else min(high, schedule.t_max)
        t = UniformTimes(low, high).quantile(schedule, MIDPOINTS)
        torch.testing.assert_close(t, least + (most - least) * MIDPOINTS, rtol=1e-14, atol=1e-15)
        assert least <= float(t.min())
        assert float(t.max()) <= most


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (-0.4, 1.0), (0.3, 0.5)])
def test_log_normal_levels_have_the_mean_and_std_asked_for(mean: float, std: float) -> None:
    schedule = KarrasVE(1e-5, 1e5)
    log_rho = schedule.rho(LogNormalTimes(mean, std).quantile(schedule, MIDPOINTS)).log()
    assert float(log_rho.mean()) == pytest.approx(mean, abs=1e-6)
    assert float(log_rho.std()) == pytest.approx(std, rel=1e-3)


@every_schedule
def test_log_normal_quantiles_are_the_normal_ones_up_to_the_clip(schedule: Schedule) -> None:
    from scipy.stats import norm

    t = LogNormalTimes(-1.2, 1.2).quantile(schedule, MIDPOINTS[::97])
    expected = -1.2 + 1.2 * torch.from_numpy(norm.ppf(MIDPOINTS[::97].numpy()))
    inside = (t > schedule.t_min) & (t < schedule.t_max)
    assert float(inside.double().mean()) > 0.95
    torch.testing.assert_close(schedule.rho(t[inside]).log(), expected[inside], rtol=0, atol=1e-9)
    least, most = (float(schedule.rho(end).log()) for end in (schedule.t_min, schedule.t_max))
    assert bool(((expected[~inside] <= least) | (expected[~inside] >= most)).all())


@every_schedule
def test_rho_times_are_the_rho_grid_as_a_distribution(schedule: Schedule) -> None:
    first, last = _first(schedule), schedule.t_min
    grid = RhoGrid(7.0).between(schedule, first, last, 101)
    drawn = RhoTimes(7.0, float(schedule.rho(last)), float(schedule.rho(first))).quantile(
        schedule, torch.linspace(1, 0, 101, dtype=torch.float64)
    )
    torch.testing.assert_close(drawn, grid, rtol=1e-9, atol=0)


def test_rho_times_refuse_pure_noise() -> None:
    """rho is infinite at the flow's end, so every draw would be that end; a bound makes it
    finite.
    """
    with pytest.raises(UserError, match="alpha is 0"):
        RhoTimes().quantile(RectifiedFlow(), MIDPOINTS[:4])
    t = RhoTimes(high=10.0).quantile(RectifiedFlow(), MIDPOINTS)
    assert float(t.max()) == pytest.approx(10 / 11, rel=1e-3)
    assert math.isfinite(float(t.sum()))
