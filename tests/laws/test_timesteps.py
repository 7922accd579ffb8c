"""Laws of grids of timesteps: diffusers' spacings, nesting, the samples of its LCM scheduler."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, three_gaussians
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule, ZeroSNRVP
from fewstep.solvers import EULER, Solver, solve
from fewstep.solvers.sampling import Sampling, grids_by_name
from fewstep.states import Prior
from fewstep.times import Grid, RhoGrid, UniformGrid, nested_times
from fewstep.timesteps import DiscreteGrid, LCMGrid, LeadingGrid, TimestepsGrid, TrailingGrid

SETTINGS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP = DiscreteVP("scaled_linear", beta_start=0.00085, beta_end=0.012)
LISTED = (999, 749, 499, 249)
NESTED: dict[str, DiscreteGrid] = {"timesteps": TimestepsGrid(LISTED), "trailing": TrailingGrid(), "lcm": LCMGrid()}
every_nested = pytest.mark.parametrize("grid", NESTED.values(), ids=NESTED.keys())
every_discrete = pytest.mark.parametrize("grid", [*NESTED.values(), LeadingGrid(), LeadingGrid(1)])


def timesteps_of(times: Tensor, schedule: Schedule = VP) -> list[int]:
    """The timesteps whose times these are, the last of which is 0."""
    assert float(times[-1]) == 0.0
    found = (times[:-1] * schedule.timesteps).round().long() - 1
    assert times[:-1].tolist() == [schedule.time_at_timestep(each) for each in found.tolist()]
    return found.tolist()


# Where they stand


def test_a_timestep_is_its_published_alpha() -> None:
    schedulers = pytest.importorskip("diffusers")
    published = schedulers.DDPMScheduler(**SETTINGS).alphas_cumprod
    for timestep in (0, 1, 399, 500, 998, 999):
        assert float(VP.alpha(VP.time_at_timestep(timestep))) ** 2 == pytest.approx(
            float(published[timestep]), rel=1e-5
        )
    assert (VP.timesteps, ZeroSNRVP(steps=20).timesteps, KarrasVE().timesteps, RectifiedFlow().timesteps) == (
        *(1000, 20),
        *(0, 0),
    )


@pytest.mark.parametrize("timestep", [-1, 1000, 10**9])
def test_what_is_no_timestep_has_no_time(timestep: int) -> None:
    with pytest.raises(
        UserError, match=rf"timestep {timestep} is none of the 'discrete-vp' schedule's, which are 0 to 999"
    ):
        VP.time_at_timestep(timestep)
    with pytest.raises(UserError, match="a 'karras-ve' schedule has no timesteps"):
        KarrasVE().time_at_timestep(399)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 20, 25, 30, 32, 40, 49, 50])
def test_spacings_are_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    for spacing, grid, offset in (
        ("trailing", TrailingGrid(), 0),
        ("leading", LeadingGrid(), 0),
        ("leading", LeadingGrid(1), 1),
    ):
        theirs = diffusers.DDIMScheduler(**SETTINGS, timestep_spacing=spacing, steps_offset=offset)
        theirs.set_timesteps(steps)
        assert timesteps_of(grid.times(VP, steps)) == theirs.timesteps.tolist()
    theirs = diffusers.LCMScheduler(**SETTINGS)
    theirs.set_timesteps(steps)
    assert timesteps_of(LCMGrid().times(VP, steps)) == theirs.timesteps.tolist()


def test_spacings_of_other_lengths_and_other_first_timesteps() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.LCMScheduler(**SETTINGS, original_inference_steps=25)
    theirs.set_timesteps(4)
    assert timesteps_of(LCMGrid(25).times(VP, 4)) == theirs.timesteps.tolist()
    # As with less than full strength: the points from there down.
    theirs = diffusers.LCMScheduler(**SETTINGS)
    theirs.set_timesteps(4, strength=0.4)
    assert timesteps_of(nested_times(LCMGrid(), VP, 0.4, 4)) == theirs.timesteps.tolist()
    assert timesteps_of(LCMGrid().times(VP, 4)) == [999, 759, 499, 259]
    assert timesteps_of(nested_times(TrailingGrid(), VP, 0.4, 4)) == [399, 299, 199, 99]
    small = DiscreteVP(steps=20)
    assert timesteps_of(TrailingGrid().times(small, 8), small) == [19, 17, 14, 11, 9, 7, 4, 1]


@every_nested
def test_half_the_steps_are_every_second_timestep(grid: DiscreteGrid) -> None:
    for first in (1.0,) if isinstance(grid, TimestepsGrid) else (1.0, 0.8):
        for steps in (1, 2, 4, 8, 16):
            fine, coarse = (nested_times(grid, VP, first, count) for count in (2 * steps, steps))
            assert torch.equal(fine[::2], coarse)
            assert float(coarse[0]) == first
            assert bool((fine.diff() < 0).all())


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 749, 499, 240]),
        (8, [999, 874, 749, 624, 499, 369, 240, 119]),
    ],
)
def test_a_list_is_itself_every_so_many_of_it_or_evenly_between(steps: int, expected: list[int]) -> None:
    grid = TimestepsGrid((999, 749, 499, 240))
    assert timesteps_of(nested_times(grid, VP, 1.0, steps)) == expected
    assert timesteps_of(grid.times(VP, steps)) == expected


@pytest.mark.parametrize(
    ("grid", "first", "steps", "sentence"),
    [
        (TimestepsGrid(LISTED), 1.0, 3, "has no 3 steps: it lists 4, of which a divisor of 4 takes every so many"),
        (TimestepsGrid(LISTED), 1.0, 6, "has no 6 steps"),
        (TimestepsGrid(LISTED), 0.4, 4, "begins at timestep 999, and the samples at 399"),
        (TimestepsGrid((1000, 9)), 1.0, 2, "lists timestep 1000, and the schedule's are 0 to 999"),
        (TimestepsGrid((999, 998)), 1.0, 4, "too few timesteps between those that it lists"),
        (TrailingGrid(), 0.004, 5, "there are 4 timesteps"),
        (TrailingGrid(), 0.4005, 2, "lies between two; begin at timestep"),
        (LeadingGrid(), 1.0, 4, "begin at timestep 750, and the samples at 999"),
        (LeadingGrid(900), 1.0, 4, "there are 1000 timesteps, from 900 on"),
        (LCMGrid(), 1.0, 51, "it has 50 points from timestep 999 on"),
        (LCMGrid(), 0.4, 21, "it has 20 points from timestep 399 on"),
        (LCMGrid(), 0.41, 2, "begin at timestep 409, which is none of its 50 points 999, 979, 959, ..., 39, 19"),
        (LCMGrid(2000), 1.0, 2, "there are 1000 timesteps, and it has 2000 points"),
    ],
)
def test_steps_that_a_grid_has_not_are_refused(grid: Grid, first: float, steps: int, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        nested_times(grid, VP, first, steps)
    said = str(caught.value)
    assert sentence in said
    assert said.endswith(".")
    assert f"'{grid.describe()['kind']}'" in said


@every_discrete
def test_a_schedule_without_timesteps_is_refused(grid: DiscreteGrid) -> None:
    for schedule in (KarrasVE(), RectifiedFlow()):
        for call in (
            lambda s=schedule: nested_times(grid, s, 0.5, 2),
            lambda s=schedule: grid.times(s, 2),
            lambda s=schedule: grid.between(s, 0.5, 0.1, 2),
        ):
            with pytest.raises(UserError, match=f"which a '{schedule.describe()['kind']}' schedule has not"):
                call()


@every_discrete
def test_between_two_times_are_evenly_spaced_timesteps_with_exact_ends(grid: DiscreteGrid) -> None:
    times = grid.between(VP, 0.7993, 0.2, 7)
    assert (float(times[0]), float(times[-1])) == (0.7993, 0.2)
    assert bool((times.diff() < 0).all())
    inner = times[1:-1] * 1000
    assert float((inner - inner.round()).abs().max()) < 1e-9
    assert float((inner.diff() + 99.9).abs().max()) < 1.5
    assert grid.between(VP, 0.8, 0.2, 1).tolist() == [0.8]
    assert float(grid.times(VP, 3, 0.3)[-1]) == 0.0
    with pytest.raises(UserError, match="take fewer steps there"):
        grid.between(VP, 0.012, 0.01, 5)


@every_nested
def test_a_teacher_within_a_step_stands_where_twice_as_many_steps_do(grid: DiscreteGrid) -> None:
    """To one timestep, since a half is rounded there and here; of a list exactly, as of other
    grids.
    """
    grid = TimestepsGrid((999, 700, 420, 100)) if isinstance(grid, TimestepsGrid) else grid
    fine, coarse = (nested_times(grid, VP, 1.0, steps) for steps in (4, 2))
    for k, (t, s) in enumerate(pairwise(coarse)):
        times = Solver(one_gaussian(VP), 2, grid=grid)._times(VP, float(t), float(s))
        assert torch.equal(times[[0, -1]], coarse[k : k + 2])
        far = abs(float(times[1] - fine[2 * k + 1]))
        assert far == 0 if isinstance(grid, TimestepsGrid) else far <= (0.02 if isinstance(grid, LCMGrid) else 0.0011)


@pytest.mark.parametrize("at", [(), (5, 5), (5, 6), (-1,), (100_000,), (1.5,), tuple(range(20_000, 0, -1))])
def test_what_is_no_falling_list_of_timesteps_is_refused(at: Any) -> None:
    with pytest.raises(UserError, match=r"'at'"):
        TimestepsGrid(at)


def test_only_a_list_needs_more_than_its_name() -> None:
    assert set(Grid.family()) - set(grids_by_name()) == {"timesteps"}
    assert {"trailing", "leading", "lcm", "rho", "log-snr", "uniform"} <= set(grids_by_name())


# Samples


def samples(model: Denoiser, grid: Grid, jump: str, steps: int = 4, first: float = 1.0) -> Tensor:
    schedule = model.schedule
    sampling = Sampling(jump, grid, steps)
    times = sampling.times(schedule, first)
    assert torch.equal(sampling.holding(schedule, first).times(schedule, first), times)
    return sampling.sample(model, Key(3, "x", 5), 7, (normals(30, 2), Condition()), schedule, times)


@pytest.mark.parametrize("jump", ["renoise", "ddim"])
def test_a_list_of_another_grids_timesteps_gives_its_samples_bit_for_bit(jump: str) -> None:
    teacher = three_gaussians(VP)
    assert torch.equal(samples(teacher, TimestepsGrid(LISTED), jump), samples(teacher, TrailingGrid(), jump))
    lcm = TimestepsGrid((999, 759, 499, 259))
    assert torch.equal(samples(teacher, lcm, jump), samples(teacher, LCMGrid(), jump))
    assert not torch.equal(samples(teacher, lcm, jump), samples(teacher, TrailingGrid(), jump))
    # The grid of earlier versions, where its times are timesteps' to the last bit.
    coarse = three_gaussians(DiscreteVP(steps=1024))
    uniform = samples(coarse, UniformGrid(), jump, 4, 513 / 1024)
    listed = TimestepsGrid((512, 384, 256, 128))
    assert torch.equal(samples(coarse, listed, jump, 4, 513 / 1024), uniform)


class _Emitting:
    """The noise that a denoiser's estimate means, as a network of diffusers emits it."""

    def __init__(self, model: Denoiser):
        self.model = model

    def __call__(self, x: Tensor, timestep: int) -> Tensor:
        t = torch.tensor(self.model.schedule.time_at_timestep(timestep), dtype=torch.float64)
        alpha, sigma = (float(value) for value in (self.model.schedule.alpha(t), self.model.schedule.sigma(t)))
        return (x - alpha * self.model(x, t, Condition())) / sigma


def of_diffusers(model: Denoiser, timesteps: list[int], x: Tensor, noises: list[Tensor], monkeypatch: Any) -> Tensor:
    """Samples of ``LCMScheduler``, with these noises in the place of its own."""
    from diffusers.schedulers import scheduling_lcm

    drawn = iter(noises)
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(drawn))
    scheduler = scheduling_lcm.LCMScheduler(**SETTINGS, prediction_type="epsilon", clip_sample=False)
    scheduler.set_timesteps(timesteps=timesteps)
    emitted = _Emitting(model)
    for timestep in scheduler.timesteps.tolist():
        found = scheduler.step(emitted(x, timestep), timestep, x)
        x = found.prev_sample
    return found.denoised


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("timesteps", [[999, 749, 499, 249], [999, 759, 499, 259], [399], [399, 199]])
def test_renoised_samples_along_timesteps_are_lcms(timesteps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same start and the same noises: DMD2's four steps and DisBack's one, as published."""
    pytest.importorskip("diffusers")
    teacher, first = three_gaussians(VP), VP.time_at_timestep(timesteps[0])
    prior = Prior(VP, (2,), first)
    assert prior.std == 1.0
    key, sampling = Key(3, "x", 5), Sampling("renoise", TimestepsGrid(tuple(timesteps)), len(timesteps))
    start = prior.at(key, "prior", 40, None)
    times = sampling.times(VP, first)
    ours = sampling.sample(teacher, key, 0, (start.x, Condition()), VP, times)
    noises = [key.normal(f"renoise-{time:.12g}", (40, 2)) for time in times[1:-1].tolist()]
    theirs = of_diffusers(teacher, timesteps, start.x, noises, monkeypatch)
    torch.testing.assert_close(ours.to(theirs), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [TrailingGrid(), LeadingGrid(1), TimestepsGrid(LISTED)])
def test_a_teachers_sample_along_timesteps_is_ddims(grid: DiscreteGrid) -> None:
    diffusers = pytest.importorskip("diffusers")
    teacher, x = three_gaussians(VP), normals(40, 2)
    scheduler = diffusers.DDIMScheduler(
        **SETTINGS, timestep_spacing="leading" if isinstance(grid, LeadingGrid) else "trailing", steps_offset=1
    )
    scheduler.config.clip_sample = False
    scheduler.set_timesteps(4)
    emitted, theirs = _Emitting(teacher), x
    for timestep in scheduler.timesteps.tolist():
        theirs = scheduler.step(emitted(theirs, timestep), timestep, theirs).prev_sample
    ours = solve(EULER, teacher, x, grid.times(VP, 4), Condition())
    torch.testing.assert_close(ours.to(theirs), theirs, rtol=1e-4, atol=1e-5)


# Times that a file holds


def test_held_times_are_the_samples_and_others_are_the_grids() -> None:
    sampling = Sampling("renoise", RhoGrid(), 2, held=(0.9, 0.3))
    assert sampling.times(VP, 0.9).tolist() == [0.9, 0.3, 0.0]
    assert sampling.times(VP, 0.9, 2).tolist() == [0.9, 0.3, 0.0]
    # Other steps, or from elsewhere: the grid's.
    assert torch.equal(sampling.times(VP, 0.9, 3), nested_times(RhoGrid(), VP, 0.9, 3))
    assert torch.equal(sampling.times(VP, 0.8), nested_times(RhoGrid(), VP, 0.8, 2))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_one_step_needs_no_grid_and_holds_its_only_time(schedule: Schedule) -> None:
    """Also where a grid in sigma / alpha has no first time."""
    sampling = Sampling().holding(schedule, schedule.t_max)
    assert sampling.held == (schedule.t_max,)
    assert sampling.times(schedule, schedule.t_max).tolist() == [schedule.t_max, 0.0]
