"""Runs that earlier versions made: loaded, sampled, evaluated and resumed by this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.denoisers import load_model
from fewstep.keeping.run_identity import run_of
from fewstep.random import GENERATOR, Key
from fewstep.recipes import load_recipe
from fewstep.runs import distill, evaluate, load
from fewstep.system.files import read_tensors
from fewstep.targets import DegradationPath
from fewstep.training import Silent

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
RUNS = ("disback", "digits-dmd2")
every_run = pytest.mark.parametrize(("version", "name"), [(version, name) for version in VERSIONS for name in RUNS])


@pytest.fixture(autouse=True)
def drawn_as_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of these runs is the first generator's, which still draws what lasts; purposes were
    then nobody's.
    """
    monkeypatch.setattr(Key, "normal", Key.lasting)
    monkeypatch.setattr(Key, "purpose_of", lambda _, purpose: purpose)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the first version, where it may be written to; its runs name files relative to
    it.
    """
    folder = tmp_path / VERSIONS[0]
    shutil.copytree(GOLDEN / VERSIONS[0], folder)
    monkeypatch.chdir(folder)
    return folder


def expected(version: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / version / "expected" / "expected.json").read_text(encoding="utf-8"))
    return found[name]


@every_run
def test_a_student_gives_the_samples_that_it_gave(version: str, name: str) -> None:
    sampler = load(GOLDEN / version / name)
    labels = torch.arange(4) if name == "digits-dmd2" else None
    samples = sampler.draw(Key(0, "golden"), 4, labels, 1)
    assert samples.flatten().tolist() == pytest.approx(expected(version, name)["samples"], abs=1e-5)


@every_run
def test_an_evaluation_gives_the_figures_that_it_gave(copied: Path, version: str, name: str) -> None:
    found = evaluate(copied / name, draws=1)
    for steps, figures in expected(version, name)["evaluation"]["student"].items():
        for key in ("fd", "precision", "recall", "diversity", "nfe"):
            assert found["student"][steps][key] == pytest.approx(figures[key], rel=1e-3, abs=1e-6), (steps, key)


def test_a_teacher_and_its_path_are_read(copied: Path) -> None:
    teacher, _ = load_model(copied / "teacher" / "model.safetensors")
    path = DegradationPath.open(copied / "disback" / "path", teacher)
    assert path.last == 4
    assert set(path.read(4)) == set(teacher.state_dict())


def test_a_run_goes_on_as_it_would_have(copied: Path) -> None:
    overrides = [
        'teacher={"kind":"file","path":"teacher/model.safetensors"}',
        # What the shipped recipe said then.
        *(f"{section}.times={{kind: log-normal, mean: 0.0, std: 1.2}}" for section in ("method", "method.fake")),
        "method.optimizer.decay=0.5",
        *(
            "student.width=16",
            "student.depth=2",
            "target.record.steps=5",
            "target.switch.steps=5",
            "training.steps=140",
        ),
        *("training.batch=32", "training.checkpoint_every=40", "training.log_every=10", "training.health_every=50"),
        *("evaluation.samples=500", "evaluation.every=50"),
    ]
    listener = Silent()
    distill("mixture2d-disback", overrides, out="disback", resume=True, listeners=[listener])
    # Its checkpoint is from before checkpoints named their generator.
    assert f"its draws come from generator 1, this version's from generator {GENERATOR}" in " ".join(listener.said)
    now, _ = read_tensors(copied / "disback" / "student.safetensors")
    then, _ = read_tensors(copied / "expected" / "disback-140.safetensors")
    assert set(now) == set(then)
    for key, value in then.items():
        torch.testing.assert_close(now[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_a_shipped_recipe_is_known_as_it_was(version: str) -> None:
    """By this its checkpoints are told from another run's.

    Recipes that were changed on purpose (CHANGELOG.md) are left out.
    """
    then = json.loads((GOLDEN / version / "expected" / "runs.json").read_text(encoding="utf-8"))
    assert {name: run_of(load_recipe(name)) for name in then} == then
