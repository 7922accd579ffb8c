"""A pipeline of classes (DiT) as a teacher: latents, a codec, labels, and no prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from family_folder_kit import class_pipeline
from family_kit import CASES
from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.planning.plan import plan_on_gpus
from fewstep.recipes.reading.source import validate
from fewstep.runs import distill, evaluate, export, load, load_teacher
from fewstep.training import Listener
from fewstep.zoo.pipelines import load_pipeline, open_pipeline

CLASSES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "dit"
    class_pipeline().save_pretrained(path)
    return path


def recipe_of(folder: Path, **changes: Any) -> dict[str, Any]:
    times, optimizer = {"kind": "uniform", "low": 0.02, "high": 0.98}, {"lr": 1e-4}
    fake = {"kind": "learned", "times": times, "weighting": {"kind": "eps"}, "optimizer": optimizer, "updates": 1}
    return {
        "task": "distill",
        "teacher": {"kind": "pipeline", "path": str(folder)},
        "student": {"kind": "copy"},
        "method": {
            "kind": "distribution-matching",
            "weighting": {"kind": "dmd"},
            "times": times,
            "optimizer": optimizer,
            "fake": fake,
        },
        "target": {
            "kind": "backtracked",
            "nodes": 3,
            "record": {"kind": "every", "steps": 3},
            "switch": {"kind": "every", "steps": 4},
            "optimizer": optimizer,
            "guidance": {"kind": "constant", "scale": 3.0},
        },
        "states": {"kind": "usual"},
        "reflected": {"kind": "none"},
        "data": None,
        "training": {"steps": 20, "batch": 2, "seed": 0, "log_every": 5, "checkpoint_every": 4, "health_every": 10},
        "evaluation": {
            "features": {"kind": "fourier"},
            "samples": 8,
            "draws": 1,
            "every": 20,
            "teacher_steps": [4],
            "student_steps": [1],
            "solver": {"rule": "euler", "grid": {"kind": "uniform"}},
            "batch": 4,
            "pictures": 2,
            "guidance": 3.0,
        },
        **changes,
    }


def written(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def ended(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("run")
    return distill(written(at / "r.yaml", recipe_of(folder)), out=at / "run")


class Leaves(Listener):
    """Interrupts a run at a step."""

    def step(self, step: int, note: str) -> None:
        if step == 11:
            raise KeyboardInterrupt


def test_a_run_that_was_left_is_the_whole_run(folder: Path, ended: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "r.yaml", recipe_of(folder))
    with pytest.raises(KeyboardInterrupt):
        distill(file, out=tmp_path / "left", listeners=[Leaves()])
    again = distill(file, out=tmp_path / "left", resume=True)
    for name in ("student.safetensors", "samples/final.png"):
        assert (ended / name).read_bytes() == (again / name).read_bytes()


def test_samples_are_pictures_of_classes(folder: Path, ended: Path) -> None:
    student, teacher = load(ended), load_teacher(ended, 3.0)
    assert (student.classes, teacher.classes) == (CLASSES, CLASSES)
    latents = student(3, classes=4)
    assert latents.shape == (3, *CASES["dit"].shape)
    codec = open_pipeline(folder).codec()
    pictures = student.pictured(3, classes=4)
    torch.testing.assert_close(pictures, codec.decode(latents).clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert not torch.equal(pictures, student.pictured(3, classes=5))
    # The file alone makes latents.
    assert torch.equal(load(ended / "student.safetensors")(3, classes=4), latents)


def test_guidance_goes_away_from_no_class(folder: Path, ended: Path) -> None:
    denoiser, guided = open_pipeline(folder).denoiser(), load_teacher(ended, 3.0)
    x, t = CASES["dit"].noise(), torch.tensor([0.7, 0.4], dtype=torch.float64)
    labels = torch.tensor([1, 2])
    with torch.no_grad():
        told, untold = (denoiser(x, t, Condition(labels=each)) for each in (labels, torch.full_like(labels, -1)))
        found = guided.denoiser(x, t, Condition(labels=labels))
    torch.testing.assert_close(found, untold + 3.0 * (told - untold), rtol=1e-5, atol=1e-4)


def test_is_measured_and_planned(folder: Path, ended: Path) -> None:
    found = evaluate(ended)
    assert (found["student"]["1"]["nfe"], found["teacher"]["4"]["nfe"]) == (1, 8)
    recipe = validate(recipe_of(folder), "a recipe")
    assert plan_on_gpus(recipe, Path("plan")) is not None  # type: ignore[arg-type]


def test_prompts_of_classes_are_refused(folder: Path, ended: Path, tmp_path: Path) -> None:
    prompts = {"kind": "list", "texts": ["a red fox"]}
    with pytest.raises(UserError, match="has 'prompts', and its teacher is told no prompts"):
        distill(written(tmp_path / "r.yaml", recipe_of(folder, prompts=prompts)), out=tmp_path / "run")
    with pytest.raises(UserError, match="told no prompts; leave the prompts out"):
        load(ended, prompts=["a red fox"])
    with pytest.raises(UserError, match="is told classes, and its pipeline has no text encoder"):
        load_pipeline(folder)
    with pytest.raises(UserError, match="the student's network is a DiT"):
        export(ended, tmp_path / "out")


def test_data_of_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    data = {"kind": "waves", "shape": [3, 16, 16], "classes": 4}
    with pytest.raises(UserError, match="the teacher knows 10 classes, and the data has 4"):
        distill(written(tmp_path / "r.yaml", recipe_of(folder, data=data)), out=tmp_path / "run")


def test_data_of_the_same_classes_becomes_latents(folder: Path, tmp_path: Path) -> None:
    data = {"kind": "waves", "shape": [3, 16, 16], "classes": CLASSES}
    run = distill(
        written(tmp_path / "r.yaml", recipe_of(folder, data=data)), ["training.steps=12"], out=tmp_path / "run"
    )
    assert load(run).pictured(2).shape == (2, 3, 16, 16)


def test_an_activation_that_diffusers_does_not_know_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    """Its constructor ends with a name that was never bound."""
    changed = shutil.copytree(folder, tmp_path / "dit")
    config = changed / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "activation_fn": "novel"}))
    opened = open_pipeline(changed)
    for reads in (opened.sketch, opened.denoiser):
        with pytest.raises(UserError, match="cannot be built with the arguments that are given") as raised:
            reads()
        assert "\n" not in str(raised.value)
