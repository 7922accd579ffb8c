"""The family by the command line: the matrix, and small runs of methods that sample in ways of
their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cli_kit import called, failed
from typer.testing import CliRunner

from fewstep import load
from fewstep.command.cli import app
from fewstep.condition import Condition
from fewstep.denoisers import in_network, load_adapter, load_model
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names, shipped_text
from fewstep.recipes.building.frozen_teachers import build_teacher
from fewstep.recipes.legality import columns, matrix_row
from fewstep.runs import distill, load_teacher


def inside(*arguments: str | Path) -> str:
    """What ``fewstep ARGUMENTS`` prints, in this process, which spares its start."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


SMALL = {"count": 8, "pairs": 8, "solver_steps": 2, "flow_steps": 2, "adversarial_after": 1}
"""The recipe, what is changed in its sections, and the steps of its students."""
RUNS: dict[str, tuple[str, dict[str, Any], int]] = {
    "pd": ("digits-pd", {"method": {"start": 8}}, 4),
    "lcm": ("digits-lcm", {}, 4),
    "ctm": ("digits-ctm", {}, 2),
    "reflow": ("digits-reflow", {}, 1),
    "low rank": ("digits-diff-instruct", {"student": {"kind": "lora", "rank": 2, "first_sigma": 2.5}}, 1),
}


def small(name: str, changes: dict[str, Any], path: Path) -> Path:
    values = yaml.safe_load(shipped_text(name))
    values["method"] |= {key: value for key, value in SMALL.items() if key in values["method"]} | changes.get(
        "method", {}
    )
    values["student"] = changes.get("student", values["student"])
    values["training"] |= {"steps": 6, "batch": 4, "log_every": 1, "health_every": 1000}
    values["evaluation"] |= {"samples": 20, "draws": 1, "every": 1000, "teacher_steps": [2]}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run folder of each, made by the call behind 'fewstep distill'."""
    base = tmp_path_factory.mktemp("family")
    return {
        key: distill(small(name, changes, base / f"{key}.yaml"), out=base / key)
        for key, (name, changes, _) in RUNS.items()
    }


def test_the_printed_matrix_is_the_rule():
    header, *lines = inside("recipes", "--matrix").splitlines()
    assert header.split() == [column.split()[1] for column in columns()]
    printed = {line.split()[0]: line.split()[1:] for line in lines}
    recipes = {name: load_recipe(name) for name in shipped_names()}
    assert printed == {
        name: ["yes" if cell is None else "-" for cell in matrix_row(name, recipe.method).cells.values()]
        for name, recipe in recipes.items()
        if isinstance(recipe, DistillRecipe)
    }


def test_the_matrix_of_one_recipe_says_why_not_and_json_holds_the_same(tmp_path):
    # A recipe of one's own has its row as well.
    path = small("digits-dmd2-4step", {"method": {"steps": 1}}, tmp_path / "mine.yaml")
    recipe = load_recipe(path)
    assert isinstance(recipe, DistillRecipe)
    cells = matrix_row(str(path), recipe.method).cells
    assert [line.removeprefix("- ") for line in inside("recipes", "--matrix", path).splitlines()[2:]] == [
        cell for cell in cells.values() if cell is not None
    ]
    assert json.loads(inside("recipes", "--matrix", path, "--json")) == {str(path): cells}
    assert set(json.loads(inside("recipes", "--matrix", "--json"))) == {
        name for name in shipped_names() if isinstance(load_recipe(name), DistillRecipe)
    }
    assert "has no axes" in failed(called("recipes", "--matrix", "digits-teacher"))


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("digits-pd", ["method.start=12"], "must be powers of two"),
        (
            "digits-dmd2",
            ["method.fake={kind: delta}"],
            "'method.adversarial.kind: fake-trunk' needs a fake score that is trained",
        ),
        (
            "digits-lcm",
            ["target={kind: backtracked, nodes: 2, record: {kind: every, steps: 1}, switch: {kind: every, steps: 1}}"],
            "'target.kind: backtracked' cannot be combined",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_one_sentence_and_code_2(name, settings, sentence, tmp_path):
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert sentence in failed(called("distill", name, *arguments, "--out", tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("key", RUNS)
def test_a_run_is_sampled_as_it_was_trained_to_be(runs, key, tmp_path):
    run, steps = runs[key], RUNS[key][2]
    inside("sample", run, "-n", "6", "--seed", "3", "--out", tmp_path / "a.png", "--npz", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        samples = arrays["samples"]
    sampler = load(run)
    assert sampler.usual_steps == steps
    np.testing.assert_array_equal(samples, sampler(6, seed=3, steps=steps).numpy())
    assert np.isfinite(samples).all()
    # Sample i is the same in another batch, noise of the jumps included.
    torch.testing.assert_close(sampler(2, seed=3), torch.from_numpy(samples[:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", RUNS)
def test_a_run_is_evaluated_at_its_steps_and_the_evaluations_are_counted(runs, key, monkeypatch):
    monkeypatch.setattr(sys.modules["fewstep.runs.evaluate"], "MISMATCH_ROWS", 20)
    found = json.loads(inside("evaluate", runs[key], "--json"))["student"]
    assert str(RUNS[key][2]) in found
    assert {steps: entry["nfe"] for steps, entry in found.items()} == {steps: int(steps) for steps in found}


def test_a_guided_student_takes_its_scale(runs):
    usual, given, other = load(runs["lcm"]), load(runs["lcm"], guidance=1.0), load(runs["lcm"], guidance=3.0)
    assert torch.equal(usual(4), given(4))
    assert not torch.equal(usual(4), other(4))
    with pytest.raises(UserError, match="not conditioned on a guidance scale"):
        load(runs["pd"], guidance=2.0)


def test_an_adapter_on_the_teacher_is_the_student(runs):
    run = runs["low rank"]
    recipe = load_recipe(run / "recipe.yaml")
    assert isinstance(recipe, DistillRecipe)
    teacher = build_teacher(recipe.teacher, recipe.data.open())
    stored = load_adapter(run / "adapter.safetensors")
    assert (stored.ranks, stored.extra["teacher"]) == ("2", recipe.teacher.model_dump(mode="json"))
    student, _ = load_model(run / "student.safetensors")
    x = Key(0, "test").normal("x", (5, 1, 8, 8))
    t, condition = torch.full((5,), 0.03), Condition(labels=torch.arange(5))
    with torch.no_grad():
        before = teacher(x, t, condition)
        network = teacher.network
        adapted = in_network(teacher, AdaptedNetwork.holding(AdaptedBase(network), stored.on(network)))
        torch.testing.assert_close(adapted(x, t, condition), student(x, t, condition), atol=1e-5, rtol=0)
        assert not torch.allclose(before, student(x, t, condition), atol=1e-4)
    assert not list(runs["pd"].glob("adapter.safetensors"))


def test_the_teacher_of_a_run_is_its_recipes(runs):
    """A student that takes more inputs leaves its teacher as it was."""
    assert torch.equal(load_teacher(runs["lcm"])(3, steps=2), load_teacher(runs["pd"])(3, steps=2))
