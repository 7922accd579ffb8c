"""Teachers as recipes name them: each kind of file becomes the denoiser that its own reader gives,
and a plan's sketch is the same network.
"""

from __future__ import annotations

import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from release_kit import NETWORKS, release
from test_consistency_release import description, released
from test_diffusers_release import folder, rewritten

from fewstep.data.synthetic import waves
from fewstep.denoisers import save_model
from fewstep.doctor import examine
from fewstep.errors import UserError
from fewstep.planning.plan import plan_recipe
from fewstep.prediction import EDM
from fewstep.recipes import config, load_recipe
from fewstep.recipes.building.checksums import digest_of_named
from fewstep.recipes.building.frozen_teachers import build_teacher, sketched_teacher
from fewstep.recipes.reading.places import named_in
from fewstep.recipes.reading.source import validate
from fewstep.runs import distill
from fewstep.training import Silent
from fewstep.zoo import consistency_models, diffusers_models, nvidia

SONG = {key: value for key, value in NETWORKS["SongUNet"].items() if key != "in_channels"}


def teacher_of(section):
    """The section ``teacher`` of a recipe, read as a recipe is."""
    values = load_recipe("digits-diff-instruct").model_dump(mode="json")
    return validate({**values, "teacher": section}, "test").teacher


def same(one, other, side):
    x, t = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side), torch.tensor([0.01], dtype=torch.float64)
    labels = torch.tensor([0]) if one.classes else None
    return torch.equal(one(x, t, labels), other(x, t, labels))


@pytest.fixture
def known(monkeypatch):
    """Two small networks among those that are published."""
    monkeypatch.setattr(
        "fewstep.recipes.config.teachers.SETTINGS", {"small": SONG, "wider": {**SONG, "model_channels": 8}}
    )


@pytest.mark.usefixtures("known")
def test_an_nvidia_pickle_is_checked_against_what_the_recipe_says(tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(release("EDMPrecond", "SongUNet"))
    teacher = build_teacher(
        teacher_of({"kind": "nvidia", "path": str(path), "network": "small"}), waves((3, 8, 8), 0, 4)
    )
    assert same(teacher, nvidia.load(path), 8)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    sketch = sketched_teacher(
        teacher_of({"kind": "nvidia", "path": "nowhere.pkl", "network": "small"}), config.DigitsData(kind="digits")
    )
    assert {n: p.shape for n, p in sketch.state_dict().items()} == {n: p.shape for n, p in teacher.state_dict().items()}
    assert (sketch.shape, sketch.classes, sketch.prediction) == (teacher.shape, teacher.classes, teacher.prediction)
    assert next(sketch.parameters()).is_meta
    for wrong in ({"network": "wider"}, {"network": "small", "classes": 5}):
        with pytest.raises(
            UserError,
            match=r"network\.pkl: is not the network '(small|wider)' with [05] classes \('.*' differs\); set "
            r"'teacher\.network'",
        ):
            build_teacher(teacher_of({"kind": "nvidia", "path": str(path), **wrong}), waves((3, 8, 8), 0, 4))
    with pytest.raises(UserError, match="its SHA-256 is"):
        build_teacher(
            teacher_of({"kind": "nvidia", "path": str(path), "network": "small", "sha256": "0" * 64}),
            waves((3, 8, 8), 0, 4),
        )


def test_a_consistency_models_checkpoint_is_read_as_the_network_that_the_recipe_names(tmp_path, monkeypatch):
    whole, named = released(True, 0), description(True, 0)
    monkeypatch.setattr(
        "fewstep.recipes.config.teachers.SETTINGS",
        {"small": {key: value for key, value in named.items() if key != "classes"}},
    )
    path = tmp_path / "network.pt"
    torch.save(whole.tensors, path)
    side = named["img_resolution"]
    teacher = build_teacher(
        teacher_of({"kind": "consistency-models", "path": str(path), "network": "small"}), waves((3, side, side), 0, 4)
    )
    assert same(teacher, consistency_models.load_as(path, named, EDM(0.5)), side)


def test_a_diffusers_folder_is_a_teacher(tmp_path):
    path, _ = folder(tmp_path / "pipeline", DDPMScheduler())
    loaded = diffusers_models.load(path)
    teacher = build_teacher(teacher_of({"kind": "diffusers", "path": str(path)}), waves(loaded.shape, 0, 4))
    assert same(teacher, loaded, loaded.shape[-1])


def test_a_teacher_of_random_weights_is_a_function_of_its_seed():
    section = {
        "kind": "untrained",
        "model": {
            "kind": "denoiser",
            "network": {"kind": "small-unet", "channels": 3, "width": 8, "depth": 1},
            "schedule": {"kind": "karras-ve"},
        },
    }
    data = waves((3, 8, 8), 2, 4)
    one, again, other = (build_teacher(teacher_of({**section, "seed": seed}), data).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), again.values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_file_that_is_not_there_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(
        UserError, match=r"model\.safetensors: there is no such file; make it by 'fewstep pretrain emoji32-teacher'"
    ):
        build_teacher(
            teacher_of({"kind": "file", "path": str(tmp_path / "model.safetensors"), "recipe": "emoji32-teacher"}),
            waves((3, 32, 32), 9, 9),
        )


def test_a_teacher_of_another_shape_than_the_data_is_refused(tmp_path):
    section = {
        "kind": "untrained",
        "model": {
            "kind": "denoiser",
            "network": {"kind": "small-unet", "channels": 3, "width": 8, "depth": 1},
            "schedule": {"kind": "karras-ve"},
        },
    }
    made = build_teacher(teacher_of(section), waves((3, 8, 8), 2, 4))
    save_model(tmp_path / "model.safetensors", made)
    with pytest.raises(
        UserError,
        match=r"makes samples of shape \(3, 8, 8\) in 2 classes, the data has shape \(3, 8, 8\) and 3 classes",
    ):
        build_teacher(teacher_of({"kind": "file", "path": str(tmp_path / "model.safetensors")}), waves((3, 8, 8), 3, 6))


def test_a_diffusers_section_says_variant_subfolder_and_classes(tmp_path):
    path, network = folder(tmp_path / "pipeline", DDPMScheduler(100), classes=11)
    network.conv_out.weight.add_(0.5)
    network.save_pretrained(path / "unet_ema", variant="fp16")
    section = {"kind": "diffusers", "path": str(path)}
    data = waves((3, 8, 8), 10, 20)
    with pytest.raises(
        UserError,
        match=r"in 11 classes, .* 10 classes; set 'teacher\.classes' to 10 if its last embedding is 'no class'",
    ):
        build_teacher(teacher_of(section), data)
    usual = build_teacher(teacher_of({**section, "classes": 10}), data)
    chosen = teacher_of({**section, "classes": 10, "subfolder": "unet_ema", "variant": "fp16"})
    average = build_teacher(chosen, data)
    assert usual.classes == average.classes == 10
    assert torch.allclose(average.network.leave.weight, usual.network.leave.weight + 0.5)
    assert sketched_teacher(chosen, None).classes == 10
    # The checksum is of what the keys choose.
    digests = [
        digest_of_named(next(named_in(choice)))
        for choice in (teacher_of(section), teacher_of({**section, "classes": 10}), chosen)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert any("clip_sample" in remark for remark in chosen.remarks())
    for key, value in (("subfolder", "../elsewhere"), ("subfolder", "/etc"), ("variant", "a/b"), ("classes", 0)):
        with pytest.raises(UserError, match=rf"teacher\.{key}"):
            teacher_of({**section, key: value})


class Listening(Silent):
    """Keeps what a run says."""

    def __init__(self):
        self.heard = []

    def say(self, sentence):
        self.heard.append(sentence)


def test_a_run_of_a_diffusers_folder_is_examined_planned_and_distilled(tmp_path):
    """With classes and "no class": what is chosen and left out is said by the run and by
    ``doctor``.
    """
    path, _ = folder(tmp_path / "pipeline", DDPMScheduler(100, 1e-3, 0.2), classes=11)
    (path / "unet").rename(path / "unet_ema")
    values = load_recipe("digits-diff-instruct").model_dump(mode="json")
    recipe = tmp_path / "recipe.yaml"
    features = {**values["evaluation"], "features": {"kind": "fourier"}, "samples": 20, "every": 100}
    sections = {
        "teacher": {"kind": "diffusers", "path": str(path), "classes": 10},
        "data": {"kind": "waves", "shape": [3, 8, 8], "classes": 10, "samples": 40},
    }
    recipe.write_text(yaml.safe_dump({**values, **sections, "evaluation": features}))
    found = [(finding.level, finding.sentence) for finding in examine(recipe) if finding.place == "teacher.path"]
    assert [level for level, _ in found] == ["ok", "note", "note"]
    said = [sentence for _, sentence in found[1:]]
    assert "'unet_ema', an average over training, is taken" in said[0]
    assert "clip_sample of its sampler is left out" in said[1]
    assert plan_recipe(recipe, []).settings
    watcher = Listening()
    distill(recipe, ["training.steps=2", "training.batch=4"], tmp_path / "run", listeners=[watcher])
    assert [sentence for sentence in watcher.heard if sentence in said] == said
    rewritten(path / "scheduler" / "scheduler_config.json", beta_start="0.1")
    (problem,) = (finding for finding in examine(recipe) if finding.place == "teacher.path")
    assert problem.level == "problem"
    assert "has '0.1' for beta_start" in problem.sentence
