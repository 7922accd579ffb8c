"""How a few-step student makes samples, as a value."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from law_kit import normals, one_gaussian, three_gaussians, tiny_denoiser

from fewstep.condition import Condition
from fewstep.denoisers import Guided, copy_of
from fewstep.errors import UserError
from fewstep.objectives import EDMWeight, Imitation
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE
from fewstep.solvers import DPM2M, EULER, HEUN, Renoise, Rescaled, Solver, solve
from fewstep.solvers.sampling import Sampling
from fewstep.states import State, Step
from fewstep.targets import Fixed
from fewstep.times import RhoGrid, UniformGrid, nested_times
from fewstep.timesteps import LCMGrid, LeadingGrid, TimestepsGrid

SCHEDULE = KarrasVE()
FIRST = {LeadingGrid(): 0.501, LeadingGrid(1): 0.502}
"""Where grids begin that do not at t = 1."""


def start(rows: int = 40) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Noise at level 10, its time, and the nested times of four steps."""
    first = float(SCHEDULE.time_at_sigma(10.0))
    return 10.0 * normals(rows, 2), first, nested_times(RhoGrid(), SCHEDULE, first, 4)


@pytest.mark.parametrize(("rule", "expected"), [("euler", EULER), ("dpm2m", DPM2M)])
def test_deterministic_sampling_is_the_solver_on_the_nested_times(rule, expected):
    teacher, (x, first, times) = three_gaussians(SCHEDULE), start()
    sampling = Sampling("ddim", steps=4, rule=rule)
    assert torch.equal(sampling.times(SCHEDULE, first), times)
    made = sampling.sample(teacher, Key(0, "x"), 0, (x, Condition()), SCHEDULE, times)
    torch.testing.assert_close(made, solve(expected, teacher, x, times), rtol=1e-12, atol=1e-12)


def test_the_two_rules_differ_and_the_second_is_nearer_to_the_exact_solution():
    teacher, (x, first, times) = one_gaussian(SCHEDULE), start()
    exact = solve(HEUN, teacher, x, nested_times(RhoGrid(), SCHEDULE, first, 400))
    errors = {
        rule: float(
            (Sampling("ddim", steps=4, rule=rule).sample(teacher, Key(0), 0, (x, Condition()), SCHEDULE, times) - exact)
            .square()
            .mean()
        )
        for rule in ("euler", "dpm2m")
    }
    assert errors["dpm2m"] < errors["euler"] / 2


def test_renoising_draws_from_the_place_and_from_the_samples_index():
    student, (x, _, times) = three_gaussians(SCHEDULE), start()
    key, sampling = Key(3, "x", 5), Sampling("renoise", steps=4)
    made = sampling.sample(student, key, 7, (x, Condition()), SCHEDULE, times)
    by_hand, jump = x, Renoise(student, SCHEDULE, key, 7)
    for t, s in pairwise(times):
        by_hand = jump(by_hand, t, s, Condition())
    assert torch.equal(made, by_hand)
    assert not torch.equal(made, sampling.sample(student, key, 8, (x, Condition()), SCHEDULE, times))


def test_the_guidance_scale_is_given_to_students_that_take_one():
    labels = torch.tensor([0, 1, 1])
    condition = Sampling(guidance=3.0).condition(Condition(labels), torch.zeros(3, 2))
    assert condition.guidance is not None
    assert condition.guidance.tolist() == [3.0, 3.0, 3.0]
    assert condition.labels is labels
    assert Sampling().condition(Condition(labels), torch.zeros(3, 2)).guidance is None


def test_a_description_gives_the_value_back():
    sampling = Sampling("gamma", UniformGrid(), 3, 0.5, 2.0)
    assert sampling.describe()["grid"] == "uniform"
    assert Sampling.from_description(sampling.describe()) == sampling
    # As files of earlier versions say it, which hold no times.
    assert Sampling.from_description({"jump": "ddim", "grid": "uniform", "steps": 2}) == Sampling(
        "ddim", UniformGrid(), 2
    )
    for grid, said in (
        (TimestepsGrid((999, 399)), {"kind": "timesteps", "at": [999, 399]}),
        (LeadingGrid(1), {"kind": "leading", "offset": 1}),
        (LeadingGrid(), "leading"),
        (LCMGrid(), "lcm"),
        (RhoGrid(3.0), {"kind": "rho", "exponent": 3.0}),
    ):
        sampling = Sampling("renoise", grid, 2).holding(DiscreteVP(), FIRST.get(grid, 1.0))
        described = json.loads(json.dumps(sampling.describe()))
        assert described["grid"] == said
        assert len(described["times"]) == 2
        assert Sampling.from_description(described) == sampling


@pytest.mark.parametrize(
    "bad",
    [
        {"jump": "leap"},
        {"grid": "square"},
        {"grid": "timesteps"},
        {"grid": {"kind": "timesteps", "at": [499, 999]}},
        {"grid": {"kind": "timesteps", "at": []}},
        {"grid": {"kind": "timesteps", "at": [-1]}},
        {"grid": ["rho"]},
        {"times": [0.5, 0.7], "steps": 2},
        {"times": [0.5], "steps": 2},
        {"times": [1.5]},
        {"times": ["a"]},
        {"times": [0.0]},
        {"times": "0.5"},
        {"steps": 0},
        {"gamma": 1.5},
        {"rule": "heun"},
        {"jump": "renoise", "rule": "dpm2m"},
    ],
)
def test_what_cannot_be_sampled_is_refused(bad):
    with pytest.raises(UserError, match=r"sampling: |grid: |grid 'timesteps': |TimestepsGrid: "):
        Sampling.from_description({"jump": "ddim", **bad})


def test_a_rescaled_map_takes_unit_noise_through_the_other_schedule_and_nothing_else():
    teacher = three_gaussians(SCHEDULE)
    inner, z = Solver(teacher, 8), normals(20, 2)
    seen = Rescaled(inner, SCHEDULE.prior_scale, 1.0)
    assert torch.equal(seen(z, 1.0, 0.0), inner(80.0 * z, 1.0, 0.0))
    assert torch.equal(seen.at(Key(1))(z, 1.0, 0.0), seen(z, 1.0, 0.0))
    for t, s in ((0.5, 0.0), (1.0, 0.2)):
        with pytest.raises(UserError, match="only"):
            seen(z, t, s)


def test_imitation_has_no_loss_for_a_copy_and_is_the_weighted_distance_otherwise():
    teacher, student = tiny_denoiser(classes=2, seed=1), tiny_denoiser(classes=2, seed=2)
    t = torch.full((6,), 0.01, dtype=torch.float64)
    state = State(
        normals(6, 2, dtype=torch.float32),
        t,
        Condition(torch.tensor([0, 1, 0, 1, 0, 1]), guidance=torch.full((6,), 2.0)),
    )
    step, weight = Step(Key(0), 6), EDMWeight(0.5)
    assert float(Imitation(copy_of(teacher), Fixed(teacher), weight)(step, state).total.detach()) == 0
    loss = Imitation(student, Fixed(Guided(teacher)), weight)(step, state)
    wanted = Guided(teacher, 2.0)(state.x, t, state.condition)
    expected = weight.at(SCHEDULE, t).float()[:, None] * (student(state.x, t, state.condition) - wanted).square()
    torch.testing.assert_close(loss.total, expected.mean())
    loss.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())
