"""Laws of states on trajectories, of mixtures of sources, and of what is aggregated: degenerate
cases are the simpler thing bit for bit, marginals have their closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, three_gaussians, tiny_denoiser
from torch import Tensor

from fewstep.condition import Classes, Condition
from fewstep.data import InMemory
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.resumable import find_resumable
from fewstep.schedule import DiscreteVP, KarrasVE, Schedule
from fewstep.solvers import EULER, HEUN, FlowMap, Renoise, Solver, solve
from fewstep.states import (
    Alternate,
    Constant,
    Dagger,
    ForwardDiffusion,
    Generated,
    Linear,
    Mixture,
    OpenRollout,
    Pairs,
    PerBatch,
    Prior,
    RandomRollout,
    Rollout,
    Started,
    State,
    States,
    Step,
    Weights,
    WithGuidance,
    write_pairs,
)
from fewstep.system.files import write_tensors
from fewstep.times import Grid, GridTimes, LogSNRGrid, RhoGrid, UniformGrid, UniformTimes, nested_times

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
GRIDS: dict[str, Grid] = {"rho": RhoGrid(), "rho-3": RhoGrid(3.0), "log-snr": LogSNRGrid(), "uniform": UniformGrid()}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
VE = KarrasVE()
DATA = InMemory(normals(50, 2, dtype=torch.float32), torch.arange(50) % 3, 3)
TIMES = (1.0, 0.3, 0.1, 0.02, 0.0)
PLACE = Key(3, "stage", 5)


def _prior(schedule: Schedule = VE, classes: int = 3) -> Prior:
    return Prior(schedule, (2,), 1.0, conditions=Classes(classes))


def _data() -> ForwardDiffusion:
    return ForwardDiffusion(DATA, VE, UniformTimes())


def _student(seed: int = 0) -> Renoise:
    return Renoise(tiny_denoiser(VE, 3, seed), VE, Key(99, "elsewhere"))


def _same(ours: State, theirs: State, without: tuple[str, ...] = ()) -> None:
    a, b = ({k: v for k, v in state.tensors().items() if k not in without} for state in (ours, theirs))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        assert torch.equal(value, b[name]), name


def _first(schedule: Schedule) -> float:
    return 0.97 if float(schedule.alpha(schedule.t_max)) == 0 else schedule.t_max


# Times


@every_schedule
@every_grid
@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_the_grid_of_half_as_many_steps_is_every_second_point(schedule: Schedule, grid: Grid, steps: int) -> None:
    fine, coarse = (nested_times(grid, schedule, _first(schedule), count) for count in (2 * steps, steps))
    assert fine.shape == (2 * steps + 1,)
    assert fine.dtype == torch.float64
    torch.testing.assert_close(fine[::2], coarse, rtol=1e-12, atol=0)
    assert float(fine[0]) == _first(schedule)
    assert float(fine[-1]) == 0.0
    assert torch.equal(fine[:-1], grid.between(schedule, _first(schedule), schedule.t_min, 2 * steps + 1)[:-1])
    # A solver of two steps places its inner point where the fine grid has it.
    for k in range(steps - 1):
        middle = grid.between(schedule, float(coarse[k]), float(coarse[k + 1]), 3)[1]
        torch.testing.assert_close(middle, fine[2 * k + 1], rtol=1e-11, atol=0)


def test_a_nested_grid_needs_a_step() -> None:
    with pytest.raises(UserError, match="at least 1 step"):
        nested_times(RhoGrid(), VE, 1.0, 0)


def test_grid_times_are_uniform_over_the_given_ones_and_rise_with_u() -> None:
    times = (0.9, 0.5, 0.4, 0.01)
    t = GridTimes(times).quantile(VE, (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    assert bool((t.diff() >= 0).all())
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == sorted(times)
    assert counts.tolist() == [1000] * 4
    assert float(GridTimes(times).quantile(VE, torch.tensor([1 - 2.0**-53], dtype=torch.float64))) == 0.9
    for wrong in ((), (0.4, 0.5), (0.5, 0.5), (0.5, 0.0)):
        with pytest.raises(UserError, match="decreasing times above 0"):
            GridTimes(wrong)
    with pytest.raises(UserError, match="trained range"):
        GridTimes((0.5, 1e-9)).quantile(VE, torch.zeros(1))


# Weights


def test_weights_are_probabilities_that_move_linearly_and_stay() -> None:
    assert Constant({"a": 3, "b": 1}).at(7) == {"a": 0.75, "b": 0.25}
    moving = Linear({"a": 2, "b": 0}, {"a": 1, "b": 3}, steps=10)
    assert moving.at(0) == {"a": 1.0, "b": 0.0}
    assert moving.at(10) == moving.at(11) == moving.at(10**6) == {"a": 0.25, "b": 0.75}
    for step in range(11):
        assert moving.at(step)["b"] == pytest.approx(0.075 * step, abs=1e-15)
        assert sum(moving.at(step).values()) == pytest.approx(1, abs=1e-15)


def test_choices_are_cumulative_and_never_of_weight_0() -> None:
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    chosen = Constant({"a": 1, "b": 0, "c": 7, "d": 2, "e": 0}).choose(["e", "d", "c", "b", "a"], 0, u)
    assert torch.bincount(chosen, minlength=5).tolist() == [0, 200, 700, 0, 100]
    assert bool((chosen.diff() >= 0).all())
    # A bound belongs to what begins there; so does 0, behind a weight of 0.
    ends = Constant({"a": 0, "b": 1, "c": 1}).choose(["a", "b", "c"], 0, torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert ends.tolist() == [1, 2]
    thirds = Constant(dict.fromkeys("abcdefg", 0.1))
    assert int(thirds.choose(list("abcdefg"), 0, torch.tensor(1 - 2.0**-53, dtype=torch.float64))) == 6


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": math.nan}, {"a": math.inf}])
def test_what_is_no_weight_is_refused(weights: Mapping[str, float]) -> None:
    with pytest.raises(UserError, match="weights must be"):
        Constant(weights)
    with pytest.raises(UserError, match="weights must be"):
        Linear({"a": 1.0}, weights, 3)


def test_weights_over_other_names_are_refused() -> None:
    with pytest.raises(UserError, match="same names"):
        Linear({"a": 1}, {"b": 1}, 3)
    with pytest.raises(UserError, match="at least 1 step"):
        Linear({"a": 1}, {"a": 1}, 0)
    for build in (
        lambda w: Mixture({"a": _prior()}, w),
        lambda w: PerBatch({"a": _prior()}, w),
        lambda w: Alternate({"a": _student()}, w),
    ):
        with pytest.raises(UserError, match="the weights are over 'a', 'b', but the parts are 'a'"):
            build(Constant({"a": 1, "b": 0}))


# Rollouts


def test_a_rollout_is_a_hand_written_loop_and_each_sample_stops_for_itself() -> None:
    student, key = _student(), PLACE
    state = Step(key, 64).state(Rollout(student, _prior(), TIMES))
    x, labels = 80.0 * key.normal("prior", (64, 2)), key.integers("prior-class", 64, 3)
    passed = [x]
    for t, s in pairwise(TIMES[:4]):
        x0 = student.model(x, torch.full((64,), t, dtype=torch.float64), labels)
        x = x0 + 80.0 * s * key.normal(f"renoise-{s:.12g}", (64, 2))
        passed.append(x.detach())
    stop = torch.tensor([TIMES.index(t) for t in state.t.tolist()])
    assert stop.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(state.x, torch.stack(passed)[stop, torch.arange(64)])
    assert torch.equal(state.condition.labels, labels)
    assert state.t.dtype == torch.float64
    assert (state.x0, state.noise, state.origin, state.x.requires_grad) == (None, None, None, False)


def test_stops_are_uniform_over_those_given() -> None:
    rollout = Rollout(_student(), _prior(), TIMES, stops=(1, 3))
    t = Step(PLACE, 4000).state(rollout).t
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [0.02, 0.3]
    assert abs(int(counts[0]) - 2000) < 4 * math.sqrt(1000)
    _same(
        Step(PLACE, 8).state(Rollout(_student(), _prior(), TIMES, (0,))),
        Step(PLACE, 8).state(_prior()),
        without=("noise",),
    )


@dataclass(frozen=True, eq=False)
class _Counting(FlowMap):
    """Counts its jumps."""

    jumps: list[tuple[float, float]]

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        self.jumps.append((float(t), float(s)))
        return x


def test_the_whole_batch_goes_to_the_last_stop_however_few_rows_there_are() -> None:
    for seed in range(8):
        counting = _Counting([])
        Step(Key(seed), 1).state(Rollout(counting, _prior(), TIMES, (0, 2)))
        assert counting.jumps == [(1.0, 0.3), (0.3, 0.1)]


@pytest.mark.parametrize("name", ["karras-ve", "vp-linear"])
def test_the_exact_teachers_rollout_has_the_closed_marginal(name: str) -> None:
    """From N(0, sigma_T^2 I) the exact flow of one Gaussian gives mean a_s m - A a_T m and
    covariance A sigma_T^2 A', A = S_s S_T^-1.
    """
    schedule = KarrasVE(0.002, 8.0) if name == "karras-ve" else DiscreteVP()
    gaussian, rows, s = one_gaussian(schedule), 20_000, float(schedule.time_at_sigma(0.5))
    state = Step(PLACE, rows).state(Rollout(Solver(gaussian, 250), Prior(schedule, (2,), 1.0), (1.0, s), stops=(1,)))
    variances, vectors, mean = gaussian.variances[0], gaussian.vectors[0], gaussian.means[0]
    total = [schedule.alpha(t) ** 2 * variances + schedule.sigma(t) ** 2 for t in (s, 1.0)]
    carry = vectors @ torch.diag(torch.sqrt(total[0] / total[1])) @ vectors.T
    scale = float(schedule.sigma(1.0)) if name == "karras-ve" else 1.0
    expected = schedule.alpha(s) * mean - carry @ (schedule.alpha(1.0) * mean)
    # Four standard errors, and the solver's own error.
    torch.testing.assert_close(state.x.double().mean(0), expected, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(state.x.double().T), scale**2 * carry @ carry, rtol=0.04, atol=0.01)


def test_a_random_rollout_is_one_of_its_rollouts_and_all_come_up() -> None:
    student, prior = _student(), _prior()
    grids = {steps: tuple(nested_times(RhoGrid(), VE, 1.0, steps).tolist()) for steps in (3, 4, 5)}
    counts = dict.fromkeys(grids, 0)
    for step in range(120):
        key = Key(0, "s", step)
        steps = (3, 4, 5)[int(key.integers("rollout-steps", 1, 3))]
        counts[steps] += 1
        if step < 6:
            _same(
                Step(key, 8).state(RandomRollout(student, prior, grids)),
                Step(key, 8).state(Rollout(student, prior, grids[steps])),
            )
    assert min(counts.values()) > 20


def _each(state: State, stops: int) -> list[State]:
    """The states of trajectories by stop."""
    return [State.of({name: value[stop::stops] for name, value in state.tensors().items()}) for stop in range(stops)]


def test_all_states_of_trajectories_are_the_rollouts_at_each_stop() -> None:
    """Sample after sample; a trajectory is that of a rollout whose only stop lies there."""
    student, stops = _student(), (0, 2, 3)
    guided = WithGuidance(_prior(), 2, 14)
    state = Rollout(student, guided, TIMES, (3, 0, 2)).trajectories(Step(PLACE, 5))
    assert state.t.tolist() == [TIMES[stop] for stop in stops] * 5
    for stop, ours in zip(stops, _each(state, 3), strict=True):
        _same(ours, Step(PLACE, 5).state(Rollout(student, guided, TIMES, (stop,))), without=("noise",))
    assert (state.x0, state.noise, state.origin, state.x.requires_grad) == (None, None, None, False)


def test_all_states_are_those_of_the_rollout_that_is_chosen() -> None:
    student, prior = _student(), _prior()
    grids = {steps: tuple(nested_times(RhoGrid(), VE, 1.0, steps).tolist()) for steps in (2, 3)}
    rollouts = {"a": Rollout(student, prior, TIMES), "b": Rollout(student, prior, (1.0, 0.5))}
    seen = set()
    for step in range(12):
        key = Key(0, "s", step)
        drawn, batch = RandomRollout(student, prior, grids), PerBatch(rollouts, Constant({"a": 1, "b": 1}))
        _same(drawn.trajectories(Step(key, 4)), drawn.chosen(Step(key, 4)).trajectories(Step(key, 4)))
        index = batch.chosen(Step(key, 4))
        state = batch.trajectories(Step(key, 4))
        _same(state, rollouts["ab"[index]].trajectories(Step(key, 4)), without=("origin",))
        assert state.origin.tolist() == [index] * len(state.x)
        seen.add((len(drawn.trajectories(Step(key, 4)).x), len(state.x)))
    assert {len_ for len_, _ in seen} == {8, 12}
    assert {len_ for _, len_ in seen} == {16, 8}
    # The scale is the sample's, all along its trajectory.
    outer = WithGuidance(rollouts["a"], 2, 14).trajectories(Step(PLACE, 4))
    assert torch.equal(
        outer.condition.guidance,
        Step(PLACE, 4).state(WithGuidance(prior, 2, 14)).condition.guidance.repeat_interleave(4),
    )


def test_a_random_rollouts_stops_are_those_of_its_number_of_steps() -> None:
    grids = {steps: tuple(nested_times(RhoGrid(), VE, 1.0, steps).tolist()) for steps in (3, 4)}
    for step in range(8):
        key = Key(0, "s", step)
        state = Step(key, 6).state(RandomRollout(_student(), _prior(), grids, {3: (1,), 4: (2,)}))
        assert state.t.unique().tolist() in ([grids[3][1]], [grids[4][2]])
    with pytest.raises(UserError, match="stops must be"):
        RandomRollout(_student(), _prior(), grids, {4: (4,)})


def test_an_open_rollout_goes_along_the_times_above_its_stop_and_then_there() -> None:
    """Algorithm 1: the jumps, T_s from its distribution, the same whatever rows are drawn; the
    states as the student makes them.
    """
    counting, stops = _Counting([]), []
    for step in range(400):
        key = Key(0, "s", step)
        rollout = OpenRollout(counting, _prior(), TIMES[:4], VE, UniformTimes(high=0.5))
        counting.jumps.clear()
        state = rollout.draw(Step(key, 3, 2))
        stop = float(state.t[0])
        path = [*(t for t in TIMES[:4] if t > stop), stop]
        assert counting.jumps == list(pairwise(path))
        assert state.t.tolist() == [stop] * 3
        stops.append(stop)
    # Uniform between t_min and 0.5: the mean and the largest distance to the distribution function,
    # at four deviations.
    ordered = torch.tensor(sorted(stops))
    assert float(
        ((ordered - VE.t_min) / (0.5 - VE.t_min) - (torch.arange(400) + 0.5) / 400).abs().max()
    ) < 2 / math.sqrt(400)
    student, key = _student(), PLACE
    rollout = OpenRollout(student, _prior(), TIMES[:4], VE, UniformTimes(high=0.2))
    state, whole = rollout.draw(Step(key, 6)), rollout.trajectories(Step(key, 6))
    path = rollout.path(Step(key, 6))
    x, labels = 80.0 * key.normal("prior", (6, 2)), key.integers("prior-class", 6, 3)
    for index, ours in enumerate(_each(whole, len(path))):
        if index:
            x0 = student.model(x, torch.full((6,), path[index - 1], dtype=torch.float64), labels)
            x = (x0 + 80.0 * path[index] * key.normal(f"renoise-{path[index]:.12g}", (6, 2))).detach()
        assert torch.equal(ours.x, x)
        assert ours.t.tolist() == [path[index]] * 6
    assert torch.equal(state.x, x)


def test_an_open_rollout_stopped_at_its_first_time_is_the_prior() -> None:
    rollout = OpenRollout(_student(), _prior(), (1.0,), VE, GridTimes((1.0,)))
    _same(Step(PLACE, 5).state(rollout), Step(PLACE, 5).state(_prior()), without=("noise",))
    with pytest.raises(UserError, match="end above 0"):
        OpenRollout(_student(), _prior(), TIMES, VE, UniformTimes())
    with pytest.raises(UserError, match="not the prior's time"):
        OpenRollout(_student(), _prior(), (0.5, 0.1), VE, UniformTimes())


def test_a_rollout_hands_the_guidance_scale_to_its_map() -> None:
    class Keeps(_Counting):
        def __call__(
            self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
        ) -> Tensor:
            return condition.guidance[:, None].expand_as(x)

    state = Step(PLACE, 8).state(Rollout(Keeps([]), WithGuidance(_prior(), 2, 14), TIMES, (2,)))
    assert torch.equal(state.x[:, 0], state.condition.guidance)


@pytest.mark.parametrize(
    ("times", "stops", "message"),
    [
        ((0.9, 0.1), None, "not the prior's time"),
        ((1.0, 0.1, 0.1), None, "must decrease"),
        ((1.0, -0.1), None, "at least 0"),
        ((), None, "must decrease"),
        (TIMES, (4,), "stops must be"),
        (TIMES, (5,), "stops must be"),
        (TIMES, (-1,), "stops must be"),
        (TIMES, (1, 1), "stops must be"),
        (TIMES, (), "stops must be"),
    ],
)
def test_impossible_rollouts_are_refused(times: tuple[float, ...], stops: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rollout(_student(), _prior(), times, stops)


def test_other_impossible_trajectories_are_refused() -> None:
    with pytest.raises(UserError, match="starts at a Prior"):
        Rollout(_student(), _data(), TIMES)
    with pytest.raises(UserError, match="must end at 0"):
        Generated(_student(), _prior(), TIMES[:3])
    with pytest.raises(UserError, match="3 steps need 4 times"):
        RandomRollout(_student(), _prior(), {3: (1.0, 0.0)})
    with pytest.raises(UserError, match="at least one"):
        RandomRollout(_student(), _prior(), {})


def test_generated_states_are_the_ends_of_the_whole_trajectory() -> None:
    student = _student()
    state = Step(PLACE, 16).state(Generated(student, _prior(), TIMES))
    begin = Step(PLACE, 16).state(_prior())
    x, bound = begin.x, replace(student, key=PLACE)
    for t, s in pairwise(TIMES):
        x = bound(x, t, s, begin.condition).detach()
    assert torch.equal(state.x, x)
    assert torch.equal(state.x0, x)
    assert state.t.tolist() == [0.0] * 16
    assert torch.equal(state.condition.labels, begin.condition.labels)
    assert not state.x.requires_grad


# Flow maps bound to a place


def test_binding_replaces_a_renoised_maps_place_and_leaves_a_solver_alone() -> None:
    student, solver = _student(), Solver(three_gaussians(VE), 2)
    assert solver.at(PLACE, 3) is solver
    bound = student.at(PLACE, 3)
    assert (bound.model, bound.key, bound.start) == (student.model, PLACE, 3)
    assert student.key == Key(99, "elsewhere")


# Alternating


def test_alternating_with_weight_1_on_a_map_is_that_map() -> None:
    maps = {"student": _student(), "teacher": Solver(tiny_denoiser(VE, 3, 1), 2)}
    for name, flow_map in maps.items():
        mixed = Alternate(maps, Constant({**dict.fromkeys(maps, 0.0), name: 1.0}))
        _same(
            Step(PLACE, 8).state(Rollout(mixed, _prior(), TIMES)),
            Step(PLACE, 8).state(Rollout(flow_map, _prior(), TIMES)),
        )


@every_grid
@pytest.mark.parametrize("name", ["karras-ve", "vp-linear", "flow"])
def test_a_teachers_transition_is_two_exact_ddim_steps_of_the_fine_grid(name: str, grid: Grid) -> None:
    schedule = SCHEDULES[name]
    mixture = three_gaussians(schedule)
    maps = {"student": Solver(mixture, 1, EULER, grid), "teacher": Solver(mixture, 2, EULER, grid)}
    bound = Alternate(maps, Constant({"student": 0, "teacher": 1})).at(PLACE)
    fine, coarse = (nested_times(grid, schedule, _first(schedule), steps) for steps in (8, 4))
    x = float(schedule.prior_scale) * normals(6, 2)
    for k in range(3):
        t, s = float(coarse[k]), float(coarse[k + 1])
        assert torch.equal(bound(x, t, s), solve(EULER, mixture, x, grid.between(schedule, t, s, 3)))
        torch.testing.assert_close(
            bound(x, t, s), solve(EULER, mixture, x, fine[2 * k : 2 * k + 3]), rtol=1e-9, atol=1e-9
        )


def test_transitions_are_chosen_with_the_steps_weights_independently_for_the_whole_batch() -> None:
    maps = {"a": _Counting([]), "b": _Counting([])}
    mixed = Alternate(maps, Linear({"a": 1, "b": 0}, {"a": 0.2, "b": 0.8}, 1))
    for step in range(500):
        key = Key(0, "s", step)
        Step(key, 4).state(Rollout(mixed, _prior(), TIMES[:3], (2,)))
        names = [mixed.at(key).chosen(t, s) for t, s in ((1.0, 0.3), (0.3, 0.1))]
        assert names == [mixed.at(key, 7).chosen(t, s) for t, s in ((1.0, 0.3), (0.3, 0.1))]
        assert step or names == ["a", "a"]
    assert len(maps["a"].jumps) + len(maps["b"].jumps) == 1000
    assert len(maps["b"].jumps) == pytest.approx(0.8 * 998, abs=4 * math.sqrt(0.16 * 1000))
    second = [mixed.at(Key(0, "s", step)) for step in range(1, 500)]
    both = sum(m.chosen(1.0, 0.3) == "b" and m.chosen(0.3, 0.1) == "b" for m in second)
    assert both / 499 == pytest.approx(0.64, abs=4 * math.sqrt(0.64 * 0.36 / 499))


def test_an_alternating_map_without_a_place_is_refused() -> None:
    with pytest.raises(UserError, match="bind it"):
        Alternate({"a": _student()}, Constant({"a": 1}))(torch.zeros(1, 2), 1.0, 0.3)


# Mixtures


def _sources() -> dict[str, States]:
    return {
        "data": _data(),
        "student": Rollout(_student(), _prior(), TIMES),
        "teacher": Rollout(Solver(tiny_denoiser(VE, 3, 1), 2, HEUN), _prior(), TIMES),
    }


def test_a_mixture_of_weight_1_on_a_part_is_that_part() -> None:
    sources = _sources()
    for index, (name, source) in enumerate(sources.items()):
        for kind in (Mixture, PerBatch):
            state = Step(PLACE, 12).state(kind(sources, Constant({**dict.fromkeys(sources, 0.0), name: 2.0})))
            _same(state, Step(PLACE, 12).state(source), without=("origin",))
            assert state.origin.tolist() == [index] * 12


def test_a_mixtures_samples_are_its_sources_with_the_steps_frequencies() -> None:
    sources = _sources()
    weights = Linear({"data": 1, "student": 0, "teacher": 0}, {"data": 1, "student": 2, "teacher": 5}, 10)
    key = Key(1, "s", 10)
    state = Step(key, 4000).state(Mixture(sources, weights))
    torch.testing.assert_close(
        torch.bincount(state.origin).double() / 4000,
        torch.tensor([1, 2, 5]).double() / 8,
        rtol=0,
        atol=4 * math.sqrt(0.25 / 4000),
    )
    drawn = [Step(key, 4000).state(source) for source in sources.values()]
    rows = torch.arange(4000)
    assert torch.equal(state.x, torch.stack([part.x for part in drawn])[state.origin, rows])
    assert torch.equal(state.t, torch.stack([part.t for part in drawn])[state.origin, rows])
    assert torch.equal(
        state.condition.labels, torch.stack([part.condition.labels for part in drawn])[state.origin, rows]
    )
    assert (state.x0, state.noise) == (None, None)
    without = Step(key, 64).state(Mixture(sources, Constant({"data": 0, "student": 1, "teacher": 1})))
    assert without.origin.unique().tolist() == [1, 2]
    assert torch.equal(without.x, torch.stack([part.x[:64] for part in drawn])[without.origin, rows[:64]])
    # At step 0 only data have weight, and data know their x0.
    assert Step(key.at(0), 8).state(Mixture(sources, weights)).x0 is not None


def test_x0_and_noise_are_kept_where_all_sources_have_them() -> None:
    two = {"a": _data(), "b": ForwardDiffusion(DATA, VE, GridTimes((0.5, 0.2)))}
    state = Step(PLACE, 64).state(Mixture(two, Constant({"a": 1, "b": 1})))
    assert torch.equal(state.x, VE.add_noise(state.x0, state.t, state.noise))
    assert state.origin.unique().tolist() == [0, 1]
    assert bool((state.origin == torch.isin(state.t, torch.tensor([0.5, 0.2], dtype=torch.float64))).all())
    noises = Step(PLACE, 8).state(Mixture({"a": _data(), "b": _prior()}, Constant({"a": 1, "b": 1})))
    assert noises.noise is not None
    assert noises.x0 is None


class _Never(States):
    """Fails when drawn."""

    def draw(self, step: Step) -> State:
        raise AssertionError("a source of weight 0 was drawn")


def test_every_source_with_a_weight_is_drawn_even_for_one_row_and_no_other() -> None:
    for seed in range(8):
        jumps = {"a": _Counting([]), "b": _Counting([])}
        sources = {name: Rollout(jump, _prior(), TIMES[:2], (1,)) for name, jump in jumps.items()}
        Step(Key(seed), 1).state(Mixture({**sources, "c": _Never()}, Constant({"a": 1, "b": 1, "c": 0})))
        assert [len(jump.jumps) for jump in jumps.values()] == [1, 1]


def test_per_batch_takes_one_source_with_the_given_frequencies() -> None:
    sources: dict[str, States] = {"a": _prior(), "b": _data(), "c": _Never()}
    mixture = PerBatch(sources, Constant({"a": 0.3, "b": 0.7, "c": 0}))
    counts = [0, 0]
    for step in range(600):
        key = Key(2, "s", step)
        state = Step(key, 3).state(mixture)
        index = int(state.origin[0])
        assert state.origin.tolist() == [index] * 3
        counts[index] += 1
        if step < 5:
            _same(state, Step(key, 3).state([sources["a"], sources["b"]][index]), without=("origin",))
    assert counts[0] == pytest.approx(180, abs=4 * math.sqrt(600 * 0.21))


def test_a_mixture_within_a_mixture_chooses_for_itself() -> None:
    inner = Mixture({"a": _prior(), "b": WithClass(_prior())}, Constant({"a": 1, "b": 1}))
    outer = Mixture({"c": inner, "d": _prior()}, Constant({"c": 1, "d": 1}))
    step = Step(PLACE, 4000)
    chosen, within = step.state(outer).origin == 0, step.state(inner).origin == 1
    assert float(within[chosen].double().mean()) == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 2000))
    with pytest.raises(UserError, match="same names"):
        Mixture({"b": inner, "a": _prior()}, Constant({"a": 1, "b": 1}))


@dataclass(frozen=True)
class WithClass(States):
    """The same states under the class 0."""

    source: States

    def draw(self, step: Step) -> State:
        state = step.state(self.source)
        return replace(state, condition=Condition(labels=torch.zeros(step.rows, dtype=torch.int64)))


def test_sources_with_other_fields_or_shapes_are_refused() -> None:
    both = Constant({"a": 1, "b": 1})
    for other, field in (
        (_prior(classes=0), "labels"),
        (WithGuidance(_prior(), 1, 2), "guidance"),
        (Prior(VE, (3,), 1.0, conditions=Classes(3)), "x"),
    ):
        with pytest.raises(UserError, match=f"the sources 'a' and 'b' differ in {field};"):
            Step(PLACE, 4).state(Mixture({"a": _prior(), "b": other}, both))


# Guidance


def test_guidance_scales_are_uniform_between_their_bounds() -> None:
    source = _prior()
    state = Step(PLACE, 20_000).state(WithGuidance(source, 2, 14))
    w = state.condition.guidance
    assert w.shape == (20_000,)
    assert w.dtype == torch.float32
    assert (float(w.min()), float(w.max())) == (pytest.approx(2, abs=0.01), pytest.approx(14, abs=0.01))
    assert float(w.mean()) == pytest.approx(8, abs=4 * 12 / math.sqrt(12 * 20_000))
    assert float(w.std()) == pytest.approx(12 / math.sqrt(12), rel=0.02)
    _same(state, Step(PLACE, 20_000).state(source), without=("guidance",))
    assert Step(PLACE, 9).state(WithGuidance(source, 3.3, 3.3)).condition.guidance.unique().tolist() == [
        pytest.approx(3.3)
    ]
    with pytest.raises(UserError, match="already"):
        Step(PLACE, 4).state(WithGuidance(WithGuidance(source, 2, 14), 2, 14))
    for low, high in ((3, 2), (0, math.inf), (math.nan, 2)):
        with pytest.raises(UserError, match="low <= high"):
            WithGuidance(source, low, high)


# Pairs


def _write(path: Path, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    x, x0 = normals(40, 2, seed=1, dtype=torch.float32), normals(40, 2, seed=2, dtype=torch.float32)
    write_pairs(path, x, x0, labels, {"time": 1.0, "schedule": VE.describe(), "note": "made by hand"})
    return x, x0


@pytest.mark.parametrize("labelled", [True, False])
def test_pairs_are_drawn_uniformly_and_stay_together(tmp_path: Path, labelled: bool) -> None:
    path = tmp_path / "pairs.safetensors"
    pairs = Pairs(path, VE, 1.0)
    with pytest.raises(UserError, match="no such file"):
        Step(PLACE, 4).state(pairs)
    labels = torch.arange(40) if labelled else None
    x, x0 = _write(path, labels)
    state = Step(PLACE, 8000).state(pairs)
    index = (state.x[:, None] == x).all(2).int().argmax(1)
    assert torch.equal(state.x, x[index])
    assert torch.equal(state.x0, x0[index])
    counts = torch.bincount(index, minlength=40).double()
    assert float(((counts - 200) ** 2 / 200).sum()) < 39 + 5 * math.sqrt(2 * 39)
    assert state.t.tolist() == [1.0] * 8000
    assert (state.condition.labels is None) if labels is None else torch.equal(state.condition.labels, index)
    assert state.noise is None


def test_malformed_pairs_are_refused(tmp_path: Path) -> None:
    path, x = tmp_path / "pairs.safetensors", torch.zeros(3, 2)
    for wrong in ((x, x[:2], None), (x, x, torch.zeros(2)), (x[:0], x[:0], None)):
        with pytest.raises(UserError, match="the same shape"):
            write_pairs(path, *wrong, {})
    write_tensors(path, {"x": x}, {})
    with pytest.raises(UserError, match="a file of pairs"):
        Step(PLACE, 4).state(Pairs(path, VE, 1.0))
    _write(path, None)
    with pytest.raises(UserError, match="another time"):
        Step(PLACE, 4).state(Pairs(path, VE, 0.5))
    with pytest.raises(UserError, match="another schedule"):
        Step(PLACE, 4).state(Pairs(path, KarrasVE(sigma_max=8.0), 1.0))
    with pytest.raises(UserError, match="trained range"):
        Pairs(path, VE, 0.0)


# One batch in several processes


@pytest.mark.parametrize("index", range(8))
def test_a_process_draws_its_rows_of_the_global_batch(tmp_path: Path, index: int) -> None:
    _write(tmp_path / "pairs.safetensors", torch.arange(40) % 3)
    sources = _sources()
    mixed = Alternate(
        {"student": _student(), "teacher": Solver(three_gaussians(VE), 2)}, Constant({"student": 1, "teacher": 1})
    )

    def build() -> States:
        weights: Weights = Constant(dict.fromkeys(sources, 1.0))
        return [
            Mixture(sources, weights),
            PerBatch(sources, weights),
            sources["student"],
            Rollout(mixed, Prior(VE, (2,), 1.0, conditions=Classes(2)), TIMES),
            RandomRollout(_student(), _prior(), {2: (1.0, 0.1, 0.0), 3: (1.0, 0.3, 0.1, 0.0)}),
            WithGuidance(_data(), 2, 14),
            Pairs(tmp_path / "pairs.safetensors", VE, 1.0),
            Mixture(
                {"a": Dagger(sources["student"], 32, 8, "reservoir"), "b": sources["teacher"]},
                Constant({"a": 1, "b": 1}),
            ),
        ][index]

    processes = [build() for _ in range(3)]
    for step in range(4):
        key = Key(3, "stage", step)
        whole = Step(key, 12).state(processes[0]).tensors()
        parts = [
            Step(key, 6, start).state(states).tensors() for start, states in ((0, processes[1]), (6, processes[2]))
        ]
        for name, value in whole.items():
            joined = torch.cat([part[name] for part in parts])
            # The networks' matrix products round differently for another number of rows.
            torch.testing.assert_close(joined, value, rtol=1e-5 if name == "x" else 0, atol=1e-6 if name == "x" else 0)
            assert not value.requires_grad


# Aggregation


@dataclass(frozen=True)
class _Numbered(States):
    """x = t = label = 1000 step + index, so that a state says when it was collected."""

    def draw(self, step: Step) -> State:
        value = 1000 * step.key.step + step.start + torch.arange(step.rows)
        return State(value[:, None].float(), value.double(), Condition(labels=value), noise=value[:, None].float())


def _held(dagger: Dagger) -> list[int]:
    held = dagger.tensors()
    assert held["x"][:, 0].long().tolist() == held["t"].long().tolist() == held["labels"].tolist()
    return held["labels"].tolist()


def _run(dagger: Dagger, steps: range, rows: int = 4) -> list[State]:
    return [Step(Key(7, "s", step), rows).state(dagger) for step in steps]


def test_a_ring_holds_the_last_states_and_a_step_collects_once() -> None:
    dagger = Dagger(_Numbered(), capacity=7, collect=3, keep="ring")
    for step in range(9):
        _run(dagger, range(step, step + 1))
        once = _held(dagger)
        _run(dagger, range(step, step + 1), rows=9)
        assert _held(dagger) == once
        assert sorted(once) == sorted([1000 * s + i for s in range(step + 1) for i in range(3)][-7:])
    # The same step of another stage is another place.
    Step(Key(7, "t", 8), 4).state(dagger)
    assert _held(dagger) != once


def test_states_are_collected_every_so_many_steps_and_always_into_an_empty_buffer() -> None:
    dagger = Dagger(_Numbered(), capacity=100, collect=2, keep="ring", every=4)
    _run(dagger, range(3, 13))
    assert _held(dagger) == [3000, 3001, 4000, 4001, 8000, 8001, 12000, 12001]


def test_a_collection_of_whole_trajectories_holds_all_of_their_states() -> None:
    """Three stops a trajectory, the newest last; drawn from where the rollout was, and no map is
    called between two collections.
    """
    counting = _Counting([])
    rollout = Rollout(counting, _prior(), TIMES, (0, 1, 3))
    dagger = Dagger(rollout, capacity=10, collect=2, keep="ring", every=4, of_each="all")
    for step in range(9):
        before = len(counting.jumps)
        state = Step(Key(7, "s", step), 64).state(dagger)
        assert len(counting.jumps) - before == (3 if step % 4 == 0 else 0)
    fresh = [rollout.trajectories(Step(Key(7, "s", step), 2)) for step in (0, 4, 8)]
    last = torch.cat([each.t for each in fresh])[-10:]
    assert sorted(dagger.tensors()["t"].tolist()) == sorted(last.tolist())
    assert set(state.t.tolist()) <= set(last.tolist())
    held = {tuple(row) for row in dagger.tensors()["x"].tolist()}
    assert held == {tuple(row) for row in torch.cat([each.x for each in fresh])[-10:].tolist()}
    assert dagger.filled == 10
    with pytest.raises(UserError, match="of_each must be 'one' or 'all', got 'some'"):
        Dagger(rollout, 4, 2, "ring", of_each="some")


def test_processes_hold_the_same_whole_trajectories_and_draw_their_own_rows() -> None:
    whole, first, second = (
        Dagger(Rollout(_student(), _prior(), TIMES), 20, 3, "ring", every=3, of_each="all") for _ in range(3)
    )
    for step in range(5):
        key = Key(7, "s", step)
        parts = [Step(key, 4, start).state(dagger).tensors() for dagger, start in ((first, 0), (second, 4))]
        for name, value in Step(key, 8).state(whole).tensors().items():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)
        for dagger in (first, second):
            assert all(torch.equal(value, whole.tensors()[name]) for name, value in dagger.tensors().items())


def test_a_reservoir_holds_every_state_ever_seen_equally_often() -> None:
    """Chi-square over 30 states in a buffer of 6, over many seeds; slots of one buffer are
    different states.
    """
    runs, counts = 1000, torch.zeros(30, dtype=torch.float64)
    for seed in range(runs):
        dagger = Dagger(_Numbered(), capacity=6, collect=5, keep="reservoir")
        for step in range(6):
            Step(Key(seed, "s", step), 1).state(dagger)
        held = torch.tensor(_held(dagger))
        assert len(held.unique()) == 6
        counts[held // 1000 * 5 + held % 1000] += 1
    expected = runs * 6 / 30
    # Sampling without replacement: the statistic has mean 29 (1 - 6 / 30).
    assert float(((counts - expected) ** 2 / expected).sum()) < 29 * 0.8 + 5 * math.sqrt(2 * 29)


@pytest.mark.parametrize("keep", ["ring", "reservoir"])
def test_draws_from_a_buffer_are_uniform_and_whole(keep: str) -> None:
    dagger = Dagger(_Numbered(), capacity=50, collect=10, keep=keep)
    _run(dagger, range(2))
    state = Step(Key(7, "s", 1), 8000).state(dagger)
    assert torch.equal(state.x[:, 0].long(), state.condition.labels)
    assert torch.equal(state.t.long(), state.condition.labels)
    values, counts = state.condition.labels.unique(return_counts=True)
    assert values.tolist() == sorted(_held(dagger))
    assert len(values) == 20
    assert float(((counts - 400) ** 2 / 400).sum()) < 19 + 5 * math.sqrt(2 * 19)
    assert (state.x0, state.noise, state.origin) == (None, None, None)


@pytest.mark.parametrize("keep", ["ring", "reservoir"])
@pytest.mark.parametrize("cut", [0, 1, 3, 6])
@pytest.mark.parametrize("of_each", ["one", "all"])
def test_a_resumed_buffer_goes_on_bit_for_bit(keep: str, cut: int, of_each: str) -> None:
    def build() -> Dagger:
        return Dagger(
            WithGuidance(Rollout(_student(), _prior(), TIMES), 2, 14),
            capacity=20,
            collect=6,
            keep=keep,
            every=2,
            of_each=of_each,
        )

    whole, first, second = build(), build(), build()
    undisturbed = _run(whole, range(8))
    _run(first, range(cut))
    second.load_state_dict(first.state_dict())
    second.load_tensors(first.tensors())
    # A checkpoint in the middle of a step: what was collected there is not collected again.
    for ours, theirs in zip(_run(second, range(max(cut - 1, 0), 8)), undisturbed[max(cut - 1, 0) :], strict=True):
        _same(ours, theirs)
    assert second.state_dict() == whole.state_dict()
    assert all(torch.equal(value, whole.tensors()[name]) for name, value in second.tensors().items())
    assert set(whole.tensors()) == {"x", "t", "labels", "guidance"}


def test_a_runs_stateful_objects_include_daggers_and_what_they_draw_from() -> None:
    inner = Dagger(_Numbered(), 4, 2, "ring")
    outer = Dagger(WithGuidance(inner, 1, 2), 4, 2, "ring")
    found = find_resumable([Mixture({"data": _data(), "collected": outer}, Constant({"data": 1, "collected": 1}))])
    assert {id(value) for value in found.values()} == {id(inner), id(outer)}
    assert next(iter(found)).endswith("sources.collected")


def test_impossible_buffers_are_refused() -> None:
    for capacity, collect, every in ((0, 0, 1), (4, 5, 1), (4, 0, 1), (4, 2, 0)):
        with pytest.raises(UserError, match="1 <= collect <= capacity"):
            Dagger(_Numbered(), capacity, collect, "ring", every)
    with pytest.raises(UserError, match="keep must be one of ring, reservoir"):
        Dagger(_Numbered(), 4, 2, "newest")
    dagger, other = Dagger(_Numbered(), 4, 4, "ring"), Dagger(_Numbered(), 3, 3, "ring")
    _run(dagger, range(2))
    other.load_state_dict(dagger.state_dict())
    with pytest.raises(UserError, match="not one of capacity 3"):
        other.load_tensors(dagger.tensors())
    changing = Dagger(
        PerBatch({"a": _prior(), "b": WithGuidance(_prior(), 1, 2)}, Linear({"a": 1, "b": 0}, {"a": 0, "b": 1}, 1)),
        4,
        2,
        "ring",
    )
    with pytest.raises(UserError, match="keep the same fields"):
        _run(changing, range(2))


def test_started_states_are_the_priors_at_its_time_and_the_sources_elsewhere() -> None:
    prior = Prior(SCHEDULES["karras-ve"], (2,), 0.03, conditions=Classes(2))
    data = InMemory(normals(40, 2, dtype=torch.float32) + 5.0, torch.arange(40) % 2, 2, -9.0, 9.0)
    source = ForwardDiffusion(data, prior.schedule, GridTimes((0.03, 0.01, 0.001)))
    step = Step(Key(0, "started", 3), 300)
    inner, state = step.state(source), Started(source, prior).draw(step)
    first = inner.t == prior.time
    assert 60 < int(first.sum()) < 140
    assert torch.equal(state.t, inner.t)
    assert torch.equal(state.condition.labels, inner.condition.labels)
    assert torch.equal(state.x[~first], inner.x[~first])
    # Pure noise of the prior's size: nothing of data with mean 5 is left.
    assert abs(float(state.x[first].mean())) < 0.5
    assert abs(float(state.x[first].std()) / prior.std - 1) < 0.15
    assert state.x0 is None
    part = Started(source, prior).draw(Step(Key(0, "started", 3), 100, 150))
    torch.testing.assert_close(part.x, state.x[150:250])
