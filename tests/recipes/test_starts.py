"""Students and fake scores that start from a file or a run: weights, refusals, checksums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import BACKTRACKED, LEARNED, MATCHING, fitted, teacher_file, tiny
from test_methods import same, same_student

from fewstep.denoisers import NetworkDenoiser, load_model, save_model
from fewstep.doctor import examine
from fewstep.errors import UserError
from fewstep.keeping.run_identity import run_of
from fewstep.planning.sketch import sketch
from fewstep.planning.twin import twin
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.checksums import origins_of
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.reading.places import anchored, named_in
from fewstep.recipes.reading.source import dump
from fewstep.runs import distill
from fewstep.system.caches import content_digest
from fewstep.training import Silent
from fewstep.training.saving.checkpoint import FileCheckpoint

# A learned fake score, and DMD2's critic on its trunk, whose head is no part of it.
DMD2 = {**MATCHING, "adversarial": {"kind": "fake-trunk"}}


def starting(
    student: str | Path | None = None, fake: str | Path | None = None, method: dict[str, Any] = MATCHING, **others: Any
) -> DistillRecipe:
    """A tiny recipe with these starts."""
    own = {} if student is None else {"start": str(student)}
    score = {} if fake is None else {"start": str(fake)}
    return tiny({**method, "fake": {**LEARNED, **score}}, student={"kind": "copy", **own}, **others)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A model of the teacher's description with other weights."""
    model, _ = load_model(teacher_file())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.01)
    save_model(tmp_path_factory.mktemp("other") / "other.safetensors", model)
    return tmp_path_factory.getbasetemp() / "other0" / "other.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of DMD2."""
    folder = tmp_path_factory.mktemp("dmd2")
    recipe = starting(method=DMD2, checkpoint_every=2)
    (folder / "recipe.yaml").write_text(dump(recipe))
    return distill(folder / "recipe.yaml", out=folder / "run", listeners=[Silent()])


# Weights


@pytest.mark.parametrize("target", ["fixed", "backtracked"])
def test_the_teachers_own_weights_are_no_other_start(target, tmp_path) -> None:
    """Bit for bit, of the student, of the fake score, and of both."""
    plain, file = starting(target=target), teacher_file()
    for index, (student, fake) in enumerate(((file, None), (None, file), (file, file))):
        assert same(plain, starting(student, fake, target=target), tmp_path / str(index))


def test_other_weights_are_another_run(other, tmp_path) -> None:
    plain = starting()
    assert not same_student(plain, starting(other), tmp_path / "student")
    assert not same_student(plain, starting(None, other), tmp_path / "fake")


def test_a_start_is_the_file_bit_for_bit_and_is_trained(other, tmp_path) -> None:
    recipe, (saved, _) = starting(other, other), load_model(other)
    parts = build_distillation(recipe, tmp_path)
    assert equal(weights(parts.student), weights(saved))
    assert equal(weights(parts.fake), weights(saved))
    assert equal(weights(parts.average.average), weights(saved))
    assert not equal(weights(parts.teacher), weights(saved))
    fitted(recipe, parts, tmp_path)
    assert not any(torch.equal(value, saved.state_dict()[name]) for name, value in parts.student.named_parameters())


def test_a_path_is_recorded_from_where_the_fake_score_starts(other, tmp_path) -> None:
    parts = build_distillation(starting(None, other, target=BACKTRACKED), tmp_path)
    (record,) = parts.stages[0].phases
    assert record.network is parts.fake
    assert equal(weights(record.network), weights(load_model(other)[0]))


def test_a_run_lends_its_student_and_the_fake_score_of_its_newest_checkpoint(run, tmp_path) -> None:
    parts = build_distillation(starting(run, run), tmp_path)
    assert equal(weights(parts.student), weights(load_model(run / "student.safetensors")[0]))
    newest = max((run / "checkpoints").iterdir())
    fake = FileCheckpoint(newest).read("network/fake/denoiser.", {})
    assert equal(weights(parts.fake), fake)
    assert not equal(weights(parts.fake), weights(parts.student))
    # The same by the checkpoint's own path, and another by an older one's.
    assert equal(weights(build_distillation(starting(None, newest), tmp_path).fake), fake)
    oldest = min((run / "checkpoints").iterdir())
    assert oldest != newest
    assert not equal(weights(build_distillation(starting(None, oldest), tmp_path).fake), fake)


def test_a_run_of_disback_lends_its_fake_score(tmp_path) -> None:
    recipe = starting(target=BACKTRACKED)
    parts = build_distillation(recipe, tmp_path / "run")
    fitted(recipe, parts, tmp_path / "run")
    again = build_distillation(starting(None, tmp_path / "run"), tmp_path)
    assert equal(weights(again.fake), weights(parts.fake))


# Refusals


def test_what_is_no_start_is_refused(other, run, tmp_path) -> None:
    model, _ = load_model(other)
    assert isinstance(model, NetworkDenoiser)
    wider = build_distillation(
        tiny(MATCHING, student={"kind": "network", "network": {"kind": "residual-mlp", "width": 9, "depth": 1}}),
        tmp_path,
    ).student
    save_model(tmp_path / "wider.safetensors", wider)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("nothing")
    latent = tiny({**MATCHING, "fake": {"kind": "delta"}})
    parts = build_distillation(latent, tmp_path / "sds")
    fitted(latent, parts, tmp_path / "sds")
    student, fake = (
        [
            ("wider.safetensors", r"the recipe's student \('network\.width' differs\); .*'student\.start' to null"),
            ("nowhere.safetensors", r"nowhere\.safetensors"),
            ("text.safetensors", r"text\.safetensors"),
            ("empty", r"holds neither student\.safetensors nor model\.safetensors"),
        ],
        [
            ("wider.safetensors", r"the recipe's fake score \('network\.width' differs\); .*'method\.fake\.start: te"),
            ("nowhere.safetensors", r"nowhere\.safetensors"),
            ("empty", "holds no checkpoint, in which a run's fake score is"),
            ("sds", "is the checkpoint of a run that trains no fake score"),
        ],
    )
    for name, sentence in student:
        with pytest.raises(UserError, match=sentence + r".*\.$"):
            build_distillation(starting(tmp_path / name), tmp_path)
    for name, sentence in fake:
        with pytest.raises(UserError, match=sentence + r".*\.$"):
            build_distillation(starting(None, tmp_path / name), tmp_path)


def test_a_checkpoint_of_another_network_is_refused_by_its_first_tensor(run, tmp_path) -> None:
    recipe = tiny({**MATCHING, "fake": {**LEARNED, "start": str(run)}}, digits=True)
    with pytest.raises(UserError, match=r"network 'fake/denoiser': lacks tensor"):
        build_distillation(recipe, tmp_path)


# By which a run knows them


def test_starts_are_known_by_content(other, run, tmp_path) -> None:
    recipe = starting(run, other)
    digests = origins_of(recipe, {"student", "method"})
    assert digests == {
        "student.start": content_digest(run / "student.safetensors"),
        "method.fake.start": content_digest(other),
    }
    newest = max((run / "checkpoints").iterdir())
    assert origins_of(starting(None, run), {"method"}) == {"method.fake.start": content_digest(newest)}
    # What is no path is none.
    for start in ("teacher", "random"):
        usual = starting(None, start)
        assert origins_of(usual, {"student", "method"}) == {}
        assert anchored(usual) == usual
        assert usual.method.fake.start == start


def test_runs_without_starts_are_known_as_before() -> None:
    plain = load_recipe("digits-disback")
    assert "start" not in plain.model_dump(mode="json")["student"]
    assert run_of(load_recipe("digits-disback", ["student.start=null"])) == run_of(plain)
    assert run_of(load_recipe("digits-disback", ["student.start=a.safetensors"])) != run_of(plain)
    assert run_of(load_recipe("digits-disback", ["method.fake.start=a.safetensors"])) != run_of(plain)


def test_relative_starts_are_paths_below_the_working_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("digits-disback", ["student.start=runs/dmd2", "method.fake.start=runs/dmd2"])
    named = {each.key: each.value for each in named_in(recipe) if each.value}
    assert named["student.start"] == named["method.fake.start"] == str(tmp_path / "runs" / "dmd2")


def test_a_run_does_not_go_on_from_other_starts(other, tmp_path) -> None:
    """Either is noticed, and named."""
    files = {"student.start": tmp_path / "student.safetensors", "method.fake.start": tmp_path / "fake.safetensors"}
    for path in files.values():
        path.write_bytes(other.read_bytes())
    (tmp_path / "mine.yaml").write_text(dump(starting(*files.values(), checkpoint_every=2)))
    folder = distill(tmp_path / "mine.yaml", out=tmp_path / "run", listeners=[Silent()])
    assert files.keys() <= json.loads((folder / "origins.json").read_text())["digests"].keys()
    for key, path in files.items():
        path.write_bytes(teacher_file().read_bytes())
        with pytest.raises(UserError, match=rf"was made with another '{key}'"):
            distill(tmp_path / "mine.yaml", ["training.steps=6"], tmp_path / "run", resume=True, listeners=[Silent()])
        path.write_bytes(other.read_bytes())
    distill(tmp_path / "mine.yaml", ["training.steps=6"], tmp_path / "run", resume=True, listeners=[Silent()])


# Plans, twins, doctor


def test_a_plan_and_a_twin_need_no_weights(other, run, tmp_path) -> None:
    context, built = sketch(starting(other, run), tmp_path)
    assert next(context.student.model.parameters()).is_meta
    assert [phase.name for phase in built.stages[0].phases] == ["student", "fake"]
    recipe = load_recipe("cifar10-disback", ["student.start=nowhere", "method.fake.start=nowhere.safetensors"])
    assert isinstance(recipe, DistillRecipe)
    small = twin(recipe, 4)
    assert small.student.start is None
    assert small.method.fake.start == "teacher"


def test_the_doctor_looks_at_starts(other, run, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(dump(starting(other, run)))
    found = {finding.place: finding for finding in examine(path)}
    assert found["student.start"].level == found["method.fake.start"].level == "ok"
    path.write_text(dump(starting(tmp_path / "nowhere.safetensors", tmp_path / "nowhere")))
    found = {finding.place: finding for finding in examine(path)}
    assert found["student.start"].level == found["method.fake.start"].level == "problem"
