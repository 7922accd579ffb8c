"""Students that start at a timestep and walk along timesteps, by way of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import LEARNED, MATCHING, fitted, sampler_of, tiny
from test_methods import same
from test_other_teachers import teacher_file

from fewstep.errors import UserError
from fewstep.keeping.run_identity import run_of
from fewstep.planning.sketch import sketch
from fewstep.planning.twin import twin
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.reading.source import dump, validate
from fewstep.runs import distill, load
from fewstep.schedule import DiscreteVP
from fewstep.states import RandomRollout
from fewstep.system.files import read_metadata, read_tensors, write_tensors
from fewstep.timesteps import LCMGrid, TimestepsGrid, TrailingGrid
from fewstep.training import Silent

LISTED = [999, 749, 499, 249]
AT = {"kind": "timesteps", "at": LISTED}
COPY = {"kind": "copy", "first_timestep": 999}
PROGRESSIVE = {"kind": "progressive", "start": 8, "steps": 4}
DMD2 = {**MATCHING, "steps": 4, "grid": AT}
LCM = {"kind": "consistency", "points": 50, "grid": "lcm", "steps": 4, "rollout_steps": [2, 4]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return teacher_file(tmp_path_factory.mktemp("teacher") / "teacher.safetensors", "vp")


def on(teacher: Path, method: dict[str, Any], student: dict[str, Any] = COPY, **others: Any) -> DistillRecipe:
    """A tiny recipe on a discrete teacher of 1,000 timesteps."""
    values = tiny(method, student=student, **others).model_dump(mode="json")
    values["teacher"]["path"] = str(teacher)
    made = validate(values, "test")
    assert isinstance(made, DistillRecipe)
    return made


def timesteps(times) -> list[int]:
    return [round(1000 * t) - 1 for t in times if t > 0]


# The first level


@pytest.mark.parametrize(
    "student",
    [
        {"kind": "copy"},
        {"kind": "lora", "rank": 2},
        {"kind": "network", "network": {"kind": "residual-mlp", "width": 8, "depth": 2}},
    ],
    ids=["copy", "lora", "network"],
)
def test_every_denoising_student_starts_at_the_timestep_from_unit_noise(student, teacher, tmp_path) -> None:
    recipe = on(teacher, MATCHING, {**student, "first_timestep": 399})
    parts = build_distillation(recipe, tmp_path)
    assert parts.prior.time == 0.4
    assert parts.prior.std == 1.0
    # Said once, and saved so that it is read again.
    assert recipe.student.first_sigma is None
    again = validate(recipe.model_dump(mode="json"), "test")
    assert again == recipe
    assert run_of(again) == run_of(recipe)
    assert run_of(recipe) != run_of(on(teacher, MATCHING, {**student, "first_timestep": 398}))


def test_a_timestep_is_the_noise_level_that_it_has(teacher, tmp_path) -> None:
    level = float(DiscreteVP("cosine").rho(0.4))
    by_level = build_distillation(on(teacher, MATCHING, {"kind": "copy", "first_sigma": level}), tmp_path)
    assert by_level.prior.time == pytest.approx(0.4, rel=1e-9)
    assert by_level.prior.std == 1.0


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ({"first_timestep": 399, "first_sigma": 2.5}, "are both said; say one of them, and set the other to null"),
        ({"first_sigma": None}, "'first_sigma' and 'first_timestep' are both null"),
        ({"first_timestep": -1}, "'student.first_timestep' is -1"),
        ({"first_timestep": 1.5}, "'student.first_timestep' is 1.5"),
    ],
)
def test_a_student_says_one_first_level(student, sentence, teacher) -> None:
    with pytest.raises(UserError) as caught:
        on(teacher, MATCHING, {"kind": "copy", **student})
    assert sentence in str(caught.value)


def test_a_timestep_that_the_teacher_has_not_is_refused(teacher, tmp_path) -> None:
    for timestep in (1000, 99_999):
        with pytest.raises(
            UserError, match=rf"'student\.first_timestep' .*: timestep {timestep} .* 0 to 999; name one"
        ):
            build_distillation(on(teacher, MATCHING, {"kind": "copy", "first_timestep": timestep}), tmp_path)
    with pytest.raises(UserError, match=r"'student\.first_timestep' .*'karras-ve' schedule has no timesteps; name a"):
        build_distillation(tiny(MATCHING, student={"kind": "copy", "first_timestep": 399}), tmp_path)


# Along timesteps


@pytest.mark.parametrize("grid", ["rho", "log-snr", "uniform", "trailing", "lcm", AT, {"kind": "rho", "exponent": 3.0}])
def test_a_grid_is_saved_as_it_is_said_and_the_usual_one_not_at_all(grid, teacher) -> None:
    recipe = on(teacher, {**DMD2, "grid": grid})
    assert recipe.model_dump(mode="json")["method"].get("grid", "rho") == grid
    assert validate(recipe.model_dump(mode="json"), "test") == recipe
    plain = on(teacher, {name: value for name, value in DMD2.items() if name != "grid"})
    assert (run_of(recipe) == run_of(plain)) == (grid == "rho")


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("square", "'method.grid' is 'square': input should be 'rho' or 'log-snr' or 'uniform'"),
        ("timesteps", "or a mapping such as {kind: timesteps, at: [999, 499]}"),
        ({"kind": "square"}, "'method.grid.kind' is 'square'; it must be one of 'rho'"),
        ({"kind": "timesteps"}, "the key 'method.grid.at' is missing"),
        ({"kind": "timesteps", "at": [249, 999]}, "'at' must fall, got 249, 999"),
        ({"kind": "timesteps", "at": []}, "'method.grid.at' is []"),
        ([999, 749], "'method.grid' is [999, 749]"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid, sentence, teacher) -> None:
    with pytest.raises(UserError) as caught:
        on(teacher, {**DMD2, "grid": grid})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("method", "student", "sentence"),
    [
        (DMD2, {"kind": "copy", "first_timestep": 399}, "begins at timestep 999, and the samples at 399"),
        ({**DMD2, "steps": 3}, COPY, "'timesteps' has no 3 steps"),
        ({**DMD2, "grid": "leading"}, COPY, "these begin at timestep 750, and the samples at 999"),
        ({**PROGRESSIVE, "grid": {"kind": "timesteps", "at": [999, 499, 9]}}, COPY, "has no 4 steps"),
        ({**PROGRESSIVE, "grid": "leading"}, {"kind": "copy", "first_timestep": 750}, "these begin at timestep 875"),
        ({**LCM, "points": 60}, COPY, "it has 50 points"),
    ],
)
def test_a_grid_that_the_student_cannot_walk_is_refused_before_training(method, student, sentence, teacher, tmp_path):
    with pytest.raises(UserError) as caught:
        build_distillation(on(teacher, method, student), tmp_path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("'method.grid' does not fit the student's first level and steps: ")


def test_a_solvers_grid_is_tried_with_its_steps(teacher, tmp_path) -> None:
    values = on(teacher, MATCHING).model_dump(mode="json")
    for steps, grid, fits in (([8, 1], AT, True), ([35], AT, False), ([35, 1], "trailing", True), ([51], "lcm", False)):
        values["evaluation"] |= {"teacher_steps": steps, "solver": {"rule": "euler", "grid": grid}}
        recipe = validate(values, "test")
        assert isinstance(recipe, DistillRecipe)
        if fits:
            build_distillation(recipe, tmp_path)
        else:
            with pytest.raises(UserError, match=r"'evaluation\.solver\.grid: .*' does not fit the teacher's schedule"):
                build_distillation(recipe, tmp_path)


def test_progressive_distillation_halves_a_list(teacher, tmp_path) -> None:
    """Eight steps are those between; a round's teacher stands on twice the student's timesteps."""
    parts = build_distillation(on(teacher, {**PROGRESSIVE, "steps": 2, "grid": AT}), tmp_path)
    objectives = [stage.phases[0].terms[0].objective for stage in parts.stages]
    assert [(timesteps(each.fine), timesteps(each.times)) for each in objectives] == [
        ([999, 874, 749, 624, 499, 374, 249, 124], LISTED),
        (LISTED, [999, 499]),
    ]
    assert timesteps(parts.sampling.times(parts.prior.schedule, 1.0).tolist()) == [999, 499]


def test_lcm_trains_on_its_points_and_rolls_out_along_its_own_steps(teacher, tmp_path) -> None:
    parts = build_distillation(on(teacher, LCM, states="rollout"), tmp_path)
    (phase,) = parts.stages[0].phases
    ladder = phase.terms[0].objective.ladder.times
    assert timesteps(ladder) == [*range(999, 18, -20), 0]
    states = phase.terms[0].states
    assert isinstance(states, RandomRollout)
    assert {steps: timesteps(times) for steps, times in states.grids.items()} == {
        2: [999, 499],
        4: [999, 759, 499, 259],
    }
    assert timesteps(parts.sampling.times(parts.prior.schedule, 1.0).tolist()) == [999, 759, 499, 259]


@pytest.mark.parametrize(
    ("method", "states"),
    [
        (DMD2, "usual"),
        (DMD2, "ddil"),
        ({**DMD2, "grid": "trailing"}, "per-batch"),
        ({**PROGRESSIVE, "grid": AT}, "ddil"),
        ({**PROGRESSIVE, "grid": "trailing", "convert": "v"}, "usual"),
        (LCM, "per-batch"),
        ({"kind": "trajectory", "points": 10, "steps": 2, "grid": "trailing"}, "usual"),
        ({"kind": "sid", "fake": LEARNED, "steps": 4, "grid": AT}, "usual"),
        ({"kind": "adversarial-diffusion", "steps": 4, "grid": AT}, "ddil"),
        ({"kind": "f-distill", "steps": 2, "grid": "lcm"}, "usual"),
        ({"kind": "continuous-consistency", "sigma_data": 2.3, "steps": 4, "grid": AT}, "ddil"),
        ({"kind": "knowledge", "pairs": {"kind": "on-the-fly"}, "solver_steps": 2, "steps": 4, "grid": AT}, "rollout"),
    ],
)
def test_methods_train_along_timesteps(method, states, teacher, tmp_path) -> None:
    recipe = on(teacher, method, states=states)
    parts = build_distillation(recipe, tmp_path)
    before = [value.detach().clone() for value in parts.student.parameters()]
    fitted(recipe, parts, tmp_path)
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.student.parameters(), strict=True))
    assert bool(torch.isfinite(sampler_of(parts)(5)).all())


def test_a_list_of_another_grids_timesteps_is_the_same_run(teacher, tmp_path) -> None:
    trailing, listed, lcm = (on(teacher, {**DMD2, "grid": grid}) for grid in ("trailing", AT, "lcm"))
    assert same(trailing, listed, tmp_path / "trailing")
    assert not same(trailing, lcm, tmp_path / "lcm")


# What a run leaves


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "four.yaml").write_text(dump(on(teacher, DMD2)))
    return distill(folder / "four.yaml", out=folder / "run", listeners=[Silent()])


def drawn(student, steps: int) -> torch.Tensor:
    """Samples that are not clamped: a network of random weights leaves the data's range."""
    return student.draw(Key(3, "x"), 6, None, steps)


def test_a_students_file_holds_its_times_and_samples_by_them(run) -> None:
    said = read_metadata(run / "student.safetensors")["sampling"]
    assert said["times"] == [1.0, 0.75, 0.5, 0.25]
    assert said["grid"] == AT
    student = load(run)
    assert student.usual_steps == 4
    assert student.sampling.grid == TimestepsGrid(tuple(LISTED))
    assert torch.equal(drawn(student, 4), drawn(student, student.usual_steps))
    assert not torch.equal(drawn(student, 4), drawn(student, 2))
    assert torch.equal(student(6), student(6, steps=4))
    assert drawn(student, 8).shape == (6, 2)
    with pytest.raises(UserError, match=r"'timesteps' has no 3 steps: it lists 4.*take one of these, such as 4\.$"):
        student(6, steps=3)


def test_a_file_of_earlier_versions_holds_none_and_gives_the_same_samples(run, tmp_path) -> None:
    tensors, metadata = read_tensors(run / "student.safetensors")
    del metadata["sampling"]["times"]
    expected = drawn(load(run), 4)
    for grid, equal in ((AT, True), ("trailing", True), ("lcm", False)):
        metadata["sampling"]["grid"] = grid
        write_tensors(tmp_path / "older.safetensors", tensors, metadata)
        older = load(tmp_path / "older.safetensors")
        assert older.sampling.held == ()
        assert torch.equal(drawn(older, 4), expected) == equal


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"times": [0.9, 0.75, 0.5, 0.25]}, "times from 0.9, and samples that start at 1"),
        ({"times": [1.0, 0.75]}, "its times must be 4 falling numbers"),
        ({"times": [1.0, 0.75, 0.5, 0.5]}, "its times must be 4 falling numbers"),
        ({"times": {"0": 1.0}}, "its times must be a list"),
        ({"times": [1.0, 0.75, 0.5, 1e-9]}, "a last time of 1e-09"),
        ({"grid": {"kind": "timesteps", "at": ["999"]}}, "'at' is"),
    ],
)
def test_times_that_a_file_cannot_hold_are_refused(change, sentence, run, tmp_path) -> None:
    tensors, metadata = read_tensors(run / "student.safetensors")
    metadata["sampling"] |= change
    write_tensors(tmp_path / "wrong.safetensors", tensors, metadata)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "wrong.safetensors")
    assert sentence in str(caught.value)


# Plans and twins


@pytest.mark.parametrize("method", [DMD2, LCM, {**PROGRESSIVE, "grid": {"kind": "timesteps", "at": [1999, 999]}}])
def test_a_twin_of_a_recipe_that_speaks_of_timesteps_has_them(method, teacher, tmp_path) -> None:
    values = on(teacher, method).model_dump(mode="json")
    first = method["grid"]["at"][0] if isinstance(method["grid"], dict) else 999
    values |= {
        "teacher": {"kind": "diffusers", "path": "somebody/pipeline"},
        "student": {"kind": "copy", "first_timestep": first},
        "data": {"kind": "images", "path": "nowhere.zip", "classes": 3},
    }
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    small = twin(recipe, 6)
    assert small.teacher.model.schedule.timesteps == max(1000, first + 1)
    assert small.method.grid == recipe.method.grid
    parts = build_distillation(small, tmp_path)
    assert parts.prior.time == 1.0
    fitted(small, parts, tmp_path)


def test_a_twin_of_other_recipes_is_edms(teacher) -> None:
    values = on(teacher, MATCHING, {"kind": "copy", "first_sigma": 10.0}).model_dump(mode="json")
    values["teacher"] = {"kind": "diffusers", "path": "somebody/pipeline"}
    values["data"] = {"kind": "images", "path": "nowhere.zip", "classes": 3}
    assert twin(validate(values, "test"), 6).teacher.model.schedule.timesteps == 0


def test_a_plan_sketches_a_student_of_timesteps(teacher, tmp_path) -> None:
    context, built = sketch(on(teacher, DMD2), tmp_path)
    assert timesteps(context.student_times()) == LISTED
    assert context.sampling.grid != TrailingGrid()
    assert LCMGrid() != context.sampling.grid
    assert [stage.name for stage in built.stages] == ["distill"]


def test_a_shipped_recipe_takes_a_grid_by_set() -> None:
    recipe = load_recipe("digits-dmd2-4step", ["method.grid={kind: timesteps, at: [999, 499]}"])
    assert recipe.method.grid == TimestepsGrid((999, 499))
    assert load_recipe("digits-dmd2-4step", ["method.grid=trailing"]).method.grid == TrailingGrid()
