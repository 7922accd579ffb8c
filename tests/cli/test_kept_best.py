"""``--best``: the best student that a run kept, in every command that takes a run's student; and
what a recipe that cannot keep one is told.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_kit import called, failed, small_recipe

import fewstep as fs
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.planning.plan import plan_recipe
from fewstep.report import write_run_report
from fewstep.runs import compare, distill, evaluate
from fewstep.runs.export import export_adapter
from fewstep.training.reporting.log import read_log

KEEPS = "training.keep_best={measure: fd, patience: 3}"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with an adapter that loses what it had learnt, and ends by its patience."""
    base = tmp_path_factory.mktemp("best")
    values = yaml.safe_load(small_recipe(base / "small.yaml", steps=200).read_text())
    values["student"] = {"kind": "lora", "rank": 2, "first_sigma": 3.0}
    values["target"] = {"kind": "fixed"}
    values["method"]["optimizer"]["lr"] = 0.02
    values["evaluation"]["every"] = 5
    (base / "small.yaml").write_text(yaml.safe_dump(values))
    result = called("distill", base / "small.yaml", "--set", KEEPS, "--out", base / "run")
    assert result.returncode == 0, result.stderr
    found = RunFolder(base / "run").read_best()
    assert f"student.best.safetensors is the best, of step {found['step']}" in result.stdout
    assert "'training.keep_best.patience': the last 3 measurements found no better student" in result.stderr
    return base / "run"


def test_the_best_student_is_another_than_the_last_and_says_of_which_step_it_is(made):
    found, log = RunFolder(made).read_best(), read_log(made / "metrics.jsonl")
    entries = [entry for entry in log if entry.get("probe") == "best"]
    assert entries[-1]["ends"] == 1
    assert entries[-1]["step"] == found["step"] + 15 < 200
    assert found["measure"] == "fd"
    last, best = fs.load(made), fs.load(made, which="best")
    assert not torch.equal(last(10), best(10))
    # The draw that is told has the quality of the evaluation's own, which is of other noise.
    told = next(entry["fd"] for entry in log if entry.get("probe") == "evaluation" and entry["step"] == found["step"])
    assert found["figure"] == pytest.approx(told, rel=0.2)


def test_commands_take_it_and_say_which_they_use(made, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    said = f"the student of step {RunFolder(run).read_best()['step']}, fd "
    drawn = called("sample", run, "-n", "6", "--best", "--npz", tmp_path / "best.npz")
    assert said in drawn.stderr
    assert "--best and --teacher" in called("sample", run, "--best", "--teacher").stderr
    plain = called("sample", run, "-n", "6", "--npz", tmp_path / "last.npz")
    assert said not in plain.stderr
    assert (tmp_path / "best.npz").read_bytes() != (tmp_path / "last.npz").read_bytes()
    for flags in ((), ("--best",)):
        result = called("evaluate", run, "--draws", "1", "--json", *flags)
        assert result.returncode == 0, result.stderr
        assert (said in result.stderr) is bool(flags)
    last, best = (json.loads((run / f"evaluation{part}.json").read_text()) for part in ("", ".best"))
    assert last["teacher"]["5"]["fd"] == best["teacher"]["5"]["fd"]
    assert last["student"]["1"]["fd"] > best["student"]["1"]["fd"]
    assert "best" not in last
    assert best["best"] == RunFolder(run).read_best()
    assert f"of step {best['best']['step']}" in called("evaluate", run, "--draws", "1", "--best").stdout
    page = write_run_report(run).read_text()
    assert "Best student, 1 step" in page
    assert "on noise that did not choose it" in page
    assert "after 3 measurements without a better student" in page
    adapters = [export_adapter(run, tmp_path / f"{which}.safetensors", "peft", which) for which in ("last", "best")]
    assert adapters[0].read_bytes() != adapters[1].read_bytes()


def test_runs_are_compared_by_their_best(made, tmp_path):
    other = Path(shutil.copytree(made, tmp_path / "other"))
    found = compare([made, other], which="best")
    step = RunFolder(made).read_best()["step"]
    assert [run.kept and run.kept[0] for run in found.runs] == [step, step]
    assert found.runs[0].level < compare([made, other]).runs[0].level
    assert (
        "has no evaluation that can be read, so that the diversity"
        in called("compare", made, other, "--out", tmp_path / "p.png").stdout
    )
    entry = evaluate(other, [1], [1], 1)["student"]["1"]
    breadth = {
        "recall": entry["recall"],
        "coverage": entry["coverage"],
        "diversity_ratio": entry["class_diversity_ratio"],
    }
    assert compare([made, other]).as_json()[str(other)]["breadth"] == breadth
    # What was found of the last student says nothing of the best.
    assert compare([made, other], which="best").as_json()[str(other)]["breadth"] == {}
    shown = called("compare", made, other, "--out", tmp_path / "p.png").stdout
    assert all(f"{value:.3f}" in shown for value in breadth.values())
    (other / "evaluation.json").write_text("[1, 2")
    assert compare([made, other]).as_json()[str(other)]["breadth"] == {}
    table = called("compare", made, other, "--best", "--out", tmp_path / "plot.png")
    assert f"at {step}" in table.stdout
    assert f"of step {step}" in table.stderr
    RunFolder(other).best.unlink()
    assert "has no student.best.safetensors" in failed(called("compare", made, other, "--best", "--out", "plot.png"))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("{measure: fd, patience: 0}", "'training.keep_best.patience'"),
        ("{measure: prompt-accuracy}", "'training.keep_best.measure: prompt-accuracy' cannot be measured"),
        ("{measure: kid}", "'training.keep_best.measure'"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_a_sentence(tmp_path, setting, sentence):
    recipe = small_recipe(tmp_path / "small.yaml")
    result = called("distill", recipe, "--set", f"training.keep_best={setting}", "--out", tmp_path / "run")
    assert sentence in failed(result)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_distance_needs_data_and_a_diversity_does_not(tmp_path):
    quick = ("data=null", "training.steps=8", "training.batch=8", "evaluation.every=4", "evaluation.samples=50")
    recipe = small_recipe(tmp_path / "small.yaml", steps=8)
    with pytest.raises(UserError, match=r"'training\.keep_best\.measure: fd' cannot be measured: .*data"):
        distill(recipe, (*quick, "training.keep_best={measure: fd}"), tmp_path / "refused")
    folder = distill(recipe, (*quick, "training.keep_best={measure: diversity}"), tmp_path / "run")
    assert RunFolder(folder).read_best()["figure"] > 0
    with pytest.raises(UserError, match="a pretraining has none"):
        fs.pretrain("mixture2d-teacher", ["training.steps=2", "training.keep_best={}"], tmp_path / "teacher")


def test_a_run_without_a_best_student_says_so(tmp_path):
    folder = distill(small_recipe(tmp_path / "small.yaml", steps=8), (), tmp_path / "run")
    for command in ("sample", "evaluate"):
        sentence = failed(called(command, folder, "--best"))
        assert "keeps its best student where its recipe has 'training.keep_best'" in sentence
    with pytest.raises(UserError, match="no folder of a run"):
        fs.load(folder / "student.safetensors", which="best")


def test_what_is_kept_is_in_the_plan_and_no_earlier_run_has_another_name(made):
    plain, keeping = (plan_recipe("digits-disback", settings) for settings in ((), ("training.keep_best={}",)))
    (best,) = [part for part in keeping.parts if part.role == "best student"]
    assert keeping.checkpoint_bytes - plain.checkpoint_bytes == best.bytes > 0
    assert keeping.settings[0].state - plain.settings[0].state == best.bytes
    assert "keep_best" not in yaml.safe_load((made.parent / "small.yaml").read_text())["training"]


def test_a_finished_run_that_is_given_more_steps_goes_on_keeping(tmp_path):
    """The last measurement of a run is beside its cadence: a run that goes on forgets it, and ends
    as the longer run does.
    """
    recipe = small_recipe(tmp_path / "small.yaml", steps=40)
    keeps = ("training.keep_best={}", "evaluation.every=7", "evaluation.samples=60", "target={kind: fixed}")
    short = distill(recipe, (*keeps, "training.steps=20"), tmp_path / "run")
    first = RunFolder(short).best.read_bytes()
    distill(recipe, (*keeps, "training.steps=40"), tmp_path / "run", resume=True)
    distill(recipe, (*keeps, "training.steps=40"), tmp_path / "whole")
    assert RunFolder(tmp_path / "whole").best.read_bytes() == RunFolder(short).best.read_bytes() != first
    assert evaluate(short, [1], [1], 1, which="best")["best"]["step"] > 20
