"""Students as folders of diffusers: what the card's own code draws is what we sample."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from card_kit import code_of, run_cards
from safetensors.torch import load_file
from torch import Tensor, nn

import fewstep as fs
from fewstep.command.commands.making import export_run
from fewstep.denoisers import Boundary, NetworkDenoiser, Reflected, TimestepInputs, copy_of, in_network, save_model
from fewstep.doctor import examine, has_problem
from fewstep.errors import NotFinite, UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.keeping.run_identity import run_of
from fewstep.networks import AdaptedBase, AdaptedNetwork, Form
from fewstep.prediction import V, Velocity
from fewstep.random import Key
from fewstep.recipes import shipped_text
from fewstep.recipes.config.teachers import ShippedTeacher
from fewstep.schedule import RectifiedFlow
from fewstep.solvers.sampling import Sampling
from fewstep.times import UniformGrid
from fewstep.zoo import digits
from fewstep.zoo.pipelines import ExportSource, PipelinePlace, export_pipeline, exported_folder, load_pipeline, time_ids
from fewstep.zoo.pipelines.facts import changed_files, read_facts
from pipeline_kit import FACTOR, PROMPTS, SCHEDULE, SIDE, condition, noise, pipeline, times_of

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

FOUR = (999, 749, 499, 249)
SEED = 5
WEIGHTS = "diffusion_pytorch_model.safetensors"
NO_SIGNAL = {**SCHEDULE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Case:
    """A student: of which teacher, sampled along which timesteps."""

    teacher: str
    timesteps: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    boundary: bool = False
    prediction: Any = None
    tolerance: float = 1e-5


CASES = {
    "one-step": Case("sd15", (399,)),
    "one-step-at-the-end": Case("sd15", (999,), Sampling("ddim", "uniform")),
    "four-steps": Case("sd15", FOUR, Sampling(steps=4)),
    "low-timesteps": Case("sd15", (399, 1), Sampling(steps=2)),
    "velocities": Case("sd2", FOUR, Sampling(steps=4)),
    "eps-to-v": Case("sd15", FOUR, Sampling(steps=4), prediction=V()),
    "no-signal": Case("no-signal", FOUR, Sampling(steps=4)),
    "jumps": Case("sd2", FOUR, Sampling("ddim", "uniform", steps=4)),
    "guided": Case("guided", (999, 499), Sampling(steps=2, guidance=4.0)),
    "sdxl": Case("sdxl", (399,)),
    "sdxl-four-steps": Case("sdxl", FOUR, Sampling(steps=4)),
    "boundary": Case("guided", (399,), Sampling(guidance=4.0), boundary=True),
    "boundary-twice": Case("guided", (999, 499), Sampling(steps=2, guidance=4.0), boundary=True, tolerance=2e-4),
}
SHORT = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Drawn(Key):
    """Noise as diffusers draws it, from a generator that remembers."""

    def normal(self, purpose: str, shape: Sequence[int], start: int = 0) -> Tensor:
        return torch.randn(*shape, generator=GENERATOR)


GENERATOR = torch.Generator()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    made = {
        **{name: pipeline(name, tmp_path_factory.mktemp(name)) for name in ("sd15", "sd2", "sdxl")},
        "guided": pipeline("sd15", tmp_path_factory.mktemp("guided"), time_cond_proj_dim=16),
        "no-signal": pipeline(
            "sd2",
            tmp_path_factory.mktemp("no-signal"),
            diffusers.DDIMScheduler(**NO_SIGNAL, prediction_type="v_prediction"),
        ),
    }
    for name, pipe in made.items():
        pipe.save_pretrained(folder / name)
    return folder


def student_of(teachers: Path, case: Case) -> nn.Module:
    """The teacher's network with other weights."""
    student = copy_of(load_pipeline(teachers / case.teacher).denoiser)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    if case.prediction is not None:
        student = NetworkDenoiser(student.network, student.schedule, case.prediction, student.inputs, student.shape)
    student.requires_grad_(False)
    return Boundary(student) if case.boundary else student


def source_of(teachers: Path, case: Case) -> ExportSource:
    times = times_of(case.timesteps, 0.0).tolist()
    place = PipelinePlace(str(teachers / case.teacher))
    return ExportSource(student_of(teachers, case), case.sampling, times, place, "distribution-matching", "0123456789")


@pytest.fixture(scope="module")
def exported(teachers, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for name, case in CASES.items():
        assert export_pipeline(source_of(teachers, case), folder / name) == folder / name
    for name in SHORT:
        export_pipeline(source_of(teachers, CASES["one-step"]), folder / name, name)
    return folder


def asked_of(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"prompts": PROMPTS, "latents": noise(), "seed": SEED} for name in names}


@pytest.fixture(scope="module")
def drawn(exported) -> dict[str, Any]:
    asked = {"prompts": PROMPTS, "latents": noise(), "seed": SEED}
    return run_cards(exported, dict.fromkeys((*CASES, *SHORT), asked))


@torch.no_grad()
def our_pictures(teachers: Path, case: Case) -> Tensor:
    """Of the student that is in memory, in [0, 1]."""
    text = load_pipeline(teachers / case.teacher)
    student = student_of(teachers, case)
    sizes = time_ids(SIDE * FACTOR, SIDE * FACTOR) if case.teacher == "sdxl" else None
    x = noise()
    given = case.sampling.condition(condition(text.encoder(PROMPTS), 2, sizes), x)
    GENERATOR.manual_seed(SEED)
    times = times_of(case.timesteps, 0.0)
    latents = case.sampling.sample(student, Drawn(0), 0, (x, given), text.denoiser.schedule, times)
    return (text.codec.decode(latents) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", CASES)
def test_the_cards_own_code_draws_what_we_sample(name: str, teachers, drawn) -> None:
    ours, theirs = our_pictures(teachers, CASES[name]), drawn[name]["pictures"]
    assert theirs.shape == (2, 3, SIDE * FACTOR, SIDE * FACTOR)
    # A picture that is black and white alone would hide what differs.
    assert float(((ours > 0.01) & (ours < 0.99)).float().mean()) > 0.5
    assert float((ours[0] - ours[1]).abs().max()) > 0.05
    torch.testing.assert_close(theirs, ours, rtol=0, atol=CASES[name].tolerance)


@pytest.mark.parametrize("name", SHORT)
def test_shorter_types_are_the_same_weights_rounded(name: str, teachers, exported, drawn) -> None:
    weights = load_file(exported / name / "unet" / WEIGHTS)
    student = student_of(teachers, CASES["one-step"])
    for key, value in student.network.unet.state_dict().items():
        assert torch.equal(weights[key], value.to(SHORT[name]))
    assert drawn[name]["dtype"] == str(SHORT[name])
    torch.testing.assert_close(drawn[name]["pictures"], drawn["one-step"]["pictures"], rtol=0, atol=2e-2)
    assert json.loads((exported / name / "fewstep.json").read_text())["dtype"] == name


def test_the_call_says_all_that_decides_the_picture(exported, drawn) -> None:
    size = {"height": SIDE * FACTOR, "width": SIDE * FACTOR}
    expected = {
        "one-step": {"timesteps": [399], "guidance_scale": 1.0},
        "one-step-at-the-end": {"timesteps": [999], "guidance_scale": 1.0},
        "four-steps": {"timesteps": list(FOUR), "guidance_scale": 1.0},
        "jumps": {"num_inference_steps": 4, "guidance_scale": 1.0},
        "guided": {"timesteps": [999, 499], "guidance_scale": 4.0},
        "sdxl": {"timesteps": [399], "guidance_scale": 0.0},
        "boundary": {"timesteps": [399], "eta": 1.0, "guidance_scale": 4.0},
    }
    for name, arguments in expected.items():
        assert drawn[name]["arguments"] == {**arguments, **size}
        assert drawn[name]["prompt"] == "a red fox in the snow"
        assert read_facts(exported / name)["call"] == {**arguments, **size}


@pytest.mark.parametrize("name", CASES)
def test_our_own_reader_opens_the_folder(name: str, teachers, exported) -> None:
    teacher, found = load_pipeline(teachers / CASES[name].teacher), load_pipeline(exported / name)
    student = student_of(teachers, CASES[name])
    inner = student.denoiser if isinstance(student, Boundary) else student
    for key, value in inner.state_dict().items():
        assert torch.equal(found.denoiser.state_dict()[key], value)
    for part in ("schedule", "prediction", "inputs", "shape"):
        assert getattr(found.denoiser, part) == getattr(inner, part)
    assert (found.encoder.identity, found.codec.identity) == (teacher.encoder.identity, teacher.codec.identity)
    assert (found.zeros_for_empty, found.remarks) == (teacher.zeros_for_empty, ())


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_all_but_network_and_scheduler_are_the_teachers_bytes(name: str, teachers, exported) -> None:
    out = exported / ("sdxl" if name == "sdxl" else "one-step")
    parts = [path for path in (teachers / name).iterdir() if path.is_dir() and path.name not in ("unet", "scheduler")]
    assert len(parts) == (5 if name == "sdxl" else 3)
    for path in (path for part in parts for path in part.iterdir()):
        assert (out / path.relative_to(teachers / name)).read_bytes() == path.read_bytes()
    index = json.loads((out / "model_index.json").read_text())
    before = json.loads((teachers / name / "model_index.json").read_text())
    assert index == {**before, "scheduler": ["diffusers", "LCMScheduler"]}
    assert str(teachers) not in "".join(path.read_text() for path in out.rglob("*.json")) + code_of(out)


def test_facts_name_each_file_and_a_change_of_any(teachers, exported, tmp_path) -> None:
    out = tmp_path / "copied"
    shutil.copytree(exported / "four-steps", out)
    facts = read_facts(out)
    assert {key: facts[key] for key in ("steps", "timesteps", "guidance", "dtype", "run", "method", "scheduler")} == {
        "steps": 4,
        "timesteps": list(FOUR),
        "guidance": None,
        "dtype": "fp32",
        "run": "0123456789",
        "method": "distribution-matching",
        "scheduler": "LCMScheduler",
    }
    assert facts["teacher"] == {"name": "sd15", "revision": None, "variant": None}
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(facts["files"]) == written - {"README.md", "fewstep.json"}
    assert has_problem(examine(out)) is False
    (out / "README.md").write_text("my own card")
    assert [finding.level for finding in examine(out)] == ["ok", "ok", "note", "ok"]
    weights = out / "unet" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (out / "vae/config.json").unlink()
    (out / "unet" / f"{WEIGHTS}.index.json").write_text("{}")
    assert changed_files(out, facts) == {f"unet/{WEIGHTS}": "changed", "vae/config.json": "missing"}
    found = {Path(finding.place).name: finding.level for finding in examine(out)}
    assert found == {WEIGHTS: "problem", "config.json": "problem", f"{WEIGHTS}.index.json": "note"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"files": {"../../secret": "0" * 64}}, "has no 'files' that names files of the folder"),
        ({"files": {"unet/config.json": 3}}, "has no 'files'"),
        ({"files": []}, "has no 'files'"),
        ({"format": 2}, "is not of format 1"),
    ],
)
def test_facts_of_others_are_believed_in_nothing(change: dict[str, Any], sentence: str, exported, tmp_path) -> None:
    values = json.loads((exported / "sdxl/fewstep.json").read_text())
    (tmp_path / "fewstep.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_facts(tmp_path)
    assert [finding.level for finding in examine(tmp_path)] == ["problem"]


def test_a_teacher_in_a_variant_alone_and_weights_in_shards(teachers, tmp_path, monkeypatch) -> None:
    """The card's call names no variant, and nothing is in the way of shards."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(teachers / "sd15")
    pipe.save_pretrained(tmp_path / "teacher", variant="fp16")
    monkeypatch.setattr(exported_folder, "SHARD", "100KB")
    source = replace(
        source_of(teachers, CASES["one-step"]), teacher=PipelinePlace(str(tmp_path / "teacher"), None, "fp16")
    )
    out = export_pipeline(source, tmp_path / "sharded")
    named = {path.relative_to(out).as_posix() for path in out.rglob("*.safetensors*")}
    assert named == {
        "text_encoder/model.safetensors",
        f"vae/{WEIGHTS}",
        f"unet/{WEIGHTS}.index.json",
        *(f"unet/diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
    }
    expected = our_pictures(teachers, CASES["one-step"])
    torch.testing.assert_close(
        run_cards(tmp_path, asked_of("sharded"))["sharded"]["pictures"], expected, rtol=0, atol=1e-5
    )
    assert all(path.stat().st_mode == (out / "README.md").stat().st_mode for path in out.rglob("*") if path.is_file())


def test_the_index_names_no_library_that_a_file_chose(teachers, tmp_path) -> None:
    shutil.copytree(teachers / "sd15", tmp_path / "teacher")
    path = tmp_path / "teacher/model_index.json"
    index = json.loads(path.read_text())
    hostile = {"vae": ["evil_module", "AutoencoderKL"], "extra": ["evil_module", "Evil"], "_name_or_path": "/home/me"}
    path.write_text(json.dumps({**index, **hostile}))
    source = replace(source_of(teachers, CASES["one-step"]), teacher=PipelinePlace(str(tmp_path / "teacher")))
    out = export_pipeline(source, tmp_path / "out")
    assert json.loads((out / "model_index.json").read_text()) == {**index, "scheduler": ["diffusers", "LCMScheduler"]}


def test_a_student_of_another_size_says_its_own(teachers, tmp_path) -> None:
    source = source_of(teachers, CASES["sdxl"])
    student = source.student
    wide = NetworkDenoiser(student.network, student.schedule, student.prediction, student.inputs, (4, 8, 12))
    out = export_pipeline(replace(source, student=wide), tmp_path / "wide")
    assert load_pipeline(out).denoiser.shape == (4, 8, 12)
    assert {key: read_facts(out)["call"][key] for key in ("height", "width")} == {"height": 16, "width": 24}
    odd = NetworkDenoiser(student.network, student.schedule, student.prediction, student.inputs, (4, 8, 10))
    with pytest.raises(UserError, match=r"pictures of 16 x 20 pixels, and diffusers' pipelines make multiples of 8"):
        export_pipeline(replace(source, student=odd), tmp_path / "odd")


def test_a_run_is_exported_by_the_command(teachers, tmp_path, monkeypatch, capsys) -> None:
    run, case = tmp_path / "run", CASES["guided"]
    run.mkdir()
    (run / "recipe.yaml").write_text(shipped_text("digits-disback") + "prompts: {kind: list, texts: [a d e]}\n")
    how = {"prior": {"time": 1.0, "scale": 1.0}, "range": [-4.0, 4.0]}
    # Two steps from the end are not timesteps on any grid yet; one is.
    one = replace(case, timesteps=(999,), sampling=Sampling(grid=UniformGrid(), guidance=4.0))
    save_model(run / "student.safetensors", student_of(teachers, case), {**how, "sampling": one.sampling.describe()})
    with pytest.raises(UserError, match=r"its teacher \('teacher.kind: shipped'\) is no text-to-image pipeline"):
        export_run(run, tmp_path / "out")
    place = PipelinePlace(str(teachers / case.teacher))
    monkeypatch.setattr(ShippedTeacher, "pipeline", place)
    export_run(run, tmp_path / "out")
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: README.md has the call that samples it.\n"
    facts = read_facts(tmp_path / "out")
    assert (facts["run"], facts["method"]) == (run_of(RunFolder(run).read_recipe()), "distribution-matching")
    found = run_cards(tmp_path, asked_of("out"))["out"]
    torch.testing.assert_close(found["pictures"], our_pictures(teachers, one), rtol=0, atol=1e-5)
    fs.export(run, tmp_path / "short", "bf16")
    assert read_facts(tmp_path / "short")["dtype"] == "bf16"
    (run / "student.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no student\.safetensors; the run may not have ended"):
        export_run(run, tmp_path / "other")


# What is refused


def changed(source: ExportSource, **parts: Any) -> ExportSource:
    """The source with another schedule, prediction, inputs or shape of its student."""
    old = source.student
    names = ("schedule", "prediction", "inputs", "shape")
    return replace(
        source, student=NetworkDenoiser(old.network, *(parts.get(name, getattr(old, name)) for name in names))
    )


REFUSED: dict[str, tuple[Callable[[ExportSource], ExportSource], str]] = {
    "a time between": (
        lambda source: replace(source, times=[0.40025, 0.0]),
        "is called at timestep 399.25, and diffusers' schedulers know whole ones alone; 'student.first_timestep'",
    ),
    "times that do not end": (lambda source: replace(source, times=[0.4]), "do not end at 0"),
    "timestep 0": (lambda source: replace(source, times=[0.001, 0.0]), "is called at timestep 0, from where"),
    "a flow": (
        lambda source: changed(source, schedule=RectifiedFlow(), prediction=Velocity()),
        "schedule 'rectified-flow' with prediction 'velocity'",
    ),
    "another prediction": (lambda source: changed(source, prediction=Velocity()), "with prediction 'velocity'"),
    "other inputs": (lambda source: changed(source, inputs=TimestepInputs(999.0)), "is none of diffusers'"),
    "large noise": (lambda source: replace(source, scale=2.0), "noise of the standard deviation 2, and"),
    "a threshold": (lambda source: replace(source, student=Reflected(source.student)), "is a Reflected, which none"),
    "another network": (
        lambda source: replace(source, student=digits()),
        "network is a SmallUNet, and a text-to-image folder",
    ),
    "gamma": (lambda source: replace(source, sampling=Sampling("gamma")), "jumps of the kind 'gamma' by 'euler'"),
    "a multistep rule": (
        lambda source: replace(source, sampling=Sampling("ddim", rule="dpm2m"), times=times_of(FOUR, 0.0).tolist()),
        "jumps of the kind 'ddim' by 'dpm2m'",
    ),
    "an uneven grid": (
        lambda source: replace(source, sampling=Sampling("ddim"), times=times_of((999, 399), 0.0).tolist()),
        "along the timesteps 999, 399, and DDIMScheduler along 999, 499",
    ),
    "no place for guidance": (
        lambda source: replace(source, sampling=Sampling(guidance=3.0)),
        "reads no guidance scale, and its sampling says 3",
    ),
    "jumps from a boundary": (
        lambda source: replace(source, student=Boundary(source.student), sampling=Sampling("ddim")),
        "jumps of the kind 'ddim' from a boundary",
    ),
    "another teacher": (
        lambda source: replace(
            source, teacher=replace(source.teacher, source=source.teacher.source.replace("sd15", "sdxl"))
        ),
        "give the pipeline that it was distilled from",
    ),
    "no folder": (
        lambda source: replace(source, teacher=PipelinePlace("/nowhere/at/all")),
        "there is no folder /nowhere/at/all",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_diffusers_does_not_sample_as_ours_is_refused_before_anything_is_written(
    name: str, teachers, tmp_path
) -> None:
    change, sentence = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(sentence)):
        export_pipeline(change(source_of(teachers, CASES["one-step"])), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_adapters_types_and_values_are_refused(teachers, tmp_path) -> None:
    source = source_of(teachers, CASES["one-step"])
    with pytest.raises(UserError, match="--dtype: 'int8' is no type of weights; it must be one of fp32, fp16, bf16"):
        export_pipeline(source, tmp_path / "out", "int8")
    with torch.no_grad():
        source.student.network.unet.conv_in.bias[0] = 1e5
    with pytest.raises(NotFinite, match=r"--dtype: 'conv_in\.bias' of the student is not finite in float16"):
        export_pipeline(source, tmp_path / "out", "fp16")
    student = source.student
    adapted = in_network(student, AdaptedNetwork.fresh(AdaptedBase(student.network), Form(1, 1.0)))
    source = replace(source, student=adapted)
    with pytest.raises(UserError, match="carries an adapter, whose weights are not the network's own: fold it"):
        export_pipeline(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_written_into(teachers, tmp_path) -> None:
    source, out = source_of(teachers, CASES["one-step"]), tmp_path / "out"
    out.mkdir()
    export_pipeline(source, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"out: is a folder that holds 'README\.md' already; give a new folder"):
        export_pipeline(source, out, "fp16")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is there already and is no folder"):
        export_pipeline(source, tmp_path / "file")
    with pytest.raises(UserError, match="could not be written"):
        export_pipeline(source, tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
