"""Few-step students of others, sampled without a run: as diffusers samples them, and what is
missing or hostile in one sentence.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from fewstep.command.entry import run_command
from fewstep.denoisers import copy_of, save_adapter
from fewstep.doctor import examine
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase, AdaptedNetwork, Form
from fewstep.random import Key
from fewstep.recipes.config.starts import begun_fake, started
from fewstep.runs.pictures.published_students import PublishedStudent, timesteps_said
from fewstep.solvers.sampling import Sampling
from fewstep.zoo import digits
from fewstep.zoo.adapter_files import AddedAdapter
from fewstep.zoo.pipelines import ExportSource, PipelinePlace, export_pipeline, load_pipeline
from fewstep.zoo.state_dicts import read_state_dict
from pipeline_kit import PROMPTS, pipeline

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

Command = Callable[..., tuple[object, str, str]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines, and beside each the weights of a student of it, as others publish them."""
    root = tmp_path_factory.mktemp("bases")
    for name in ("sd15", "sdxl", "guided"):
        changes = {"time_cond_proj_dim": 16} if name == "guided" else {}
        pipe = pipeline("sd15" if changes else name, root / f"{name}-tokenizers", **changes)
        pipe.save_pretrained(root / name)
        generator = torch.Generator().manual_seed(3)
        weights = {
            key: (value + 0.05 * torch.randn(value.shape, generator=generator)).half()
            for key, value in pipe.unet.state_dict().items()
        }
        torch.save(weights, root / f"{name}.bin")
        save_file(weights, root / f"{name}.safetensors")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "published-cache"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``fewstep sample`` in this process: exit code, what it printed, and its complaint."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fewstep", "sample", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_command()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


def place(folder: Path) -> PipelinePlace:
    return PipelinePlace(str(folder))


def by_diffusers(folder: Path, weights: Path, timesteps: list[int], latents: Tensor, scale: float) -> Tensor:
    """A picture of each prompt as the student's card says, in [-1, 1]."""
    xl = folder.name == "sdxl"
    kind = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    pipe: Any = kind.from_pretrained(folder, **({"add_watermarker": False} if xl else {"safety_checker": None}))
    pipe.unet.load_state_dict(torch.load(weights, weights_only=True))
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(list(PROMPTS), timesteps=timesteps, guidance_scale=scale, latents=latents, output_type="pt").images
    return 2 * found - 1


@pytest.mark.parametrize(("name", "scale"), [("sd15", 1.0), ("sdxl", 0.0)])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_published_network_draws_what_diffusers_draws_with_it(
    name: str, scale: float, form: str, bases: Path
) -> None:
    student = PublishedStudent(place(bases / name), bases / f"{name}.{form}", timesteps=(399,))
    sampler = student.sampler(PROMPTS)
    numbers, key = torch.arange(len(PROMPTS)), Key(4, "sample")
    assert sampler.usual_steps == 1
    ours = sampler.pictured.draw(key, len(PROMPTS), numbers, 1)
    latents = sampler.prior.at(key, "prior", len(PROMPTS), numbers).x
    torch.testing.assert_close(
        ours, by_diffusers(bases / name, bases / f"{name}.bin", [399], latents, scale), rtol=0, atol=1e-3
    )
    # The network is the file's, and not the base's.
    base = PublishedStudent(place(bases / name), timesteps=(399,)).sampler(PROMPTS)
    assert not torch.allclose(ours, base.pictured.draw(key, len(PROMPTS), numbers, 1), atol=1e-2)


def test_several_timesteps_are_gone_down_and_fewer_steps_take_every_so_many(bases: Path) -> None:
    student = PublishedStudent(place(bases / "sd15"), bases / "sd15.bin", timesteps=(999, 749, 499, 249))
    sampler = student.sampler(PROMPTS[:1])
    assert sampler.usual_steps == 4
    times = sampler.sampling.times(sampler.schedule, sampler.prior.time, 4)
    assert times.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert sampler.sampling.times(sampler.schedule, sampler.prior.time, 2).tolist() == [1.0, 0.5, 0.0]


def test_an_exported_folder_says_how_it_is_sampled(bases: Path, tmp_path: Path, command: Command) -> None:
    model = copy_of(load_pipeline(bases / "sd15").denoiser)
    times = (0.4, 0.0)
    source = ExportSource(model, Sampling(), times, place(bases / "sd15"), "DisBack")
    export_pipeline(source, tmp_path / "folder", "fp32")
    pictures = {}
    for name, more in {"said": (), "given": ("--timesteps", "399")}.items():
        file = tmp_path / f"{name}.npz"
        drawn = ("--prompt", "a red seven", "--npz", file, "--out", file.with_suffix(".png"))
        code, _, error = command("--base", tmp_path / "folder", *more, *drawn)
        assert code == 0, error
        pictures[name] = file.read_bytes()
        assert file.with_suffix(".png").is_file()
    assert pictures["said"] == pictures["given"]


def test_a_network_that_is_told_a_scale_must_be_told(bases: Path, command: Command, tmp_path: Path) -> None:
    asked = ("--timesteps", "999,499", "--prompt", "blue", "--out", tmp_path / "drawn.png")
    code, _, error = command("--base", bases / "guided", *asked)
    assert (code, "fewstep: --guidance: this network is told a scale; give the one" in error) == (2, True)
    code, _, error = command("--base", bases / "guided", *asked, "--guidance", 4)
    assert code == 0, error


class _Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hostile-ran",)


def _broken(kind: str, file: Path, whole: dict[str, Tensor]) -> Path:
    """A damaged or hostile file of weights."""
    first = min(whole)
    changed: dict[str, Any] = {
        "code": {**whole, "hook": _Hostile()},
        "missing": {name: value for name, value in whole.items() if name != first},
        "unknown": {**whole, "more.weight": torch.ones(1)},
        "shape": {**whole, first: torch.ones(3)},
        "not finite": {**whole, first: torch.full_like(whole[first], torch.nan)},
        "whole numbers": {**whole, first: torch.ones(3, dtype=torch.int64)},
        "list": [1, 2],
        "adapter": {"unet.down.lora_A.weight": torch.ones(1, 1)},
    }
    torch.save(changed[kind], file)
    return file


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("code", "is not a state dict that can be read without running code"),
        ("missing", "lacks"),
        ("unknown", "more.weight"),
        ("shape", "(3,)"),
        ("not finite", "not finite"),
        ("whole numbers", "torch.int64"),
        ("list", "is not a state dict of tensors"),
        ("adapter", "give it by --lora"),
    ],
)
def test_a_hostile_file_is_refused_by_name_and_nothing_is_run(
    kind: str, words: str, bases: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = _broken(kind, tmp_path / "weights.bin", torch.load(bases / "sd15.bin", weights_only=True))
    code, _, error = command(
        "--base", bases / "sd15", "--model", file, "--timesteps", "399", "--prompt", "blue", "--out", tmp_path / "x.png"
    )
    assert code == 2
    sentence = error.strip().splitlines()[-1]
    assert sentence.startswith(f"fewstep: {file}:")
    assert words in sentence
    # torch itself advises to read such a file by running its code.
    assert "weights_only" not in sentence
    assert not (tmp_path / "hostile-ran").exists()
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "RUN and --base: give a run's folder, or a pipeline by --base."),
        (("run", "--base", "B"), "RUN and --base: give one of them, not both."),
        (("run", "--model", "x.bin"), "--model: needs --base; leave it out."),
        (("run", "--timesteps", "399"), "--timesteps: needs --base; leave it out."),
        (("--base", "B", "--teacher"), "--teacher: is of a run, and --base names a pipeline; leave it out."),
        (("--base", "B", "--class", "0"), "--class: is of a run, and --base names a pipeline; leave it out."),
        (("--base", "B", "--timesteps", "399"), "--base: draws what prompts say; give some by --prompt or --prompts."),
        (("--base", "B", "--prompt", "x"), "--timesteps: is missing, and neither weights nor adapters say"),
        (("--base", "B", "--prompt", "x", "--timesteps", "399,a"), "'399,a' is no list of timesteps"),
        (("--base", "B", "--prompt", "x", "--timesteps", "399,499"), "'at' must fall, got"),
        (("--base", "B", "--prompt", "x", "--timesteps", "1000"), "--timesteps: timestep 1000 is none of the"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(
    arguments: tuple[str, ...], words: str, bases: Path, command: Command
) -> None:
    code, _, error = command(*(str(bases / "sd15") if each == "B" else each for each in arguments))
    assert code == 2
    assert error.strip().splitlines()[-1].startswith("fewstep: ")
    assert words in error


def test_an_adapter_of_others_makes_a_few_step_student_of_a_base(bases: Path, tmp_path: Path) -> None:
    network = load_pipeline(bases / "sd15").denoiser.network
    name, layer = next((name, each) for name, each in network.named_modules() if name.endswith("attn1.to_q"))
    down, up = torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1)
    key = f"{name.removeprefix('unet.')}"
    save_file({f"unet.{key}.lora_A.weight": down, f"unet.{key}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    added = AddedAdapter(tmp_path / "lora.safetensors", 0.5)
    sampler = PublishedStudent(place(bases / "sd15"), adapters=(added,), timesteps=(399,)).sampler(PROMPTS)
    found = sampler.model.network.get_parameter(f"{name}.weight")
    torch.testing.assert_close(found, layer.weight + 0.5 * torch.ones_like(layer.weight))
    with pytest.raises(UserError, match="--timesteps: is missing"):
        PublishedStudent(place(bases / "sd15"), adapters=(added,)).sampler(PROMPTS)


def test_timesteps_are_whole_numbers_with_commas() -> None:
    assert timesteps_said("999, 749") == (999, 749)
    assert timesteps_said(None) == ()
    for text in ("", ",", "-1", "1.5", "9" * 40, "\u0661"):
        with pytest.raises(UserError, match="is no list of timesteps"):
            timesteps_said(text)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_student_and_a_fake_score_begin_from_a_published_file(form: str, bases: Path, tmp_path: Path) -> None:
    base, file = load_pipeline(bases / "sd15").denoiser, bases / f"sd15.{form}"
    published = PublishedStudent(place(bases / "sd15"), file, timesteps=(399,)).sampler(PROMPTS).model.state_dict()
    for begun in (started(copy_of(base), str(file)), begun_fake(copy_of(base), str(file))):
        found = begun.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in published.items())
    with pytest.raises(UserError, match=r"digits|is no network of a text-to-image model"):
        started(digits(), str(file))
    _broken("missing", tmp_path / "w.bin", torch.load(bases / "sd15.bin", weights_only=True))
    with pytest.raises(UserError, match=r"w\.bin: .*lacks"):
        started(copy_of(base), str(tmp_path / "w.bin"))


def test_doctor_knows_files_of_others_and_adapters_as_starts(bases: Path, tmp_path: Path) -> None:
    base = load_pipeline(bases / "sd15").denoiser
    ours = AdaptedNetwork.fresh(AdaptedBase(base.network), Form(1, 1.0))
    save_adapter(tmp_path / "ours.safetensors", ours.adapter)
    save_file({"unet.x.lora_A.weight": torch.ones(1, 1)}, tmp_path / "theirs.safetensors")
    recipe = {
        "task": "distill",
        "teacher": {"kind": "pipeline", "path": str(bases / "sd15")},
        "prompts": {"kind": "list", "texts": list(PROMPTS)},
        "method": {"kind": "distribution-matching", "fake": {"kind": "learned", "start": str(bases / "sd15.bin")}},
        "target": {"kind": "fixed"},
        "states": {"kind": "usual"},
        "reflected": {"kind": "none"},
        "data": None,
        "training": {"steps": 2},
        "evaluation": {"features": {"kind": "fourier"}},
    }
    for name, words in (("ours", "is a whole adapter"), ("theirs", "1 tensors of another program's adapter")):
        student = {"kind": "lora", "rank": 1, "start": str(tmp_path / f"{name}.safetensors")}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "student": student}))
        found = {finding.place: finding for finding in examine(tmp_path / "recipe.yaml")}
        assert (found["student.start"].level, words in found["student.start"].sentence) == ("ok", True)
        fake = found["method.fake.start"]
        assert (fake.level, "tensors of another program; a run says" in fake.sentence) == ("ok", True)


@pytest.mark.filterwarnings("error")
def test_a_pickle_of_another_protocol_is_one_sentence(tmp_path: Path) -> None:
    """torch warns of it on stderr, before the sentence."""
    (tmp_path / "weights.bin").write_bytes(pickle.dumps({"weight": [1, 2]}, protocol=4))
    with pytest.raises(UserError, match=r"weights\.bin: is not a state dict"):
        read_state_dict(tmp_path / "weights.bin")
