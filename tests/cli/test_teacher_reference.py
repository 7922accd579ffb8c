"""Runs that are measured against their teacher's own samples: what the distance is, that it is
computed once, and that the teacher is guided as the recipe says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from fewstep.command.tables.evaluations import measurement_table, quality_table
from fewstep.errors import UserError
from fewstep.keeping.run_identity import run_of
from fewstep.metrics import FeatureStatistics, frechet_distance, load_reference
from fewstep.random import Key
from fewstep.recipes import dump, load_recipe, shipped_text
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.building.pretrain import build_pretraining
from fewstep.report import write_run_report
from fewstep.runs import RunFolder, compare, distill, evaluate, load, load_teacher, measure_many, write_reference
from fewstep.runs.teacher_reference import STAGE, teacher_moments
from fewstep.training import Silent
from fewstep.training.reporting.log import read_log

SAMPLES, STEPS = 130, 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def written(folder: Path, name: str = "digits-diff-instruct", **evaluation: object) -> Path:
    values = yaml.safe_load(shipped_text(name))
    del values["data"]
    values["evaluation"] |= {"samples": 60, "draws": 1, "teacher_steps": [STEPS], "every": 2, **evaluation}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "free.yaml").write_text(yaml.safe_dump(values))
    return folder / "free.yaml"


REFERENCE = {"kind": "teacher", "samples": SAMPLES}


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Silent]:
    folder, heard = tmp_path_factory.mktemp("run"), Silent()
    source = written(folder, reference=REFERENCE, guidance=2.0)
    return distill(source, ["training.steps=2", "training.batch=8"], folder / "run", listeners=[heard]), heard


def moments_of(folder: Path):
    recipe, teacher = RunFolder(folder).read_distill_recipe(), load_teacher(folder)
    return teacher_moments(recipe, teacher, recipe.evaluation.features.space(teacher.space), None)


def test_the_distance_is_to_the_teachers_samples(run):
    folder, heard = run
    # Computed when the student was first measured, and kept.
    assert len([said for said in heard.said if "are computed now, and kept in" in said]) == 1
    assert any("Frechet distances are to the teacher's samples" in said for said in heard.said)
    later = Silent()
    found = evaluate(folder, listeners=[later])
    assert not any("are computed now" in said for said in later.said)

    teacher, space = load_teacher(folder, 2.0), moments_of(folder).space
    numbers = (torch.arange(SAMPLES) % 10).sort().values[Key(0, STAGE).permutation("order", SAMPLES)]
    drawn = teacher.draw(Key(0, STAGE), SAMPLES, numbers, STEPS).clamp(-1, 1)
    reference = FeatureStatistics.of(space.extract(drawn))
    labels = (torch.arange(60) % 10).sort().values
    for model, sampler, steps in (("student", load(folder), 1), ("teacher", teacher, STEPS)):
        samples = sampler.draw(Key(0, "evaluation", 0), 60, labels, steps).clamp(-1, 1)
        expected = frechet_distance(FeatureStatistics.of(space.extract(samples)), reference)
        assert found[model][str(steps)]["fd"] == pytest.approx(expected, rel=1e-5)
    # The teacher is not measured on the noise of its own reference.
    assert found["teacher"][str(STEPS)]["fd"] > 0.1
    assert found["teacher"][str(STEPS)]["fd"] < found["student"]["1"]["fd"]
    assert found["reference"]["teacher"] == {
        "samples": SAMPLES,
        "steps": STEPS,
        "guidance": 2.0,
        "moments": moments_of(folder).described["moments"],
    }
    assert "fd" not in found["left_out"]
    assert set(found["left_out"]) >= {"halves_fd", "recall", "diversity", "mismatch"}
    table = quality_table(found)
    assert f"Frechet distances are to {SAMPLES} samples of the teacher at {STEPS} steps, guided by 2" in table
    assert f"teacher, {STEPS} steps, guided by 2" in table
    assert write_run_report(folder).is_file()


def test_the_reference_is_no_evaluation_of_the_teacher(run, monkeypatch, tmp_path):
    """Also where it must be computed first: 3 steps of two evaluations each."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    heard = Silent()
    found = evaluate(run[0], listeners=[heard])
    assert any("are computed now" in said for said in heard.said)
    assert found["teacher"][str(STEPS)]["nfe"] == 2 * STEPS
    assert found["student"]["1"]["nfe"] == 1


def test_distances_are_taken_while_the_run_goes_on_and_runs_are_compared_by_them(run, tmp_path):
    folder, _ = run
    logged = [entry["fd"] for entry in read_log(folder / "metrics.jsonl") if entry.get("probe") == "evaluation"]
    assert len(logged) >= 2
    assert logged[-1] == pytest.approx(evaluate(folder)["student"]["1"]["fd"], rel=1e-4)
    for name, changed in (("other", {"reference": {**REFERENCE, "samples": 50}}), ("data", {})):
        evaluation = {"reference": REFERENCE, "guidance": 2.0, **changed} if changed else {}
        source = written(tmp_path / name, **evaluation)
        overrides = ["training.steps=2", "training.batch=8", *([] if changed else ["data={kind: digits}"])]
        other = distill(source, overrides, tmp_path / name / "run")
        with pytest.raises(UserError, match=r"'evaluation\.reference' differs in their recipes"):
            compare([folder, other])
    again = distill(
        written(tmp_path / "again", reference=REFERENCE, guidance=2.0),
        ["training.steps=2", "training.batch=8", "training.seed=1"],
        tmp_path / "again" / "run",
    )
    assert len(compare([folder, again]).runs) == 2


def test_many_samples_and_a_file_of_the_reference(run, tmp_path):
    folder, _ = run
    found = measure_many(folder, samples=60, metrics=["fd"])
    assert found["fd"] == pytest.approx(evaluate(folder)["student"]["1"]["fd"], rel=1e-5)
    assert found["reference"]["teacher"]["samples"] == found["reference"]["count"] == SAMPLES
    assert "against the teacher's samples" in measurement_table(found)
    file = write_reference(folder, tmp_path / "teacher.safetensors")
    assert load_reference(file).statistics.count == SAMPLES
    assert measure_many(folder, samples=60, reference=file, metrics=["fd"])["fd"] == found["fd"]
    assert measure_many(folder, samples=60, model="teacher", steps=STEPS, metrics=["fd"])["fd"] == pytest.approx(
        evaluate(folder)["teacher"][str(STEPS)]["fd"], rel=1e-5
    )


def test_what_decides_the_samples_is_what_the_moments_are_found_by(run, tmp_path):
    folder, _ = run
    recipe, teacher = RunFolder(folder).read_distill_recipe(), load_teacher(folder)
    space = recipe.evaluation.features.space(teacher.space)

    def key_of(**evaluation: object) -> str:
        changed = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=evaluation)})
        return teacher_moments(changed, teacher, space, None).described["moments"]

    reference, solver = recipe.evaluation.reference, recipe.evaluation.solver
    assert reference is not None
    usual = key_of()
    others = [
        key_of(seed=1),
        key_of(guidance=1.5),
        key_of(teacher_steps=[4]),
        key_of(reference=reference.model_copy(update={"samples": 131})),
        key_of(solver=load_recipe("digits-disback", ["evaluation.solver.rule=heun"]).evaluation.solver),
        key_of(features=load_recipe("digits-disback", ["evaluation.features={kind: fourier}"]).evaluation.features),
    ]
    assert len({usual, *others}) == 1 + len(others)
    assert solver.rule.name != "heun"
    # What does not decide them: how the student is measured, and what is given in its place.
    assert key_of(samples=7, draws=2, every=9, student_steps=[4]) == usual
    assert key_of(guidance=None, reference=reference.model_copy(update={"guidance": 2.0, "steps": STEPS})) == usual
    assert key_of(guidance=None) == key_of(guidance=1.0) != usual


def test_the_first_samples_stand_for_all_and_are_the_same_however_many_are_drawn(run):
    moments = moments_of(run[0])
    assert torch.bincount(moments.numbers[:60], minlength=10).min() >= 1
    whole = torch.cat(list(moments.features(0, SAMPLES)))
    assert torch.allclose(moments.drawn(60), whole[:60], rtol=1e-4, atol=1e-4)
    assert torch.allclose(moments.compute(Silent()).mean, whole.double().mean(0), rtol=1e-6)


def test_guidance_of_one_is_no_guidance_bit_for_bit(run):
    plain = load_teacher(run[0])
    assert plain.guided(None) is plain
    assert plain.guided(1.0) is plain
    labels = torch.arange(4)
    twice = replace(plain, denoiser=plain.guided(1.0).denoiser)
    assert torch.equal(plain.draw(Key(0), 4, labels, 2), twice.draw(Key(0), 4, labels, 2))
    assert not torch.equal(plain.draw(Key(0), 4, labels, 2), plain.guided(3.0).draw(Key(0), 4, labels, 2))


def test_a_recipe_that_says_neither_is_spelled_and_known_as_before():
    usual = load_recipe("digits-diff-instruct")
    assert "reference" not in dump(usual)
    assert "guidance" not in usual.model_dump(mode="json")["evaluation"]
    other = load_recipe("digits-diff-instruct", ["evaluation.reference={kind: teacher}", "evaluation.guidance=3.0"])
    assert other.evaluation.reference.samples == 5000
    assert run_of(other) == run_of(usual)
    assert load_recipe_of(dump(other)) == other


def load_recipe_of(text: str):
    from fewstep.recipes.reading.source import validate

    return validate(yaml.safe_load(text), "test")


def test_what_cannot_be_is_refused(tmp_path):
    for key, said in (
        ("guidance=2.0", "'evaluation.guidance' needs a teacher with classes or prompts"),
        ("reference={kind: teacher, guidance: 2.0}", "'evaluation.reference.guidance' needs a teacher with classes"),
    ):
        with pytest.raises(UserError, match=said):
            build_distillation(load_recipe("mixture2d-diff-instruct", [f"evaluation.{key}"]), tmp_path)
    with pytest.raises(UserError, match=r"'evaluation\.guidance' needs a teacher with classes or prompts"):
        build_pretraining(load_recipe("mixture2d-teacher", ["evaluation.guidance=2.0"]))
    with pytest.raises(UserError, match=r"'evaluation\.reference\.kind: teacher' is for a distillation"):
        build_pretraining(load_recipe("digits-teacher", ["evaluation.reference={kind: teacher}"]))
    for wrong in ("{kind: data}", "{kind: teacher, samples: 1}", "{kind: teacher, steps: 0}", "{samples: 5}"):
        with pytest.raises(UserError, match=r"evaluation\.reference"):
            load_recipe("digits-diff-instruct", [f"evaluation.reference={wrong}"])
    with pytest.raises(UserError, match=r"evaluation\.guidance"):
        load_recipe("digits-diff-instruct", ["evaluation.guidance=-1.0"])
