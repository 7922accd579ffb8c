"""Students of another architecture: generators trained by a game, students that start from a file,
and distillations into them, bit for bit where there is something to equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import (
    BACKTRACKED,
    IMAGE_NETWORK,
    MATCHING,
    OPTIMIZER,
    STUDENT_SETTINGS,
    fitted,
    sampler_of,
    tiny,
    without_syncing,
)
from test_methods import contents, lines_of, same, same_student
from torch.nn.functional import softplus

from fewstep.denoisers import Generator, NetworkDenoiser, load_model, save_model
from fewstep.denoisers.model_files import describe_model
from fewstep.errors import UserError
from fewstep.networks import FastGAN
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, PretrainRecipe, dump, load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.building.pretrain import Pretraining, build_pretraining
from fewstep.recipes.reading.source import validate
from fewstep.runs import RunFolder, load
from fewstep.runs.distill import pretrain
from fewstep.schedule import KarrasVE
from fewstep.states import Step
from fewstep.system.files import write_text
from fewstep.training import Silent, Trainer
from interrupt_kit import Interrupted, Interrupter

# A fixture.
__all__ = ["without_syncing"]

FASTGAN = {"kind": "fastgan", **STUDENT_SETTINGS["fastgan"]}
NETWORK = {"kind": "network", **STUDENT_SETTINGS["network"]}


def game(steps: int = 6, **method: Any) -> PretrainRecipe:
    """The shipped GAN at a test's size."""
    values = load_recipe("digits-fastgan", [f"training.steps={steps}"]).model_dump(mode="json")
    values["model"]["network"] = FASTGAN
    values["method"] |= {"critic": {"kind": "image-critic", "width": 4}, **method}
    values["training"] |= {"batch": 4, "log_every": 2, "checkpoint_every": 4}
    values["evaluation"] |= {"samples": 20, "every": 3}
    recipe = validate(values, "test")
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def trainer_of(recipe: PretrainRecipe, folder: Path, listeners: Sequence[Silent] = ()) -> tuple[Pretraining, Trainer]:
    parts = build_pretraining(recipe)
    return parts, Trainer(
        folder, parts.stages, parts.model, build_settings(recipe.training), recipe.training.average, listeners=listeners
    )


def images(**changes: Any) -> DistillRecipe:
    """Distribution matching into FastGAN's generator on digits."""
    return tiny(MATCHING, student={**FASTGAN, **changes.pop("student", {})}, digits=True, **changes)


# The game


@pytest.mark.parametrize(
    ("loss", "r1", "shift"), [("non-saturating", 0.3, 0), ("non-saturating", 0.0, 1), ("hinge", 0.3, 0)]
)
def test_a_step_of_the_game_is_the_losses_written_out(loss: str, r1: float, shift: int) -> None:
    parts = build_pretraining(game(loss=loss, r1=r1, shift=shift))
    generator, critic = parts.model, parts.stages[0].phases[1].network
    assert isinstance(generator, Generator)
    assert parts.prior is not None
    step, found = Step(Key(0, "pretrain", 5), 6), {}
    for phase in parts.stages[0].phases:
        (term,) = phase.terms
        found[phase.name] = term.objective(step, step.state(term.states)).total.detach()
        step.forget_graphs()
    state, data = step.state(parts.prior), step.state(parts.stages[0].phases[1].terms[0].objective.real)
    fake, real = generator(state.x, None, state.condition).detach(), data.x0.requires_grad_()
    assert torch.equal(data.x0, parts.data.take(step.key.integers("data-index", 6, len(parts.data))))
    if shift:
        # What the critic is shown is another picture, whose law stands with the views.
        return
    fake_logits, real_logits = critic.network(fake, state.condition), critic.network(real, data.condition)
    (slope,) = torch.autograd.grad(real_logits.sum(), real)
    penalty = 0.5 * r1 * slope.square().sum() / 6
    if loss == "hinge":
        expected = {
            "generator": -fake_logits.mean(),
            "critic": (1 - real_logits).clamp(min=0).mean() + (1 + fake_logits).clamp(min=0).mean() + penalty,
        }
    else:
        expected = {
            "generator": softplus(-fake_logits).mean(),
            "critic": softplus(-real_logits).mean() + softplus(fake_logits).mean() + penalty,
        }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_each_player_moves_itself_and_the_average_follows_the_generator(tmp_path: Path) -> None:
    recipe = game(steps=3)
    fresh = build_pretraining(recipe)
    parts, trainer = trainer_of(recipe, tmp_path)
    trainer.fit()
    for before, after in zip(fresh.stages[0].phases, parts.stages[0].phases, strict=True):
        changed = [
            not torch.equal(value, other)
            for value, other in zip(before.network.parameters(), after.network.parameters(), strict=True)
        ]
        assert any(changed)
    assert trainer.average.updates == 3
    assert set(trainer.average.average.state_dict()) == set(parts.model.state_dict())
    seeded = build_pretraining(recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 1})}))
    for one, other in zip(fresh.stages[0].phases, seeded.stages[0].phases, strict=True):
        assert any(
            not torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True)
        )


def test_a_game_interrupted_twice_is_the_whole_game_bit_for_bit(tmp_path: Path) -> None:
    recipe = game(steps=10, shift=1)
    _, whole = trainer_of(recipe, tmp_path / "whole")
    whole.fit()
    for watcher in (Interrupter(5), Interrupter(4)):
        with pytest.raises(Interrupted):
            trainer_of(recipe, tmp_path / "cut", [watcher])[1].fit(resume=watcher.left == 4)
    _, resumed = trainer_of(recipe, tmp_path / "cut")
    resumed.fit(resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_a_pretrained_generator_is_measured_on_the_way_and_can_be_sampled_from_its_file(tmp_path: Path) -> None:
    write_text(tmp_path / "game.yaml", dump(game()))
    folder = RunFolder(pretrain(tmp_path / "game.yaml", out=tmp_path / "run"))
    probes = [line for line in lines_of(folder.path) if line.get("probe") == "evaluation"]
    assert [line["step"] for line in probes] == [0, 3, 6]
    assert all({"fd", "accuracy"} <= set(line) for line in probes)
    model, _ = load_model(folder.model)
    tensors, _ = contents(folder.path)
    assert isinstance(model, Generator)
    averaged = {name.partition("average.")[2]: value for name, value in tensors.items() if "average" in name}
    assert all(averaged[name] == value.numpy().tobytes() for name, value in model.state_dict().items())
    sampler = load(folder.model)
    assert (sampler.low, sampler.high, sampler.classes, sampler.usual_steps) == (-1.0, 1.0, 10, 1)
    noise = Key(4, "sample").normal("prior", (3, 4))
    assert torch.equal(sampler(3, seed=4), model(noise, None, torch.arange(3)).detach())
    with pytest.raises(UserError, match="1 step only"):
        sampler(3, steps=2)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("digits-teacher", {"method": {"kind": "gan"}}, "'method.kind: gan' and 'model.kind: denoiser' do not fit"),
        (
            "digits-fastgan",
            {"method": {"kind": "denoising"}},
            "'method.kind: denoising' and 'model.kind: generator' do not fit",
        ),
        ("digits-features", {"method": {"kind": "gan"}}, "'method.kind: gan' and 'model.kind: classifier' do not fit"),
        (
            "digits-fastgan",
            {"data": {"kind": "random-mixture"}},
            r"'model.network.kind: fastgan' makes square images .* have shape \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[str, Any], sentence: str) -> None:
    recipe = validate({**load_recipe(name).model_dump(mode="json"), **changes}, "test")
    assert isinstance(recipe, PretrainRecipe)
    with pytest.raises(UserError, match=sentence) as caught:
        build_pretraining(recipe)
    assert "\n" not in str(caught.value)


# Starting from a file


def started(section: dict[str, Any], folder: Path, digits: bool) -> tuple[Path, Any]:
    """A file of the section's student with other weights, and the student that starts there."""
    parts = build_distillation(tiny(MATCHING, student={**section, "seed": 5}, digits=digits), folder)
    model = parts.student
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    path = folder / "start.safetensors"
    save_model(path, model)
    return path, build_distillation(
        tiny(MATCHING, student={**section, "start": str(path)}, digits=digits), folder
    ).student


@pytest.mark.parametrize("kind", ["fastgan", "latent-mlp", "network", "network of images"])
def test_a_student_that_starts_from_a_file_is_the_file_bit_for_bit_and_is_trained(kind: str, tmp_path: Path) -> None:
    digits = kind in ("fastgan", "network of images")
    section = (
        {"kind": "network", **IMAGE_NETWORK}
        if kind == "network of images"
        else {"kind": kind, **STUDENT_SETTINGS[kind]}
    )
    path, student = started(section, tmp_path, digits)
    saved, _ = load_model(path)
    assert describe_model(saved) == describe_model(student)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in student.state_dict().items())
    recipe = tiny(MATCHING, student={**section, "start": str(path)}, digits=digits)
    parts = build_distillation(recipe, tmp_path / "run")
    fitted(recipe, parts, tmp_path / "run")
    assert [
        name for name, value in parts.student.named_parameters() if torch.equal(value, saved.state_dict()[name])
    ] == []


def test_the_generator_of_a_pretraining_is_a_start(tmp_path: Path) -> None:
    write_text(tmp_path / "game.yaml", dump(game(steps=2)))
    file = RunFolder(pretrain(tmp_path / "game.yaml", out=tmp_path / "run")).model
    student = build_distillation(images(student={"start": str(file)}), tmp_path).student
    saved, _ = load_model(file)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("section", "changes", "key"),
    [
        (FASTGAN, {"width": 8}, "network.width"),
        (FASTGAN, {"latent": 6}, "network.latent"),
        (NETWORK, {"network": {"kind": "residual-mlp", "width": 8, "depth": 3}}, "network.depth"),
        (NETWORK, {"kind": "latent-mlp", "network": None}, "kind"),
    ],
)
def test_a_file_of_another_student_is_refused_by_the_first_key_that_differs(
    section: dict[str, Any], changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    digits = section is FASTGAN
    path, _ = started(section, tmp_path, digits)
    other = {name: value for name, value in {**section, **changes, "start": str(path)}.items() if value is not None}
    with pytest.raises(
        UserError,
        match=rf"start\.safetensors: holds another model than the recipe's student \('{re.escape(key)}' differs\); "
        r"[^;]+\.$",
    ):
        build_distillation(tiny(MATCHING, student=other, digits=digits), tmp_path)


def test_a_denoiser_fed_in_another_way_is_no_start(tmp_path: Path) -> None:
    """The same network under another schedule: its weights mean something else."""
    parts = build_distillation(tiny(MATCHING, student=NETWORK), tmp_path)
    student = parts.student
    assert isinstance(student, NetworkDenoiser)
    save_model(
        tmp_path / "other.safetensors",
        NetworkDenoiser(student.network, KarrasVE(0.02, 40.0), student.prediction, student.inputs, student.shape),
    )
    with pytest.raises(UserError, match=r"'schedule\.sigma_min' differs"):
        build_distillation(tiny(MATCHING, student={**NETWORK, "start": str(tmp_path / "other.safetensors")}), tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        build_distillation(
            tiny(MATCHING, student={**NETWORK, "start": str(tmp_path / "nowhere.safetensors")}), tmp_path
        )


# Distillation into another architecture


def test_another_network_is_fed_as_the_teacher_is_and_its_weights_are_the_seeds(tmp_path: Path) -> None:
    parts = build_distillation(tiny(MATCHING, student=NETWORK), tmp_path)
    student, teacher = parts.student, parts.teacher
    assert isinstance(student, NetworkDenoiser)
    assert (student.schedule, student.prediction, student.inputs, student.shape, student.classes) == (
        teacher.schedule,
        teacher.prediction,
        teacher.inputs,
        teacher.shape,
        teacher.classes,
    )
    assert len(student.network.blocks) == 2 != len(teacher.network.blocks)
    again, other = (
        build_distillation(tiny(MATCHING, student={**NETWORK, "seed": seed}), tmp_path).student.state_dict()
        for seed in (0, 1)
    )
    assert all(torch.equal(value, again[name]) for name, value in student.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in student.state_dict().items())


def test_the_same_network_from_the_teachers_file_is_a_copy_bit_for_bit(tmp_path: Path) -> None:
    copy = tiny(MATCHING)
    network = {"kind": "residual-mlp", "width": 8, "depth": 1, "dim": 2}
    teacher = build_distillation(copy, tmp_path).teacher
    assert describe_model(teacher)["network"].items() >= {**network, "classes": 0}.items()
    save_model(tmp_path / "teacher.safetensors", teacher)
    started_there = tiny(
        MATCHING, student={"kind": "network", "network": network, "start": str(tmp_path / "teacher.safetensors")}
    )
    assert same(copy, started_there, tmp_path)


def test_a_path_of_one_node_is_the_fixed_target_and_a_longer_one_is_not(tmp_path: Path) -> None:
    assert same(images(), images(target={**BACKTRACKED, "nodes": 1}), tmp_path)
    assert not same_student(
        images(), images(target={**BACKTRACKED, "optimizer": {**OPTIMIZER, "lr": 0.1}}), tmp_path / "three"
    )


def test_the_path_is_recorded_on_the_untrained_generators_images(tmp_path: Path) -> None:
    """The recording stage trains the teacher's copy on them, and leaves the generator alone."""
    parts = build_distillation(images(target=BACKTRACKED), tmp_path)
    assert [stage.name for stage in parts.stages] == ["record", "distill"]
    (phase,) = parts.stages[0].phases
    assert phase.terms[0].objective.student is parts.student
    assert phase.network is parts.fake
    assert isinstance(parts.student, Generator)
    assert isinstance(parts.student.network, FastGAN)


def test_the_monitors_read_a_generator_of_images(tmp_path: Path) -> None:
    parts = build_distillation(images(target=BACKTRACKED), tmp_path)
    readings = {
        reading.name: reading.value
        for reading in parts.monitor.read(Step(Key(0, "monitor"), 20), {"fake.denoising": 1.0, "student.gap": 0.5})
    }
    norms = {"mismatch_norm", "mismatch_norm_deviation", "mismatch_norm_on_data"}
    levels = ("spread_over_data", "saturation", "mean_shift", "contrast_over_data")
    assert set(readings) == {"fake_score_lag", "gap", "fake_score_norm", "mismatch_over_bound", *norms, *levels}
    # Tanh stays in the data's range.
    assert readings["saturation"] == 0.0


def test_a_seed_of_samples_is_the_same_image_whatever_the_number(tmp_path: Path) -> None:
    sampler = sampler_of(build_distillation(images(), tmp_path))
    torch.testing.assert_close(
        sampler(2, seed=3, classes=torch.tensor([4, 7])),
        sampler(6, seed=3, classes=torch.tensor([4, 7, 0, 1, 2, 3]))[:2],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["digits-fastgan-disback", "digits-fastgan-diff-instruct"])
def test_the_shipped_generator_fits_the_shipped_warm_start(name: str) -> None:
    pretraining, recipe = load_recipe("digits-fastgan"), load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    assert isinstance(pretraining, PretrainRecipe)
    assert recipe.student.model_dump(include={"kind", "latent", "width"}) == pretraining.model.network.model_dump()
    twin = load_recipe("digits-fastgan-disback")
    assert {**recipe.model_dump(), "target": None} == {**twin.model_dump(), "target": None}
