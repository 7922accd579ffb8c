"""A recipe that can be trained can be measured: commands have the bounds of the recipe's keys, and
a figure that cannot be had takes no other along.
"""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import torch
from cli_kit import called, small_recipe
from pydantic import TypeAdapter, ValidationError

from fewstep.command.cli import app
from fewstep.data import InMemory
from fewstep.denoisers import EDMInputs, NetworkDenoiser, TimestepInputs, save_model
from fewstep.errors import UserError
from fewstep.metrics.quality import Evaluator
from fewstep.networks import build
from fewstep.prediction import EDM, Prediction
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, PretrainRecipe, config, load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.building.pretrain import build_pretraining
from fewstep.recipes.reading.source import validate
from fewstep.runs import distill, evaluate, measure_many
from fewstep.schedule import KarrasVE, RectifiedFlow

KEYS = {
    "samples": ("samples",),
    "draws": ("draws",),
    "teacher_steps": ("teacher_steps",),
    "student_steps": ("student_steps",),
    "steps": ("student_steps", "teacher_steps"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("measurable")
    return distill(small_recipe(base / "small.yaml", steps=4), out=base / "run")


def taken(key: str, value: int) -> bool:
    """Whether the recipe's key takes the value."""
    try:
        TypeAdapter(config.Evaluation.model_fields[key].annotation).validate_python(
            [value] if key.endswith("steps") else value
        )
        config.Evaluation.of({"features": {"kind": "fourier"}, key: [value] if key.endswith("steps") else value})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("command", ["evaluate", "measure", "shift", "sample"])
def test_options_have_the_bounds_of_the_recipes_keys(command):
    (function,) = [each.callback for each in app.registered_commands if each.name == command]
    hints = typing.get_type_hints(function, include_extras=True)
    options = {
        name: hint.__metadata__[0] for name, hint in hints.items() if typing.get_origin(hint) is typing.Annotated
    }
    compared = 0
    for name, keys in KEYS.items():
        if name not in options:
            continue
        low, high = options[name].min, options[name].max
        for key in keys:
            assert [taken(key, value) for value in (low - 1, low, high, high + 1)] == [False, True, True, False], (
                command,
                name,
                key,
            )
            compared += 1
    assert compared >= 2


def test_evaluate_takes_a_number_of_samples(run):
    printed = called("evaluate", run, "--samples", "7", "--draws", "1").stdout
    assert "7 samples a draw, 1 draw" in printed.splitlines()
    refused = called("evaluate", run, "--samples", "1")
    assert refused.returncode == 2
    assert "--samples" in refused.stderr
    with pytest.raises(UserError, match="'samples' is 1: "):
        evaluate(run, samples=1)
    with pytest.raises(UserError, match="'samples' is 1: "):
        measure_many(run, samples=1)


def test_the_fewest_samples_leave_out_what_needs_more(run):
    found = evaluate(run, samples=2, draws=1)
    assert {"fd", "diversity", "nfe"} <= set(found["student"]["1"])
    assert not {"precision", "recall", "density", "coverage"} & set(found["student"]["1"])
    assert "neighbourhoods need more than 5 samples" in found["left_out"]["recall"]
    many = measure_many(run, samples=2)
    assert {"fd", "kid", "diversity"} <= set(many)
    assert "recall" not in many
    assert "neighbourhoods" in many["left_out"]["recall"]
    text = called("evaluate", run, "--samples", "2", "--draws", "1").stdout
    assert "left out: precision, recall, density, coverage: neighbourhoods need" in text


def test_the_smallest_data_is_measured(tmp_path):
    path = small_recipe(tmp_path / "small.yaml", steps=4)
    run = distill(path, ["data.samples=2", "evaluation.samples=2", "evaluation.draws=1"], tmp_path / "run")
    found = evaluate(run)
    assert "fd" in found["student"]["1"]
    assert "halves_fd" not in found["reference"]
    assert set(found["left_out"]) >= {"halves_fd", "recall", "accuracy"}
    assert "fd" in measure_many(run, samples=2)


def evaluator(rows: int, labels: torch.Tensor | None = None, **settings: object) -> Evaluator:
    classes = 0 if labels is None else 3
    data = InMemory(torch.randn(rows, 2, generator=torch.Generator().manual_seed(0)), labels, classes)
    return Evaluator(data, lambda x: x, **{"samples": 12, **settings})


def noise(key: Key, rows: int, _labels: torch.Tensor | None) -> torch.Tensor:
    return key.normal("noise", (rows, 2))


def classify(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x[:, :1]], dim=1)


@pytest.mark.parametrize(
    ("made", "lacking"),
    [
        (evaluator(30), {"accuracy"}),
        (evaluator(30, torch.arange(30) % 3, classifier=classify), set()),
        (evaluator(30, torch.arange(30) % 3), {"accuracy"}),
        (evaluator(30, torch.arange(30) % 3, classifier=classify, conditional=False), {"accuracy"}),
        (evaluator(5), {"accuracy", "precision", "recall", "density", "coverage"}),
        (evaluator(1), {"accuracy", "precision", "recall", "density", "coverage", "diversity", "fd", "fd_spread"}),
        (
            evaluator(3, torch.arange(3), classifier=classify, samples=3),
            {"precision", "recall", "density", "coverage", "diversity"},
        ),
    ],
)
def test_a_figure_that_cannot_be_had_takes_no_other_along(made, lacking):
    found = made.describe(noise, 1)
    figures = {**vars(found.quality), **vars(found.breadth)}
    assert {name for name, value in figures.items() if value is None} == lacking
    assert set(found.left_out) == lacking - {"fd_spread"}


def test_equal_data_has_no_diversity_and_still_a_distance():
    made = Evaluator(InMemory(torch.zeros(20, 2), None, 0), lambda x: x, samples=20)
    found = made.describe(noise, 1)
    assert found.breadth.diversity is None
    assert "all equal in feature space" in found.left_out["diversity"]
    assert found.quality.fd is not None
    assert found.breadth.recall is not None


def flow_teacher(grid: str) -> PretrainRecipe:
    values = load_recipe("mixture2d-teacher").model_dump(mode="json")
    values["model"] |= {"schedule": {"kind": "rectified-flow"}, "prediction": {"kind": "velocity"}}
    values["evaluation"]["solver"]["grid"] = grid
    recipe = validate(values, "test")
    assert isinstance(recipe, PretrainRecipe)
    return recipe


@pytest.mark.parametrize("grid", ["rho", "log-snr"])
def test_a_flow_is_refused_a_grid_that_cannot_start_before_it_is_trained(grid):
    assert build_pretraining(flow_teacher("uniform")).stages
    with pytest.raises(
        UserError,
        match=rf"'evaluation\.solver\.grid: {grid}' does not fit the teacher's schedule: .*use the uniform time grid",
    ):
        build_pretraining(flow_teacher(grid))


def test_a_student_of_a_flow_is_refused_likewise(tmp_path: Path):
    network = build({"kind": "residual-mlp", "width": 8, "depth": 1, "classes": 0})
    for schedule, refused in ((RectifiedFlow(), True), (KarrasVE(), False)):
        inputs = EDMInputs(0.5) if not refused else TimestepInputs(offset=0.0)
        prediction = EDM(0.5) if not refused else Prediction.from_description({"kind": "velocity"})
        save_model(tmp_path / "t.safetensors", NetworkDenoiser(network, schedule, prediction, inputs, (2,), 0))
        for key, name in (
            ("evaluation.solver.grid", "mixture2d-diff-instruct"),
            ("method.solver.grid", "mixture2d-reflow"),
        ):
            recipe = load_recipe(
                name, [f"teacher={{kind: file, path: {tmp_path / 't.safetensors'}}}", "training.batch=4"]
            )
            assert isinstance(recipe, DistillRecipe)
            if key.startswith("method"):
                recipe = recipe.model_copy(
                    update={
                        "evaluation": recipe.evaluation.model_copy(
                            update={"solver": config.SolverChoice(grid="uniform")}
                        )
                    }
                )
            if not refused:
                assert build_distillation(recipe, tmp_path).stages
                continue
            with pytest.raises(UserError, match=rf"'{key}: rho' does not fit the teacher's schedule"):
                build_distillation(recipe, tmp_path)
