"""A file that was exchanged under its name is found by its content; a path means what it meant,
from everywhere.
"""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_kit import called, failed
from PIL import Image
from pydantic import TypeAdapter

from fewstep.denoisers import save_model
from fewstep.doctor import examine
from fewstep.errors import UserError
from fewstep.keeping.run_identity import run_of
from fewstep.networks.kinds.network_files import load_network, save_network
from fewstep.recipes import config, shipped_text
from fewstep.recipes.config.models import build_generator
from fewstep.recipes.reading.places import named_in
from fewstep.runs import RunFolder, compare, distill, measure_many, write_reference
from fewstep.system.files import read_tensors, write_tensors
from fewstep.training import Silent

WEIGHTS = resources.files("fewstep.zoo") / "weights"
START = {"kind": "fastgan", "latent": 8, "width": 4, "seed": 0, "start": "start.safetensors"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def _draw(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a recipe that names a file of each kind by a relative path, and a run of
    it.
    """
    project = tmp_path_factory.mktemp("made") / "project"
    for index in range(20):
        (project / "images" / str(index % 10)).mkdir(parents=True, exist_ok=True)
        _draw(project / "images" / str(index % 10) / f"{index:02}.png", index)
    for name, file in (("digits", "teacher"), ("digits-features", "features")):
        shutil.copy(str(WEIGHTS / f"{name}.safetensors"), project / f"{file}.safetensors")
    choice = TypeAdapter(config.StudentChoice).validate_python({**START, "start": None})
    save_model(project / "start.safetensors", build_generator(choice, (1, 8, 8), 10, 7, "student.kind"))
    values = yaml.safe_load(shipped_text("digits-fastgan-diff-instruct"))
    values |= {"student": START, "teacher": {"kind": "file", "path": "teacher.safetensors"}}
    values["data"] = {"kind": "images", "path": "images", "channels": 1, "size": 8}
    values["training"] |= {"steps": 2, "batch": 4, "checkpoint_every": 1, "log_every": 1, "health_every": 1000}
    features = {"kind": "classifier", "path": "features.safetensors"}
    values["evaluation"] |= {"features": features, "samples": 20, "draws": 1, "every": 1, "teacher_steps": [1]}
    (project / "mine.yaml").write_text(yaml.safe_dump(values))
    result = called("distill", "mine.yaml", "--out", "run", cwd=project)
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture
def project(made, tmp_path):
    """A copy, whose run names the copied files."""
    path = tmp_path / "project"
    shutil.copytree(made, path)
    recipe = path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(made), str(path)))
    # As if the run had been made here: the ledger knows the recipe as it was written there.
    (path / "run" / "written.jsonl").unlink()
    _as_of(path, lambda state: {**state, "run": run_of(RunFolder(path / "run").read_recipe())})
    return path


def _as_of(project: Path, change) -> None:
    """Rewrites what the checkpoints say."""
    for path in (project / "run" / "checkpoints").glob("*.safetensors"):
        tensors, state = read_tensors(path)
        write_tensors(path, tensors, change(state))


def _exchange(path: Path) -> None:
    """Other content of the same kind under the same name."""
    if path.is_dir():
        _draw(path / "0" / "00.png", 99)
    elif path.name == "features.safetensors":
        network = load_network(path)
        network.load_state_dict({name: value * 1.5 for name, value in network.state_dict().items()})
        save_network(path, network)
    else:
        tensors, metadata = read_tensors(path)
        write_tensors(
            path,
            {name: value * 1.5 if value.is_floating_point() else value for name, value in tensors.items()},
            metadata,
        )


def _record(project: Path, run: str = "run") -> dict:
    return json.loads((project / run / "origins.json").read_text())


def _resume(project: Path, *more: str):
    return called("distill", "mine.yaml", *more, "--set", "training.steps=3", "--out", "run", "--resume", cwd=project)


def test_a_run_keeps_checksums_of_all_that_it_names(project):
    recipe = RunFolder(project / "run").read_recipe()
    record = _record(project)
    assert set(record["digests"]) == {"teacher.path", "student.start", "evaluation.features.path", "data"}
    assert record["changed"] == record["unknown"] == []
    newest = max((project / "run" / "checkpoints").glob("*.safetensors"))
    assert read_tensors(newest)[1]["origins"] == record["digests"]
    files = ("teacher.safetensors", "start.safetensors", "features.safetensors", "images")
    assert {each.value for each in named_in(recipe) if each.value} == {str(project / name) for name in files}


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("teacher.safetensors", "teacher.path"),
        ("start.safetensors", "student.start"),
        ("features.safetensors", "evaluation.features.path"),
    ],
)
def test_other_weights_under_the_same_name_refuse_to_resume(project, file, key):
    before = _record(project)["digests"]
    kept = (project / file).read_bytes()
    _exchange(project / file)
    sentence = failed(_resume(project))
    assert f"another '{key}'" in sentence
    assert before[key][:12] in sentence
    # The checkpoint knows it as well, where the folder's record is lost.
    (project / "run" / "origins.json").unlink()
    result = _resume(project)
    assert result.returncode == 2
    sentence = result.stderr.splitlines()[-1]
    assert f"what '{key}' names was exchanged" in sentence
    assert before[key][:12] in sentence
    (project / "run" / "origins.json").unlink(missing_ok=True)
    (project / file).write_bytes(kept)
    assert _resume(project).returncode == 0


def test_changed_data_is_said_and_recorded(project):
    _exchange(project / "images")
    before = _record(project)["digests"]
    result = _resume(project)
    assert result.returncode == 0, result.stderr
    assert "the data is not what the run began with" in result.stderr
    record = _record(project)
    assert record["changed"] == ["data"]
    assert record["digests"]["data"] != before["data"]
    assert {**record["digests"], "data": before["data"]} == before
    shutil.copytree(project / "run", project / "other")
    with pytest.raises(UserError, match="its data changed while it was trained"):
        compare([project / "run", project / "other"])


def test_a_file_that_was_moved_is_the_same(project):
    (project / "moved").mkdir()
    for name in ("teacher.safetensors", "features.safetensors", "images"):
        (project / name).rename(project / "moved" / name)
    places = {
        "teacher.path": "teacher.safetensors",
        "data.path": "images",
        "evaluation.features.path": "features.safetensors",
    }
    settings = [part for key, name in places.items() for part in ("--set", f"{key}=moved/{name}")]
    result = _resume(project, *settings)
    assert result.returncode == 0, result.stderr
    named = {each.key: each.value for each in named_in(RunFolder(project / "run").read_recipe())}
    assert {key: named[key] for key in places} == {key: str(project / "moved" / name) for key, name in places.items()}
    _exchange(project / "moved" / "teacher.safetensors")
    shutil.copy(project / "moved" / "teacher.safetensors", project / "third.safetensors")
    sentence = failed(_resume(project, *settings, "--set", "teacher.path=third.safetensors"))
    assert "'teacher.path' differs" in sentence
    assert str(project / "third.safetensors") in sentence


def test_a_saved_recipe_names_the_same_files_from_elsewhere(project, tmp_path):
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    (tmp_path / "link").symlink_to(project)
    assert called("sample", project / "run", "--teacher", "-n", "4", "--steps", "1", cwd=elsewhere).returncode == 0
    settings = ["--set", "training.steps=3", "--out", project / "run", "--resume"]
    assert called("distill", project / "run" / "recipe.yaml", *settings, cwd=elsewhere).returncode == 0
    # Other words for the same files.
    paths = {
        "teacher.path": "teacher.safetensors",
        "student.start": "start.safetensors",
        "data.path": "images",
        "evaluation.features.path": "features.safetensors",
    }
    words = [part for key, name in paths.items() for part in ("--set", f"{key}=../../link/{name}")]
    result = called("distill", project / "mine.yaml", *words, *settings, cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    # The same words for other files.
    sentence = failed(called("distill", project / "mine.yaml", *settings, cwd=elsewhere))
    assert "'teacher.path' differs" in sentence
    assert str(elsewhere / "teacher.safetensors") in sentence
    (project / "teacher.safetensors").unlink()
    sentence = failed(called("evaluate", project / "run", cwd=elsewhere))
    assert f"{project / 'teacher.safetensors'}: there is no such file" in sentence


def test_a_run_of_an_earlier_version_goes_on_and_has_checksums_from_then_on(project):
    """Its paths are as they were typed, its checkpoints are known by one of them, and there are no
    checksums.
    """
    folder = RunFolder(project / "run")
    folder.recipe.write_text(folder.recipe.read_text().replace(f"{project}/", ""))
    known_by = run_of(folder.read_recipe())
    _as_of(project, lambda state: {key: value for key, value in {**state, "run": known_by}.items() if key != "origins"})
    folder.origins.unlink()
    result = _resume(project)
    assert result.returncode == 0, result.stderr
    assert "has no checksum of data, evaluation.features.path, student.start, teacher.path" in result.stderr
    assert run_of(folder.read_recipe()) == known_by
    assert folder.read_recipe().student.start == "start.safetensors"
    assert folder.read_recipe().teacher.path == str(project / "teacher.safetensors")
    assert _record(project)["unknown"] == ["data", "evaluation.features.path", "student.start", "teacher.path"]
    newest = max(folder.checkpoints.glob("*.safetensors"))
    assert read_tensors(newest)[1]["origins"] == _record(project)["digests"]
    _exchange(project / "teacher.safetensors")
    assert "another 'teacher.path'" in failed(_resume(project))


@pytest.mark.parametrize(("file", "key"), [("features.safetensors", "evaluation.features.path"), ("images", "data")])
def test_figures_of_other_features_or_data_are_not_compared(project, file, key):
    distill(project / "run" / "recipe.yaml", ["training.seed=1"], project / "same")
    assert compare([project / "run", project / "same"]).notes == ()
    _exchange(project / file)
    distill(project / "run" / "recipe.yaml", ["training.seed=1"], project / "other")
    with pytest.raises(UserError, match=f"cannot be compared: their '{key}' is not the same") as caught:
        compare([project / "run", project / "same", project / "other"])
    for run in ("run", "other"):
        assert _record(project, run)["digests"][key][:12] in str(caught.value)


def test_figures_that_cannot_be_checked_are_compared_and_it_is_said(project, tmp_path):
    shutil.copytree(project / "run", project / "old")
    (project / "old" / "origins.json").unlink()
    result = called("compare", project / "run", project / "old", "--out", tmp_path / "plot.png")
    assert result.returncode == 0, result.stderr
    assert f"{project / 'old'}: has no checksum of evaluation.features.path, data" in result.stderr
    recipe = (project / "old" / "recipe.yaml").read_text()
    fourier = yaml.safe_dump(
        {
            **yaml.safe_load(recipe),
            "evaluation": {**yaml.safe_load(recipe)["evaluation"], "features": {"kind": "fourier"}},
        }
    )
    (project / "old" / "recipe.yaml").write_text(fourier)
    with pytest.raises(UserError, match=r"'evaluation\.features' differs in their recipes"):
        compare([project / "run", project / "old"])


def test_results_say_what_was_measured(project):
    digests = _record(project)["digests"]
    measured = {key: digests[key] for key in ("teacher.path", "evaluation.features.path", "data")}
    reference = write_reference(project / "run", project / "reference.safetensors")
    assert called("evaluate", project / "run", "--draws", "1").returncode == 0
    assert json.loads((project / "run" / "evaluation.json").read_text())["origins"] == {
        "digests": measured,
        "exchanged": [],
    }
    _exchange(project / "teacher.safetensors")
    watcher = Silent()
    found = measure_many(project / "run", 10, reference=reference, metrics=["fd"], listeners=[watcher])
    assert found["origins"]["exchanged"] == ["teacher.path"]
    assert any("'teacher.path' names was exchanged since the run was trained" in said for said in watcher.said)
    _exchange(project / "features.safetensors")
    with pytest.raises(UserError, match="statistics in the feature"):
        measure_many(project / "run", 10, reference=reference, metrics=["fd"])


def test_the_doctor_finds_what_was_exchanged(project):
    def said() -> dict[str, str]:
        return {each.level: each.sentence for each in examine(project / "run") if each.place.endswith("origins.json")}

    assert said() == {"ok": "has checksums of data, evaluation.features.path, student.start, teacher.path."}
    _exchange(project / "images")
    assert "what 'data' names was exchanged since" in said()["note"]
    (project / "images").rename(project / "gone")
    assert f"'data': {project / 'images'}: there is no such image set" in said()["note"]
    _exchange(project / "teacher.safetensors")
    assert "what 'teacher.path' names was exchanged since" in said()["problem"]
    (project / "run" / "origins.json").unlink()
    assert "made before checksums were kept" in said()["note"]


def test_a_record_that_cannot_be_read_is_one_sentence(project):
    (project / "run" / "origins.json").write_text("[1")
    assert "origins.json: cannot be read as checksums" in failed(_resume(project))
