"""What DDIL's paper does can be said in a recipe: times, stops, and how trajectories are
collected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.kit.state_sources import stops_at
from fewstep.recipes.methods.along_trajectories.progressive import GuidanceRange
from fewstep.recipes.reading.source import dump
from fewstep.states import Dagger, ForwardDiffusion, Mixture, OpenRollout, PerBatch, Rollout, States, Step
from fewstep.times import RhoGrid, UniformGrid, UniformTimes

SMALL = ("states.capacity=12", "states.collect=3")


def built(folder: Path, name: str, *overrides: str) -> Distillation:
    recipe = load_recipe(name, overrides)
    assert isinstance(recipe, DistillRecipe)
    return build_distillation(recipe, folder)


def states_of(parts: Distillation, stage: int = 0) -> States:
    return parts.stages[stage].phases[0].terms[0].states


def collection(states: States) -> Dagger:
    assert isinstance(states, Mixture)
    dagger = states.sources["collected"]
    assert isinstance(dagger, Dagger)
    return dagger


def test_stops_are_the_nearest_times_from_which_a_step_is_taken() -> None:
    assert stops_at([0.5], 4) == (2,)
    assert stops_at([0.5], 3) == (2,)
    assert stops_at([0.0, 0.99], 4) == (0, 3)
    assert stops_at([0.3, 0.5, 0.52], 2) == (1,)


@pytest.mark.parametrize("kind", ["rollout", "per-batch", "ddil"])
def test_a_trajectory_may_stop_at_one_level_only(tmp_path: Path, kind: str) -> None:
    """DMD2 + DDIL at half of the way, t = 500 of 1,000: the third of four times; students and
    teachers alike.
    """
    parts = built(tmp_path, "mixture2d-dmd2-4step", f"states={{kind: {kind}, stops: [0.5]}}")
    states = states_of(parts)
    source = (
        states
        if kind == "rollout"
        else states.sources["student"]
        if isinstance(states, PerBatch)
        else collection(states).source
    )
    rollouts = [source] if isinstance(source, Rollout) else list(source.sources.values())
    assert len(rollouts) == (2 if kind == "ddil" else 1)
    for rollout in rollouts:
        assert isinstance(rollout, Rollout)
        assert rollout.indices == (2,)
        assert rollout.draw(Step(Key(0), 3)).t.tolist() == [rollout.times[2]] * 3


def test_a_round_of_progressive_distillation_stops_at_its_own_times(tmp_path: Path) -> None:
    parts = built(tmp_path, "mixture2d-pd-ddil", "states.stops=[0.0, 0.5]", "method.parts=1")
    assert [collection(states_of(parts, stage)).source.indices for stage in range(3)] == [(0, 8), (0, 4), (0, 2)]


def test_a_consistency_models_rollouts_stop_at_a_share_of_their_own_steps(tmp_path: Path) -> None:
    rollout = states_of(built(tmp_path, "mixture2d-cd", "states={kind: rollout, stops: [0.5]}"))
    assert rollout.stops == {3: (2,), 4: (2,), 5: (2,)}


@pytest.mark.parametrize("name", ["mixture2d-dmd2-4step", "mixture2d-add", "mixture2d-kd"])
def test_trajectories_and_data_may_be_at_any_time(tmp_path: Path, name: str) -> None:
    """Algorithm 1: T_s is drawn first, whatever the batch is from. A step is made there."""
    several = ["method={kind: knowledge, pairs: {kind: on-the-fly}, steps: 4}"] if name == "mixture2d-kd" else []
    parts = built(
        tmp_path, name, *several, "states={kind: per-batch, data: 0.4, teacher: 0.3, student: 0.3, stops: any}"
    )
    states = states_of(parts)
    assert isinstance(states, PerBatch)
    data, student, teacher = (states.sources[key] for key in ("data", "student", "teacher"))
    assert isinstance(data, ForwardDiffusion)
    assert data.times == UniformTimes(high=parts.prior.time)
    for rollout in (student, teacher):
        assert isinstance(rollout, OpenRollout)
        assert rollout.stops == data.times
        assert len(rollout.times) == 4
    phase = parts.stages[-1].phases[0]
    step = Step(Key(0, "any"), 4)
    loss = phase.terms[0].objective(step, step.state(states)).total
    assert bool(torch.isfinite(loss))
    assert float(step.state(states).t[0]) not in rollout.times


@pytest.mark.parametrize("name", ["mixture2d-pd", "mixture2d-cd", "mixture2d-ctm"])
def test_methods_on_a_grid_refuse_any_time(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=r"'states\.stops: any' cannot be combined: its steps begin at the times of its grid"
    ):
        built(tmp_path, name, "states={kind: rollout, stops: any}")


@pytest.mark.parametrize("wrong", ["[1.0]", "[-0.1]", "[]", "some"])
def test_stops_that_are_none_are_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"states\.?.*stops"):
        load_recipe("mixture2d-pd", [f"states={{kind: rollout, stops: {wrong}}}"])


def test_progressive_distillation_may_step_along_uniform_times(tmp_path: Path) -> None:
    """The paper's levels are 999, 749, 500, 250: equal steps of t, in training and in sampling,
    rollouts and the student's file.
    """
    parts = built(tmp_path, "mixture2d-pd-ddil", "method.grid=uniform", "method.parts=1")
    times = torch.tensor(collection(states_of(parts, 2)).source.times, dtype=torch.float64)
    assert len(times) == 4
    torch.testing.assert_close(
        times.diff(), torch.full((3,), -parts.prior.time / 4, dtype=torch.float64), rtol=1e-3, atol=0
    )
    assert parts.sampling.grid == UniformGrid()
    assert parts.sampling.times(parts.teacher.schedule, parts.prior.time).tolist()[:-1] == times.tolist()
    assert built(tmp_path, "mixture2d-pd-ddil").sampling.grid == RhoGrid()


def test_how_trajectories_are_collected_is_as_the_recipe_says(tmp_path: Path) -> None:
    dagger = collection(
        states_of(
            built(
                tmp_path, "mixture2d-pd-ddil", "states.every=7", "states.of_each=one", "states.keep=reservoir", *SMALL
            )
        )
    )
    assert (dagger.capacity, dagger.collect, dagger.every, dagger.of_each, dagger.keep) == (
        12,
        3,
        7,
        "one",
        "reservoir",
    )


@pytest.mark.parametrize("name", [name for name in shipped_names() if "-pd-ddil" in name])
def test_recipes_of_progressive_distillation_collect_whole_trajectories(name: str) -> None:
    """A trajectory of which one state is kept costs as much as one of which all are."""
    recipe = load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    assert recipe.states.model_dump()["of_each"] == "all"


def values_of(section: Any) -> set[str]:
    return (
        set(section) | {key for inner in section.values() for key in values_of(inner)}
        if isinstance(section, dict)
        else set()
    )


def test_a_setting_of_later_versions_is_said_only_where_it_is_used() -> None:
    """By what a recipe says its checkpoints are known: those of runs of earlier versions must stay
    known.
    """
    later = {"decay_along", "inversion", "rounds", "grid", "every", "of_each", "stops"}
    plain = load_recipe("mixture2d-pd", ["states={kind: ddil}"])
    assert not later & values_of(
        {key: value for key, value in plain.model_dump().items() if key in ("method", "states")}
    )
    assert not later & values_of(load_recipe("mixture2d-ctm").model_dump()["method"]) - {"grid"}
    used = load_recipe(
        "mixture2d-pd",
        [
            "states={kind: ddil, every: 2, of_each: all, stops: [0.5]}",
            "method.optimizer.decay_along=line",
            "method.grid=uniform",
            "method.rounds=[[1.0],[1.0],[2.0,1.0]]",
        ],
    )
    assert later - {"inversion"} <= values_of(used.model_dump())
    assert load_recipe("mixture2d-ctm", ["method.inversion=0.5"]).model_dump()["method"]["inversion"] == 0.5
    assert "of_each: all" in dump(used)


def test_the_usual_range_of_guidance_is_meng_et_als() -> None:
    """They write (1 + w) conditional - w null with w in [2, 14]; here that is w + 1."""
    usual = GuidanceRange()
    assert (usual.low, usual.high) == (2 + 1, 14 + 1)
    assert usual.low <= usual.sample_at <= usual.high
    conditional, null = 0.7, -0.2
    for theirs, ours in ((2.0, usual.low), (14.0, usual.high)):
        assert (1 + theirs) * conditional - theirs * null == pytest.approx(null + ours * (conditional - null))


@pytest.mark.parametrize(
    ("weight", "names"),
    [(0.0, ["soft consistency", "denoising"]), (0.5, ["soft consistency", "denoising", "inversion"])],
)
def test_a_trajectory_model_is_trained_upwards_where_the_recipe_asks_for_it(
    tmp_path: Path, weight: float, names: list[str]
) -> None:
    """From every time but the first, on diffused data; a step of it is finite."""
    parts = built(tmp_path, "mixture2d-ctm", f"method.inversion={weight}", "method.points=6")
    terms = parts.stages[0].phases[0].terms
    assert [term.name for term in terms] == names
    if weight:
        step = Step(Key(0, "up"), 200)
        state = step.state(terms[-1].states)
        assert terms[-1].weight == weight
        assert sorted(state.t.unique().tolist(), reverse=True) == list(terms[-1].objective.times)[1:]
        assert bool(torch.isfinite(terms[-1].objective(step, state).total))
