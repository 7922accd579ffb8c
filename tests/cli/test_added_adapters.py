"""Adapters of runs as users move them: onto another model, beside another adapter, into files of
other programs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_kit import called
from safetensors.torch import load_file

from fewstep.denoisers import adapter_of, in_network, load_adapter, save_adapter
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, Form
from fewstep.runs import load, load_teacher
from fewstep.runs.export import export_adapter
from fewstep.runs.loading import adapted_student, adapted_teacher, adapters_said, model_with
from fewstep.zoo.adapter_files import AddedAdapter
from fewstep.zoo.lora import read_lora

SMALL = (
    "training.steps=12",
    "training.batch=8",
    "evaluation.samples=20",
    "training.health_every=1000",
    "evaluation.every=1000",
    "method.optimizer.lr=0.01",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "run"
    settings = [text for each in SMALL for text in ("--set", each)]
    ended = called("distill", "mixture2d-disback-lora", "--out", folder, *settings)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def style(run: Path) -> Path:
    """Another adapter for the same teacher, which says nothing of sampling."""
    teacher = load_teacher(run).denoiser
    made = in_network(teacher, AdaptedNetwork.fresh(AdaptedBase(teacher.network), Form(1, 1.0), seed=3))
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.02)
    save_adapter(run.parent / "style.safetensors", adapter_of(made))
    return run.parent / "style.safetensors"


def test_a_distilled_adapter_makes_a_few_step_student_of_the_teacher(run: Path) -> None:
    student = load(run)
    made = adapted_teacher(load_teacher(run), [AddedAdapter(run)])
    assert type(made) is type(student)
    assert made.usual_steps == student.usual_steps == 1
    torch.testing.assert_close(made(20, seed=3), student(20, seed=3), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made(20, seed=3), load_teacher(run)(20, seed=3), atol=1e-2)


def test_weights_scale_adapters_and_several_add_up(run: Path, style: Path) -> None:
    teacher = load_teacher(run)
    plain = teacher.denoiser.state_dict()

    def gained(*adapters: AddedAdapter) -> dict[str, torch.Tensor]:
        notes: list[str] = []
        model, _ = model_with(teacher.denoiser, adapters, notes.append)
        assert not notes
        return {name: value - plain[name] for name, value in model.state_dict().items()}

    one, half, other = gained(AddedAdapter(run)), gained(AddedAdapter(run, 0.5)), gained(AddedAdapter(style, -2.0))
    both = gained(AddedAdapter(run, 0.5), AddedAdapter(style, -2.0))
    for name, value in one.items():
        torch.testing.assert_close(half[name], value / 2, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(both[name], half[name] + other[name], rtol=1e-3, atol=1e-6)
    assert any(bool(value.abs().max() > 1e-3) for value in one.values())
    assert all(torch.equal(value, teacher.denoiser.state_dict()[name]) for name, value in plain.items())


def test_a_style_on_a_student_keeps_its_steps_and_on_a_teacher_its_solver(run: Path, style: Path) -> None:
    student, teacher = load(run), load_teacher(run)
    styled = adapted_student(student, [AddedAdapter(style)])
    assert styled.usual_steps == student.usual_steps
    assert not torch.allclose(styled(20), student(20), atol=1e-3)
    both = adapted_teacher(teacher, [AddedAdapter(style), AddedAdapter(run)])
    torch.testing.assert_close(both(20), styled(20), rtol=1e-3, atol=1e-3)
    alone = adapted_teacher(teacher, [AddedAdapter(style)])
    assert type(alone) is type(teacher)
    torch.testing.assert_close(adapted_teacher(teacher, [AddedAdapter(style, 0.0)])(20), teacher(20))


def test_the_command_line_samples_with_adapters(run: Path, style: Path, tmp_path: Path) -> None:
    arrays = {}
    for name, more in {
        "student": (),
        "teacher": ("--teacher", "--lora", run),
        "half": ("--teacher", "--lora", f"{run / 'adapter.safetensors'}:0.5"),
        "styled": ("--lora", f"{style}:1"),
    }.items():
        ended = called(
            "sample", run, "-n", "12", "--out", tmp_path / f"{name}.png", "--npz", tmp_path / f"{name}.npz", *more
        )
        assert ended.returncode == 0, ended.stderr
        arrays[name] = next(iter(np.load(tmp_path / f"{name}.npz").values()))
    np.testing.assert_allclose(arrays["teacher"], arrays["student"], rtol=1e-3, atol=1e-3)
    assert not np.allclose(arrays["half"], arrays["student"], atol=1e-2)
    assert not np.allclose(arrays["styled"], arrays["student"], atol=1e-3)


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_an_adapter_is_exported_for_other_programs_and_read_back(run: Path, form: str, tmp_path: Path) -> None:
    ended = called("export", run, tmp_path / "out.safetensors", "--lora", form)
    assert ended.returncode == 0, ended.stderr
    network = load_teacher(run).denoiser.network
    found, own = read_lora(tmp_path / "out.safetensors", network), load_adapter(run / "adapter.safetensors")
    assert found.pairs.keys() == own.pairs.keys()
    for path, pair in own.pairs.items():
        assert found.pairs[path].scale == pytest.approx(pair.scale)
        assert torch.equal(found.pairs[path].down, pair.down)
    before = load_file(tmp_path / "out.safetensors")
    again = called("export", run, tmp_path / "out.safetensors", "--lora", form)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert load_file(tmp_path / "out.safetensors").keys() == before.keys()


def test_what_is_wrong_is_said_in_one_sentence(run: Path, style: Path, tmp_path: Path) -> None:
    for texts, words in (
        ([f"{style}:nan"], "give a finite number"),
        ([str(style), f"{style}:2"], "is said twice"),
    ):
        with pytest.raises(UserError, match=words):
            adapters_said(texts)
    assert adapters_said([f"{style}:0.5", str(run)]) == [AddedAdapter(style, 0.5), AddedAdapter(run)]
    assert adapters_said(["a:b.safetensors"]) == [AddedAdapter(Path("a:b.safetensors"))]
    ended = called("sample", run, "--compare", "--lora", style)
    assert (ended.returncode, "--compare and --lora" in ended.stderr) == (2, True)
    ended = called("sample", run, "--lora", tmp_path / "no.safetensors")
    assert ended.returncode == 2
    assert "no.safetensors" in ended.stderr
    for out, form, words in (
        (tmp_path / "a.bin", "peft", "as a .safetensors file"),
        (tmp_path / "a.safetensors", "flux", "there is no form 'flux'"),
        (tmp_path / "a.safetensors", "comfyui", "has no name for layer 'condition.0'"),
    ):
        with pytest.raises(UserError, match=words):
            export_adapter(run, out, form)
    assert not list(tmp_path.iterdir())
