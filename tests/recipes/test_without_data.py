"""Data-free means no data: a recipe without a 'data' section trains, resumes and is measured as far
as samples alone allow, and what needs data refuses in one sentence.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from test_combinations import without_syncing

from fewstep.command.tables.evaluations import measurement_table, quality_table
from fewstep.data import SampleSpace
from fewstep.denoisers import EDMInputs, NetworkDenoiser, save_model
from fewstep.doctor import examine, has_problem
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.planning import plan_recipe
from fewstep.prediction import EDM
from fewstep.recipes import DistillRecipe, config, load_recipe, shipped_text
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.building.frozen_teachers import build_teacher, space_of
from fewstep.recipes.reading.source import validate
from fewstep.report import write_run_report
from fewstep.runs import compare, distill, evaluate, load, measure_many, write_reference
from fewstep.runs.loading import load_teacher
from fewstep.schedule import KarrasVE
from fewstep.studies import measure_shift
from fewstep.training import Silent
from fewstep.training.reporting.log import read_log

__all__ = ["without_syncing"]
DATA_FREE = (
    "mixture2d-disback",
    "mixture2d-diff-instruct",
    "digits-vsd",
    "digits-sds",
    "digits-diff-instruct",
    "digits-stf",
    "mixture2d-sid",
    "digits-reflow",
    "digits-kd",
    "digits-dmd",
)
IN_NEED = (
    "digits-pd",
    "digits-lcm",
    "digits-pcm",
    "digits-ctm",
    "digits-tcd",
    "digits-meanflow",
    "digits-rcm",
    "digits-ayf",
    "digits-tcm",
    "digits-moment",
    "digits-ect",
    "digits-perflow",
    "digits-add",
    "digits-dmd2",
    "digits-dmd2-ddil",
)


def without_data(name: str, **sections: object) -> DistillRecipe:
    values = yaml.safe_load(shipped_text(name))
    del values["data"]
    recipe = validate({**values, **sections}, "test")
    assert isinstance(recipe, DistillRecipe)
    return recipe


def written(name: str, folder: Path) -> Path:
    values = yaml.safe_load(shipped_text(name))
    del values["data"]
    values["training"] |= {"health_every": 2}
    values["evaluation"] |= {"samples": 30, "draws": 1, "teacher_steps": [2], "every": 2}
    (folder / "free.yaml").write_text(yaml.safe_dump(values))
    return folder / "free.yaml"


@pytest.mark.parametrize("name", ["mixture2d-disback", "digits-diff-instruct"])
def test_a_run_without_data_goes_the_whole_way(name, tmp_path):
    path, watcher = written(name, tmp_path), Silent()
    folder = distill(path, ["training.steps=6"], tmp_path / "run", listeners=[watcher])
    assert any("has no data" in said and "not measured" in said for said in watcher.said)
    distill(path, ["training.steps=9"], folder, resume=True)
    entries = read_log(folder / "metrics.jsonl")
    health = [entry for entry in entries if entry.get("probe") == "health"]
    assert health
    assert not any({"mismatch_over_bound", "spread_over_data", "saturation"} & set(entry) for entry in health)
    assert not any("fd" in entry for entry in entries)
    found, many = evaluate(folder), measure_many(folder, samples=20)
    assert set(found["left_out"]) >= {"fd", "halves_fd", "precision", "recall", "diversity", "mismatch"}
    assert found["student"]["1"]["nfe"] == 1.0
    assert "mismatch" not in found
    labelled = name.startswith("digits")
    assert ("accuracy" in found["student"]["1"]) == ("accuracy" in many) == ("is" in many) == labelled
    assert "left out: " in quality_table(found)
    assert "left out: " in measurement_table(many)
    assert json.loads((folder / "evaluation.json").read_text())["left_out"] == found["left_out"]
    student, teacher = load(folder), load_teacher(folder)
    assert (student.low, student.high) == (teacher.low, teacher.high)
    assert student(3).shape == (3, *student.shape)
    assert write_run_report(folder).is_file()
    assert not has_problem(examine(folder))
    for command, sentence in (
        (lambda: compare([folder, "x"]), "compare runs with data"),
        (lambda: write_reference(folder, tmp_path / "f.safetensors"), "no statistics of data"),
    ):
        with pytest.raises(UserError, match=sentence):
            command()


@pytest.mark.parametrize("name", DATA_FREE)
def test_methods_that_need_no_data_are_built_and_planned_without(name, tmp_path):
    parts = build_distillation(without_data(name), tmp_path)
    given = build_distillation(load_recipe(name), tmp_path)
    assert parts.data is None
    assert parts.space == given.space
    assert [stage.name for stage in parts.stages] == [stage.name for stage in given.stages]
    assert all(torch.equal(value, given.student.state_dict()[key]) for key, value in parts.student.state_dict().items())


@pytest.mark.parametrize("name", IN_NEED)
def test_methods_that_need_data_refuse_in_one_sentence(name, tmp_path):
    recipe = without_data(name)
    with pytest.raises(
        UserError,
        match=r"'method\.kind: .*' with these states and terms is trained on data, and the recipe has no 'data' "
        r"section; add one",
    ):
        build_distillation(recipe, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert has_problem(examine(tmp_path / "mine.yaml"))


def test_a_plan_needs_no_data_either(tmp_path):
    for name in ("mixture2d-diff-instruct", "cifar10-diff-instruct"):
        assert plan_recipe(written(name, tmp_path), ["training.steps=100"]).evaluations == pytest.approx(
            plan_recipe(name, ["training.steps=100"]).evaluations
        )


def test_a_shipped_teacher_has_the_range_of_its_data():
    for name in ("digits", "mixture2d"):
        recipe = load_recipe(f"{name}-diff-instruct")
        assert isinstance(recipe, DistillRecipe)
        assert recipe.data is not None
        assert space_of(recipe.teacher, build_teacher(recipe.teacher, None)) == recipe.data.open().space


def test_a_file_says_its_range_or_asks_for_data(tmp_path):
    network = build({"kind": "residual-mlp", "width": 8, "depth": 1, "classes": 0})
    teacher, choice = (
        NetworkDenoiser(network, KarrasVE(), EDM(0.5), EDMInputs(0.5), (2,), 0),
        config.FileTeacher(kind="file", path=str(tmp_path / "t.safetensors")),
    )
    save_model(tmp_path / "t.safetensors", teacher, {"range": [-3.0, 3.0]})
    assert space_of(choice, teacher) == SampleSpace((2,), -3.0, 3.0, 0)
    save_model(tmp_path / "t.safetensors", teacher)
    with pytest.raises(
        UserError, match="does not say in which range its samples are, and the recipe has no 'data' section"
    ):
        space_of(choice, teacher)
    with pytest.raises(UserError, match=r"'teacher\.kind: untrained' takes its shape and classes from data"):
        build_teacher(
            config.UntrainedTeacher.of(
                {"kind": "untrained", "model": load_recipe("mixture2d-teacher").model_dump()["model"]}
            ),
            None,
        )


def test_shift_asks_for_data(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(written("digits-sds", tmp_path).read_text())
    with pytest.raises(UserError, match="'shift' compares samples with data"):
        measure_shift(run)
