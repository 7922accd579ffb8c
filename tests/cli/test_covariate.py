"""``fewstep shift`` and what ``evaluate`` and ``sample`` say of students of several steps and of
guided ones, on tiny runs.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cli_kit import small_recipe

import fewstep.runs.loading
from fewstep.command.entry import run_command
from fewstep.command.tables.evaluations import quality_table
from fewstep.command.tables.shifts import shift_table
from fewstep.denoisers import Guided, Rescheduled, load_model
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.metrics import manifold_scores
from fewstep.metrics.mismatch import assessed_mismatch
from fewstep.random import Key
from fewstep.recipes import shipped_text
from fewstep.recipes.building.frozen_teachers import build_teacher
from fewstep.recipes.building.parts import build_evaluator
from fewstep.report import write_run_report
from fewstep.report.words import number
from fewstep.runs import distill, evaluate, load, load_guided, load_teacher
from fewstep.runs.evaluate import _worse_with_more
from fewstep.runs.loading import guided_samplers
from fewstep.schedule import RectifiedFlow
from fewstep.solvers import EULER, solve
from fewstep.studies import measure_shift
from fewstep.studies.covariate import build_relay
from fewstep.studies.shift import Stochastic, mixed_sampler

WITHIN = ("class_diversity", "class_diversity_ratio")
BREADTH = ("precision", "recall", "density", "coverage", "diversity")
PLANE = {"kind": "random-mixture", "components": 10, "half_width": 4.0, "std": 0.3, "samples": 300, "seed": 0}


def _distilled(folder: Path, name: str, method: dict[str, object], plane: bool = True) -> Path:
    """A run of a few steps, of the plane's teacher or of the digits'."""
    values = yaml.safe_load(shipped_text(name))
    values["method"].update(method)
    values["training"].update(steps=8, batch=8, log_every=1, health_every=1000)
    values["evaluation"].update(samples=120, draws=2, every=1000, teacher_steps=[6], student_steps=[2])
    if plane:
        values.update(teacher={"kind": "shipped", "name": "mixture2d"}, data=PLANE)
        values["evaluation"]["features"] = {"kind": "fourier", "count": 16, "bandwidth": 1.0}
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return distill(folder / "tiny.yaml", out=folder / "run")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the entry point in this process: its exit code, what it printed, and what it complained
    of.
    """

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_command()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def halved(tmp_path_factory) -> Path:
    """A progressive student of 2 steps, shifted with a teacher of 6."""
    run = _distilled(tmp_path_factory.mktemp("pd") / "pd", "digits-pd", {"start": 8, "steps": 2, "parts": 1})
    measure_shift(run, 6, 120)
    return run


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Path:
    return _distilled(
        tmp_path_factory.mktemp("flow") / "flow",
        "digits-reflow",
        {"pairs": 16, "distil": 0.0, "steps": 2, "solver_steps": 2, "flow_steps": 2},
    )


@pytest.fixture(scope="module")
def guided(tmp_path_factory) -> Path:
    """A digits student told the scale, used at 1.5 unless told otherwise."""
    return _distilled(
        tmp_path_factory.mktemp("lcm") / "lcm",
        "digits-lcm",
        {"steps": 2, "guidance": {"low": 1.0, "high": 3.0, "sample_at": 1.5}},
        plane=False,
    )


def _shift(run: Path) -> dict:
    return json.loads((run / "shift.json").read_text())


# shift


def test_the_tables_have_their_rows_and_figures(halved):
    found = _shift(halved)
    assert set(found) == {
        *("student_steps", "teacher_steps", "samples", "draws", "guidance", "target_guidance", "origins"),
        *("times", "levels"),
        *("mixing", "teacher_then_student", "student_then_teacher", "sensitivity"),
    }
    assert (found["student_steps"], found["teacher_steps"], found["samples"], found["draws"], found["guidance"]) == (
        2,
        6,
        120,
        1,
        None,
    )
    student = load(halved)
    assert found["times"] == student.sampling.times(student.schedule, student.prior.time).tolist()
    assert found["levels"] == pytest.approx([40 * time for time in found["times"]])
    assert [row["probability"] for row in found["mixing"]] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for table in ("teacher_then_student", "student_then_teacher"):
        assert [row["time"] for row in found[table]] == found["times"]
    for row in (*found["mixing"], *found["teacher_then_student"], *found["student_then_teacher"]):
        # The plane has no classifier, so there is no accuracy.
        assert set(row) - {"probability", "time"} == {
            "fd",
            "fd_spread",
            "recall",
            "coverage",
            "diversity",
            "diversity_ratio",
        }
    # The teacher makes all of the last mixture.
    assert found["mixing"][-1]["diversity_ratio"] == 1.0
    alone = found["mixing"][0]
    assert alone["diversity_ratio"] == pytest.approx(alone["diversity"] / found["mixing"][-1]["diversity"])
    assert set(found["sensitivity"]) == {"times", "student_once", "teacher_once", "student", "samples"}
    assert found["sensitivity"]["times"] == found["times"][:-1]


def test_the_command_prints_tables_or_one_object(halved, tmp_path, command):
    copy = tmp_path / "run"
    shutil.copytree(halved, copy)
    (copy / "shift.json").unlink()
    code, out, _ = command("shift", copy, "--teacher-steps", "6", "--samples", "120", "--json")
    assert code == 0
    assert json.loads(out) == _shift(copy) == _shift(halved)
    code, out, _ = command("shift", copy, "--teacher-steps", "2", "--samples", "20", "--draws", "2")
    assert code == 0
    assert "teacher: 2 DDIM steps, student: 2; 20 samples a draw, 2 draws" in out
    assert out.count("Frechet distance") == 3
    assert "Covariate shift" in (copy / "report.html").read_text()


def test_without_the_teacher_it_is_what_evaluate_says_of_the_student(halved):
    found, entry = _shift(halved), evaluate(halved, draws=1)["student"]["2"]
    for row in (found["mixing"][0], found["teacher_then_student"][0], found["student_then_teacher"][-1]):
        assert {name: row[name] for name in ("fd", "recall", "diversity")} == {
            name: entry[name] for name in ("fd", "recall", "diversity")
        }


def test_without_the_student_it_is_the_teachers_ddim_on_the_same_noise(halved):
    recipe = RunFolder(halved).read_distill_recipe()
    data = recipe.data.open()
    teacher, student, evaluator = (
        build_teacher(recipe.teacher, data),
        load(halved),
        build_evaluator(recipe.evaluation, data),
    )
    fine = student.sampling.times(student.schedule, student.prior.time, 6)

    def sample(key, rows, labels):
        with torch.no_grad():
            return solve(EULER, teacher, student.prior.at(key, "prior", rows, None).x, fine).clamp(data.low, data.high)

    expected = evaluator.describe(sample, 1)
    found = _shift(halved)
    for row in (found["mixing"][-1], found["teacher_then_student"][-1], found["student_then_teacher"][0]):
        assert (row["fd"], row["recall"], row["diversity"]) == (
            expected.quality.fd,
            expected.breadth.recall,
            expected.breadth.diversity,
        )


def test_rows_between_the_ends_are_mixed_generations(halved):
    recipe = RunFolder(halved).read_distill_recipe()
    data = recipe.data.open()
    relay = build_relay(halved, load(halved), build_teacher(recipe.teacher, data), 6)
    sampler = mixed_sampler(relay, Stochastic(0.4))
    expected = build_evaluator(recipe.evaluation, data).describe(
        lambda key, rows, labels: sampler(key, rows, labels).clamp(data.low, data.high), 1
    )
    assert _shift(halved)["mixing"][2]["fd"] == expected.quality.fd
    down, up = (_shift(halved)[name][1]["fd"] for name in ("teacher_then_student", "student_then_teacher"))
    assert len({down, up, _shift(halved)["mixing"][0]["fd"], _shift(halved)["mixing"][-1]["fd"]}) == 4


def test_the_teacher_takes_eight_steps_for_one_of_the_students_unless_told(halved):
    recipe = RunFolder(halved).read_distill_recipe()
    relay = build_relay(halved, load(halved), build_teacher(recipe.teacher, recipe.data.open()))
    assert (relay.transitions, relay.ratio, relay.guidance) == (2, 8, None)


def test_a_flow_is_paired_with_its_teacher_rescheduled(flow):
    recipe = RunFolder(flow).read_distill_recipe()
    student, teacher = load(flow), build_teacher(recipe.teacher, recipe.data.open())
    relay = build_relay(flow, student, teacher, 4)
    assert isinstance(relay.teacher, Rescheduled)
    assert isinstance(relay.teacher.schedule, RectifiedFlow)
    assert relay.teacher.denoiser is teacher
    assert torch.equal(mixed_sampler(relay, Stochastic(0.0))(Key(1), 30, None), student.draw(Key(1), 30, None, 2))
    # The flow starts from unit noise where no signal is left; the teacher's own samples come of it,
    # and they are data.
    data = recipe.data.open()
    ends = mixed_sampler(build_relay(flow, student, teacher, 40), Stochastic(1.0))(Key(1), 300, None)
    assert float(torch.cdist(ends, data.samples).min(1).values.median()) < 0.3
    result = measure_shift(flow, 4, 60)
    assert result["levels"][0] is None
    assert json.loads((flow / "shift.json").read_text())["levels"][0] is None
    assert "pure noise" in shift_table(result)


def test_a_guided_students_scale_is_passed_on_to_both(guided):
    recipe = RunFolder(guided).read_distill_recipe()
    student, teacher = load(guided), build_teacher(recipe.teacher, recipe.data.open())
    labels, key = torch.arange(20) % 10, Key(1)
    for scale in (1.5, 3.0):
        student = load(guided, scale)
        relay = build_relay(guided, student, teacher, 2)
        assert relay.guidance == scale
        assert torch.equal(mixed_sampler(relay, Stochastic(0.0))(key, 20, labels), student.draw(key, 20, labels, 2))
        with torch.no_grad():
            expected = solve(
                EULER, Guided(teacher, scale), student.prior.at(key, "prior", 20, labels).x, relay.fine, labels
            )
        torch.testing.assert_close(
            mixed_sampler(relay, Stochastic(1.0))(key, 20, labels), expected, rtol=1e-4, atol=1e-4
        )


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """An adapter on the scenes' teacher, guided by one scale that the student is not told, in
    latents.
    """
    folder = tmp_path_factory.mktemp("texts")
    values = yaml.safe_load(shipped_text("scenes-lcm"))
    values["method"].update(guidance=None, steps=2)
    values["target"] = {"kind": "fixed", "guidance": {"kind": "constant", "scale": 3.0}}
    values["student"] = {"kind": "lora", "rank": 2, "scale": 1.0, "first_timestep": 999, "first_sigma": None}
    values["data"].update(count=16)
    values["training"].update(steps=2, batch=4, log_every=1, health_every=1000)
    values["evaluation"].update(samples=12, draws=1, every=1000, teacher_steps=[4], student_steps=[2])
    values["evaluation"]["reference"] = {"kind": "teacher", "samples": 12, "steps": 2}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return distill(folder / "tiny.yaml", out=folder / "run")


@pytest.mark.slow
def test_text_is_shared_in_latents_and_measured_in_pictures(texts, tmp_path):
    found = measure_shift(texts, 4, 12)
    alone = evaluate(texts, draws=1)["student"]["2"]
    for row in (found["mixing"][0], found["teacher_then_student"][0], found["student_then_teacher"][-1]):
        assert row["fd"] == alone["fd"]
        assert row["prompt_accuracy"] == alone["prompt_accuracy"]["all"]
    # The teacher that the student has learnt from: guided.
    teacher = load_teacher(texts)
    student = load(texts)
    fine = student.sampling.times(student.schedule, student.prior.time, 4)
    numbers, key = torch.arange(12), Key(0, "evaluation", 0)
    start = student.prior.at(key, "prior", 12, numbers)
    with torch.no_grad():
        latents = solve(EULER, Guided(teacher.denoiser, 3.0, teacher.conditions), start.x, fine, start.condition)
    expected = teacher.codec.decode(latents)
    relay = replace(
        build_relay(texts, student, Guided(teacher.denoiser, 3.0, teacher.conditions), 4), codec=teacher.codec
    )
    torch.testing.assert_close(mixed_sampler(relay, Stochastic(1.0))(key, 12, numbers), expected, rtol=1e-4, atol=1e-4)
    shown = shift_table(found)
    assert "prompt accuracy" in shown
    assert "class accuracy" not in shown
    assert "-0" not in shown
    assert "teacher guided (constant: scale 3.0)" in shown
    copy = tmp_path / "run"
    shutil.copytree(texts, copy)
    assert "Prompt accuracy" in Path(write_run_report(copy)).read_text()


def test_what_has_no_time_to_switch_at_is_refused(halved, tmp_path, command):
    code, _, sentence = command("shift", halved, "--teacher-steps", "3")
    assert code == 2
    assert "a teacher of 3 steps does not meet a student of 2" in sentence
    one = _distilled(
        tmp_path / "one",
        "digits-reflow",
        {"pairs": 16, "solver_steps": 2, "flow_steps": 2, "distil": 0.5, "reflows": 1},
    )
    code, _, sentence = command("shift", one)
    assert code == 2
    assert "its student takes one step" in sentence
    assert sentence.count("\n") == 1
    assert not (one / "shift.json").exists()
    generator = distill(small_recipe(tmp_path / "small.yaml", steps=8), out=tmp_path / "generator")
    with pytest.raises(UserError, match="its student is a generator, which has no noise levels"):
        measure_shift(generator)
    with pytest.raises(UserError, match="is not a run folder"):
        measure_shift(tmp_path)


# evaluate and sample


def test_evaluate_tells_breadth_of_the_first_draw(halved):
    found = evaluate(halved)
    assert json.loads((halved / "evaluation.json").read_text())["student"] == found["student"]
    for entry in (found["teacher"]["6"], found["student"]["2"]):
        assert set(entry) == {"fd", "fd_spread", *BREADTH, *WITHIN, "nfe", "ms_per_image"}
    assert found["student"]["2"]["fd_spread"] > 0
    recipe, student = RunFolder(halved).read_distill_recipe(), load(halved)
    evaluator = build_evaluator(recipe.evaluation, recipe.data.open())
    labels = evaluator.data.proportional_labels(120)
    samples = student.draw(Key(0, "evaluation", 0), 120, labels, 2).clamp(student.low, student.high)
    expected = manifold_scores(evaluator.features(evaluator.data.samples), evaluator.features(samples))
    assert [found["student"]["2"][name] for name in BREADTH[:4]] == pytest.approx(
        [expected.precision, expected.recall, expected.density, expected.coverage]
    )
    table = quality_table(found)
    (line,) = [each for each in table.splitlines() if each.startswith("student, 2 steps ")]
    shown = ("class_diversity_ratio", "recall", "coverage", "diversity")
    assert line.split()[-6:-2] == [f"{found['student']['2'][name]:.3f}" for name in shown]
    # Five hundred samples without classes, on noise of their own.
    points = evaluator.features(student.draw(Key(0, "class-diversity"), 500, None, 2).clamp(student.low, student.high))
    apart = torch.cdist(points.double(), points.double()).sum() / (500 * 499)
    assert found["student"]["2"]["class_diversity"] == pytest.approx(float(apart), rel=1e-6)
    teacher = found["teacher"]["6"]
    assert teacher["class_diversity_ratio"] == 1.0
    share = found["student"]["2"]["class_diversity"] / teacher["class_diversity"]
    assert found["student"]["2"]["class_diversity_ratio"] == pytest.approx(share)
    page = write_run_report(halved).read_text()
    assert "Diversity a class, over the teacher&#39;s" in page
    assert f"{number(share)} times as diverse as the teacher&#39;s" in page
    assert "2 draws" in table


def test_a_student_of_several_steps_is_measured_in_more_and_what_is_worse_is_said(halved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(halved, run)
    found = evaluate(run, teacher_steps=[1], samples=60)
    assert list(found["student"]) == ["1", "2", "4", "8"]
    assert list(evaluate(run, teacher_steps=[1], student_steps=[2], samples=60)["student"]) == ["2"]
    rising = {str(steps): {**found["student"]["2"], "fd": float(steps), "fd_spread": 0.1} for steps in (1, 2, 4)}
    worse = _worse_with_more(rising, 3)
    assert [(each["more"], each["fewer"]) for each in worse["worse_with_more_steps"]] == [(2, 1), (4, 1)]
    told = "more steps are worse: 4 steps have a Frechet distance of 4.00, and 1 step has 1.00"
    assert told in quality_table({**found, **worse})
    (run / "evaluation.json").write_text(json.dumps({**found, **worse}))
    assert f"M{told[1:]}" in write_run_report(run).read_text()
    assert _worse_with_more(rising, 1) == {}


def test_the_mismatch_is_that_of_the_students_usual_steps(halved):
    found = evaluate(halved, teacher_steps=[1], student_steps=[1], draws=1)["mismatch"]
    recipe, student = RunFolder(halved).read_distill_recipe(), load(halved)
    data, key = recipe.data.open(), Key(0, "mismatch")
    expected = assessed_mismatch(build_teacher(recipe.teacher, data), student.draw(key, len(data), None, 2), None, key)
    assert list(found["assessed"]) == pytest.approx(list(expected.degrees), rel=1e-6)


def test_guidance_scales_are_measured_of_teacher_and_student(guided, halved, command):
    code, out, _ = command(
        "evaluate",
        guided,
        "--json",
        "--draws",
        "1",
        "--guidance",
        "1",
        "--guidance",
        "2.5",
        "--teacher-steps",
        "2",
        "--teacher-steps",
        "1",
    )
    assert code == 0
    found = json.loads(out)
    assert set(found["guidance"]) == {"1.0", "2.5"}
    for models in found["guidance"].values():
        assert {name: set(entries) for name, entries in models.items()} == {"teacher": {"2"}, "student": {"2"}}
        assert set(models["student"]["2"]) == {"fd", "fd_spread", "accuracy", *BREADTH, *WITHIN, "nfe", "ms_per_image"}
    assert found["guidance"]["1.0"]["teacher"]["2"]["fd"] == found["teacher"]["2"]["fd"]
    assert [found["guidance"][scale]["teacher"]["2"]["nfe"] for scale in ("1.0", "2.5")] == [2, 4]
    recipe, student = RunFolder(guided).read_distill_recipe(), load(guided, 2.5)
    expected = build_evaluator(recipe.evaluation, recipe.data.open()).measure(
        lambda key, n, labels: student.draw(key, n, labels, 2).clamp(-1, 1), 1
    )
    assert found["guidance"]["2.5"]["student"]["2"]["fd"] == expected.fd
    assert "student, 2 steps, guided by 2.5" in quality_table(found)
    assert "Student, 2 steps, guided by 2.5" in write_run_report(guided).read_text()
    with pytest.raises(UserError, match="guidance needs a teacher with classes"):
        evaluate(halved, draws=1, guidance=[2.0])


def test_a_student_without_a_scale_has_no_row_by_guidance(guided):
    student, teacher = load(guided), load_teacher(guided)
    assert set(guided_samplers(teacher, student, [2.0])["2.0"]) == {"teacher", "student"}
    plain = replace(student, sampling=replace(student.sampling, guidance=None))
    assert set(guided_samplers(teacher, plain, [2.0])["2.0"]) == {"teacher"}


def test_sample_takes_the_scale_of_a_guided_student(guided, halved, tmp_path, command, monkeypatch):
    assert load_guided(guided).sampling.guidance == 1.5
    assert load_guided(halved, 1.0).sampling.guidance is None
    with monkeypatch.context() as patch:
        read = []
        patch.setattr(fewstep.runs.loading, "load_model", lambda path: read.append(path) or load_model(path))
        assert load_guided(guided, 3.0).sampling.guidance == 3.0
        assert len(read) == 1
    assert (
        command(
            "sample", guided, "-n", "4", "--guidance", "3", "--out", tmp_path / "a.png", "--npz", tmp_path / "a.npz"
        )[0]
        == 0
    )
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        drawn = arrays["samples"]
    np.testing.assert_array_equal(drawn, load(guided, 3.0)(4).numpy())
    assert not np.array_equal(drawn, load(guided)(4).numpy())
    code, _, sentence = command("sample", halved, "--guidance", "2")
    assert code == 2
    assert "only the teacher can be guided" in sentence


# The report


def test_the_report_shows_the_tables_and_the_stages(halved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(halved, copy)
    evaluate(copy, draws=1)
    page, found = write_run_report(copy).read_text(), _shift(copy)
    assert 'id="shift"' in page
    assert 'href="#shift"' in page
    section = page[page.index('id="shift"') : page.index('id="curves"')]
    places = [
        section.index(title)
        for title in ("Teacher with probability", "Teacher down to", "Student down to", "Student throughout")
    ]
    assert places == sorted(places)
    assert section.count(f'<td class="n">{found["mixing"][2]["fd"]:.3g}</td>') >= 1
    assert all(name.capitalize() in page for name in BREADTH)
    # Rounds of 4 and of 2 steps: a stage mark each on the three large charts, and the loss by its
    # name; neither path nor gap.
    assert "Progressive loss of the student" in page
    assert "<title>stage: 2-steps, from step" in page
    assert "a stage begins" in page
    assert "the target moves" not in page
    assert 'id="path"' not in page
    assert "Gap between" not in page
    assert "Each made in 2 steps of the student." in page
    (copy / "shift.json").write_text("{")
    assert "shift.json could not be read; write it anew." in write_run_report(copy).read_text()
    (copy / "shift.json").unlink()
    assert 'id="shift"' not in write_run_report(copy).read_text()


def test_the_headline_is_at_the_steps_that_the_student_was_trained_for(halved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(halved, copy)
    entry = {"fd": 5.0, "fd_spread": 0.0, "nfe": 1, "ms_per_image": 1.0}
    by_steps = {str(steps): {**entry, "fd": float(10 - steps)} for steps in (1, 2, 4)}
    (copy / "shift.json").unlink()
    (copy / "evaluation.json").write_text(json.dumps({"teacher": {"35": entry}, "student": by_steps, "reference": {}}))
    page = write_run_report(copy).read_text()
    assert (
        "In 2 steps the student reaches a Frechet distance of 8 (6 in 4 steps and 9 in 1 step); the "
        "teacher has 5 in 35 steps." in page
    )
    assert "Recall" not in page
