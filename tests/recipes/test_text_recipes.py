"""Recipes whose teacher is told prompts: they train on prompts alone, in latents, resume byte for
byte, are sampled by prompts and measured on pictures; and what does not go together refuses.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_combinations import without_syncing

from fewstep.command.cli import app
from fewstep.condition import Condition
from fewstep.doctor import examine, has_problem
from fewstep.errors import UserError
from fewstep.planning.plan import plan_on_gpus
from fewstep.random import Key
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.reading.source import validate
from fewstep.runs import distill, evaluate, export, load, load_teacher
from fewstep.training import Listener
from fewstep.zoo.pipelines import OpenedPipeline, TextEncoder, load_pipeline, time_ids
from pipeline_kit import FACTOR, LENGTH, SIDE, pipeline

__all__ = ["without_syncing"]
pytestmark = pytest.mark.usefixtures("without_syncing")

PROMPTS = ["a red seven", "blue", "a red red seven"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    for name in ("sd15", "sdxl"):
        pipeline(name, root / f"{name}-tokenizers").save_pretrained(root / name)
    return {name: root / name for name in ("sd15", "sdxl")}


@pytest.fixture(scope="module")
def ended(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, for what only looks at it."""
    folder = tmp_path_factory.mktemp("ended")
    return distill(written(folder / "r.yaml", folders["sd15"]), out=folder / "run")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def values(teacher: Path, **sections: Any) -> dict[str, Any]:
    times = {"kind": "uniform", "low": 0.02, "high": 0.98}
    return {
        "task": "distill",
        "teacher": {"kind": "pipeline", "path": str(teacher)},
        "prompts": {"kind": "list", "texts": PROMPTS},
        "student": {"kind": "copy"},
        "method": {"kind": "distribution-matching", "times": times, "fake": {"kind": "learned", "times": times}},
        "target": {
            "kind": "backtracked",
            "nodes": 3,
            "record": {"kind": "every", "steps": 2},
            "switch": {"kind": "every", "steps": 2},
        },
        "training": {"steps": 12, "batch": 2, "log_every": 1, "checkpoint_every": 5},
        "evaluation": {
            "features": {"kind": "fourier", "count": 4},
            "samples": 4,
            "draws": 1,
            "every": 100,
            "pictures": 2,
            "teacher_steps": [2],
            "solver": {"rule": "euler", "grid": "uniform"},
        },
        **sections,
    }


def recipe(teacher: Path, **sections: Any) -> DistillRecipe:
    return validated(values(teacher, **sections))


def validated(plain: dict[str, Any]) -> DistillRecipe:
    made = validate(plain, "test")
    assert isinstance(made, DistillRecipe)
    return made


def written(path: Path, teacher: Path, **sections: Any) -> Path:
    path.write_text("# test\n" + json.dumps(values(teacher, **sections)))
    return path


class Leaves(Listener):
    """Interrupts a run at a step."""

    def __init__(self, at: int):
        self.at = at

    def step(self, step: int, note: str) -> None:
        if step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("student", ["copy", "lora"])
def test_is_distilled_from_prompts_alone(name: str, student: str, folders: dict[str, Path], tmp_path: Path) -> None:
    run = distill(written(tmp_path / "r.yaml", folders[name], student={"kind": student}), out=tmp_path / "run")
    sampler = load(run)
    assert list(sampler.owner.texts) == PROMPTS
    latents, pictures = sampler(4), sampler.pictured(4)
    side = SIDE * FACTOR
    assert latents.shape == (4, 4, SIDE, SIDE)
    assert pictures.shape == (4, 3, side, side)
    codec = load_pipeline(folders[name]).codec
    assert torch.allclose(pictures, codec.decode(latents), atol=1e-5)
    assert {"final.png", "path.png"} <= {path.name for path in (run / "samples").iterdir()}
    # Its file says that samples have no range, so that none is cut off.
    assert (sampler.space.low, sampler.space.high) == (-torch.inf, torch.inf)


def test_the_condition_is_what_the_pipeline_makes_of_prompts(folders: dict[str, Path], tmp_path: Path) -> None:
    parts = build_distillation(recipe(folders["sdxl"]), tmp_path)
    prior = parts.prior.at(Key(0), "x", 3, torch.tensor([2, 0, 1]))
    encoder = load_pipeline(folders["sdxl"]).encoder
    told = encoder([PROMPTS[2], PROMPTS[0], PROMPTS[1]])
    for name, value in told.items():
        assert torch.allclose(prior.condition.context[name], value, atol=1e-5), name
    side = SIDE * FACTOR
    assert torch.equal(prior.condition.context["time_ids"], time_ids(side, side).expand(3, 6))
    null = parts.prior.conditions.null(prior.condition)
    assert torch.equal(null.context["text"], torch.zeros(3, LENGTH, 32))
    assert torch.equal(null.context["time_ids"], prior.condition.context["time_ids"])


def test_each_step_takes_no_pass_of_the_text_encoder(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    forward = TextEncoder.forward

    def counted(self: TextEncoder, prompts: Any) -> Any:
        passes.append(len(prompts))
        return forward(self, prompts)

    monkeypatch.setattr(TextEncoder, "forward", counted)
    file = written(tmp_path / "r.yaml", folders["sd15"])
    distill(file, out=tmp_path / "run")
    assert sum(passes) == len(PROMPTS) + 1
    passes.clear()
    distill(file, ["training.steps=30"], out=tmp_path / "longer")
    assert passes == []


def test_the_text_encoder_is_let_go(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[TextEncoder]] = []
    encoder = OpenedPipeline.encoder

    def remembered(self: OpenedPipeline) -> TextEncoder:
        found = encoder(self)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(OpenedPipeline, "encoder", remembered)
    parts = build_distillation(recipe(folders["sd15"]), tmp_path)
    assert parts.prior.conditions.count == len(PROMPTS)
    assert [each() for each in made] == [None]


def test_a_resumed_run_is_byte_equal(folders: dict[str, Path], tmp_path: Path) -> None:
    file = written(tmp_path / "r.yaml", folders["sdxl"])
    whole = distill(file, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distill(file, out=tmp_path / "left", listeners=[Leaves(7)])
    again = distill(file, out=tmp_path / "left", resume=True)
    assert (whole / "student.safetensors").read_bytes() == (again / "student.safetensors").read_bytes()
    assert (whole / "samples" / "final.png").read_bytes() == (again / "samples" / "final.png").read_bytes()


def test_other_prompts_are_drawn_by_the_same_student(folders: dict[str, Path], ended: Path) -> None:
    usual, other = load(ended), load(ended, prompts=["a d e", PROMPTS[1]])
    assert list(other.owner.texts) == ["a d e", PROMPTS[1]]
    assert torch.allclose(usual(1, classes=1), other(1, classes=1), atol=1e-6)
    assert not torch.allclose(usual(1, classes=1), other(1, classes=0), atol=1e-4)
    guided, plain = (load_teacher(ended, scale, prompts=["a d e"]) for scale in (3.0, 1.0))
    ours = load_pipeline(folders["sd15"])
    x, t = torch.randn(2, 4, SIDE, SIDE), torch.tensor([0.7, 0.4], dtype=torch.float64)
    told, null = (Condition(context=dict(made)) for made in (ours.encoder(["a d e"] * 2), ours.encoder(["", ""])))
    with torch.no_grad():
        cond, uncond = ours.denoiser(x, t, told), ours.denoiser(x, t, null)
        found = guided.denoiser(x, t, guided.conditions.of(torch.zeros(2, dtype=torch.int64)))
    assert torch.allclose(found, uncond + 3.0 * (cond - uncond), atol=1e-4)
    assert plain.classes == 1


def test_is_measured_on_pictures(ended: Path) -> None:
    found = evaluate(ended)
    assert (found["student"]["1"]["nfe"], found["teacher"]["2"]["nfe"]) == (1, 2)
    assert json.loads((ended / "evaluation.json").read_text())["left_out"]["fd"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompts": ({"prompts": None}, "the recipe has no 'prompts' section"),
    "empty file": ({"prompts": {"kind": "file", "path": "none.txt"}}, "there is no such file"),
    "too long": (
        {"prompts": {"kind": "list", "texts": ["a red seven at the left"], "too_long": "refuse"}},
        "12 tokens",
    ),
    "range": ({"reflected": {"kind": "static"}}, "set 'reflected.bound'"),
    "no teacher of prompts": ({"teacher": {"kind": "shipped", "name": "mixture2d"}}, "leave 'prompts' out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    sections, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence):
        build_distillation(validated({**values(folders["sd15"]), **sections}), tmp_path)


def test_exchanged_prompts_are_another_run(folders: dict[str, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    said = {"kind": "file", "path": str(prompts)}
    file = written(tmp_path / "r.yaml", folders["sd15"], prompts=said)
    with pytest.raises(KeyboardInterrupt):
        distill(file, out=tmp_path / "run", listeners=[Leaves(7)])
    prompts.write_text("something else")
    with pytest.raises(UserError, match="made with another 'prompts'"):
        distill(file, out=tmp_path / "run", resume=True)


def test_prompts_are_handed_over(folders: dict[str, Path], tmp_path: Path) -> None:
    run = distill(written(tmp_path / "r.yaml", folders["sd15"]), out=tmp_path / "run", prompts=["one", " two "])
    assert list(load(run).owner.texts) == ["one", "two"]


def test_a_student_alone_says_what_it_lacks(ended: Path) -> None:
    with pytest.raises(UserError, match="give the folder of the run"):
        load(ended / "student.safetensors")


def test_a_teacher_of_prompts_is_sketched_without_weights(folders: dict[str, Path]) -> None:
    from fewstep.recipes.building.frozen_teachers import sketched

    found = sketched(recipe(folders["sdxl"]))
    assert all(parameter.is_meta for parameter in found.denoiser.parameters())
    network: Any = found.denoiser.network
    with torch.device("meta"):
        condition, x = found.conditions.sketch(2), torch.zeros(2, *found.denoiser.shape)
        assert network(x, torch.zeros(2), condition).shape == x.shape


def test_prompts_are_sampled_from_the_command_line(ended: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a d e\nblue\n")

    def sampled(*arguments: str) -> Any:
        array = tmp_path / "array.npz"
        app(["sample", str(ended), *arguments, "--npz", str(array)], standalone_mode=False)
        with np.load(array) as file:
            return torch.from_numpy(file["samples"])

    side = SIDE * FACTOR
    four = sampled("--prompt", "blue", "-n", "4", "--seed", "3")
    assert four.shape == (4, 3, side, side)
    assert torch.equal(four, load(ended, prompts=["blue"]).pictured(4, seed=3, classes=0))
    assert len(sampled("--prompts", str(prompts))) == 2
    assert len(sampled("-n", "5")) == 5
    both = sampled("--prompts", str(prompts), "--compare", "--guidance", "3")
    assert both.shape == (2, 3, 2 * side + 1, side)
    numbers = torch.arange(2)
    assert torch.equal(both[:, :, side + 1 :], load(ended, prompts=["a d e", "blue"]).pictured(2, classes=numbers))
    teacher = load_teacher(ended, 3.0, prompts=["a d e", "blue"]).pictured
    assert torch.equal(both[:, :, :side], teacher(2, classes=numbers, steps=2))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "blue", "--class", "1"], "leave the class out"),
        (["--prompt", "blue", "--prompts", "x.txt"], "not both"),
        (["--compare", "--teacher"], "leave one of them out"),
    ],
)
def test_options_that_contradict_one_another_are_refused(arguments: list[str], sentence: str, ended: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        app(["sample", str(ended), *arguments], standalone_mode=False)


def test_a_pipeline_in_memory_is_a_teacher(folders: dict[str, Path], tmp_path: Path) -> None:
    file = written(tmp_path / "r.yaml", tmp_path / "none")
    pipe = pipeline("sdxl", tmp_path / "tokenizers")
    with pytest.raises(KeyboardInterrupt):
        distill(file, out=tmp_path / "run", teacher=pipe, listeners=[Leaves(7)])
    # The teacher is kept in the folder, so that the run goes on, also without the object.
    run = distill(file, out=tmp_path / "run", teacher=pipe, resume=True)
    plain = distill(written(tmp_path / "plain.yaml", folders["sdxl"]), out=tmp_path / "plain")
    assert (run / "student.safetensors").read_bytes() == (plain / "student.safetensors").read_bytes()
    assert load(run).pictured(1).shape == (1, 3, SIDE * FACTOR, SIDE * FACTOR)
    other = pipeline("sdxl", tmp_path / "others")
    with torch.no_grad():
        other.unet.conv_out.bias.add_(1)
    with pytest.raises(UserError, match="is another one than the run in"):
        distill(file, out=tmp_path / "run", teacher=other, resume=True)


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    import diffusers

    file = written(tmp_path / "r.yaml", tmp_path / "none")
    with pytest.raises(UserError, match="is a Linear; wrap your network"):
        distill(file, out=tmp_path / "run", teacher=torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"diffusers\..*DDIMScheduler"):
        distill(file, out=tmp_path / "run", teacher=diffusers.DDIMScheduler())


def test_doctor_looks_at_pipelines_prompts_and_students_of_prompts(
    folders: dict[str, Path], ended: Path, tmp_path: Path
) -> None:
    assert not has_problem(examine(ended))
    file = written(tmp_path / "r.yaml", folders["sdxl"])
    found = {each.place: each.sentence for each in examine(file)}
    assert found["prompts"] == "the list of prompts holds 3 prompts."
    assert "is there" in found["teacher.path"]
    said = {"kind": "file", "path": str(tmp_path / "none.txt")}
    lacking = written(tmp_path / "l.yaml", folders["sdxl"], prompts=said)
    problems = [each for each in examine(lacking) if each.place == "prompts"]
    assert "there is no such file" in problems[0].sentence
    gone = written(tmp_path / "g.yaml", tmp_path / "none")
    assert has_problem(examine(gone))


def test_a_plan_counts_the_codec_and_says_when_prompts_are_embedded(folders: dict[str, Path]) -> None:
    found = plan_on_gpus(recipe(folders["sdxl"]), "r.yaml")
    codec = load_pipeline(folders["sdxl"]).codec
    parts = {part.role: part for part in found.parts}
    assert parts["codec"].parameters == sum(each.numel() for each in codec.parameters())
    assert parts["teacher"].parameters == parts["student"].parameters
    assert found.settings[0].state >= sum(part.bytes for part in found.parts)
    # 77 tokens of 32 numbers, 10 of the whole text and 6 of sizes.
    assert any(f"each takes {(77 * 32 + 10 + 6) * 4 / 1024:,.0f} KiB" in note for note in found.notes)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_an_exported_student_draws_in_diffusers_what_it_draws_here(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    import diffusers

    student = {"kind": "copy", "first_timestep": 399}
    run = distill(written(tmp_path / "r.yaml", folders[name], student=student), out=tmp_path / "run")
    out = export(run, tmp_path / "out")
    sampler = load(run, prompts=["a d e"])
    ours = sampler.pictured(2, seed=3, classes=0)
    noise = sampler.prior.at(Key(3, "sample"), "prior", 2, torch.zeros(2, dtype=torch.int64)).x
    pipe = diffusers.DiffusionPipeline.from_pretrained(out)
    scale = 0.0 if name == "sdxl" else 1.0
    side = SIDE * FACTOR
    asked = {"prompt": ["a d e"] * 2, "timesteps": [399], "guidance_scale": scale, "height": side, "width": side}
    theirs = torch.from_numpy(pipe(**asked, latents=noise, output_type="np").images).permute(0, 3, 1, 2)
    torch.testing.assert_close(theirs, (ours + 1) / 2, rtol=0, atol=1e-3)
