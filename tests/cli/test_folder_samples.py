"""Exported folders, flows and guided students of others, sampled without a run: as diffusers
samples them on the same noise.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from family_folder_kit import family_pipeline, size_of
from fewstep.command.entry import run_command
from fewstep.denoisers import Boundary, copy_of
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.runs.pictures.published_students import PublishedStudent, sigmas_said
from fewstep.runs.sampler import StudentSampler
from fewstep.solvers.sampling import Sampling
from fewstep.zoo.pipelines import ExportSource, PipelinePlace, export_pipeline, open_pipeline
from fewstep.zoo.pipelines.facts import read_facts
from pipeline_kit import PROMPTS, pipeline, times_of

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

KEY = Key(4, "sample")
SIGMAS = (1.0, 0.75, 0.5, 0.25)
EXPORTS: dict[str, tuple[str, Sampling, Sequence[float]]] = {
    "sd3-jumps": ("sd3", Sampling("ddim", "uniform", steps=4), (*SIGMAS, 0.0)),
    "sd3-noised": ("sd3", Sampling("renoise", "uniform", steps=3), (1.0, 0.7, 0.3, 0.0)),
    "sd15-noised": ("sd15", Sampling("renoise", steps=2), times_of((749, 399), 0.0).tolist()),
    "sd15-jumps": ("sd15", Sampling("ddim", steps=2), times_of((999, 499), 0.0).tolist()),
    "sd15-boundary": ("sd15", Sampling("renoise", steps=2), times_of((749, 399), 0.0).tolist()),
    "guided": ("guided", Sampling("renoise", steps=2, guidance=6.0), times_of((749, 399), 0.0).tolist()),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers, and students of theirs by the names of ``EXPORTS``."""
    root = tmp_path_factory.mktemp("folders")
    family_pipeline("sd3", root / "sd3-tokenizers").save_pretrained(root / "sd3")
    pipeline("sd15", root / "sd15-tokenizers").save_pretrained(root / "sd15")
    pipeline("sd15", root / "guided-tokenizers", time_cond_proj_dim=16).save_pretrained(root / "guided-teacher")
    for name, (teacher, sampling, times) in EXPORTS.items():
        place = root / ("guided-teacher" if teacher == "guided" else teacher)
        student: nn.Module = copy_of(_small(place).denoiser())
        if name == "sd15-boundary":
            student = Boundary(student)
        export_pipeline(ExportSource(student, sampling, times, PipelinePlace(str(place)), "dmd"), root / name)
    return root


def _small(folder: Path) -> Any:
    """A teacher's parts, of tiny pictures."""
    opened = open_pipeline(folder)
    return replace(opened, size=size_of("sd3")) if folder.name == "sd3" else opened


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "samples-cache"))


def student(folder: Path, **said: Any) -> StudentSampler:
    return PublishedStudent(PipelinePlace(str(folder)), **said).sampler(PROMPTS, "cpu")


def ours(sampler: StudentSampler) -> Tensor:
    return sampler.pictured.draw(KEY, len(PROMPTS), torch.arange(len(PROMPTS)), sampler.usual_steps)


@pytest.fixture
def our_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[StudentSampler], Tensor]:
    """Has schedulers draw the noise that a sampler draws; gives the latents that it starts from."""
    import diffusers.schedulers.scheduling_flow_match_euler_discrete as flow
    import diffusers.schedulers.scheduling_lcm as lcm
    import diffusers.schedulers.scheduling_tcd as tcd

    def prepared(sampler: StudentSampler) -> Tensor:
        rows = len(PROMPTS)
        times = sampler.sampling.times(sampler.schedule, sampler.prior.time, sampler.usual_steps)[1:-1]
        noise = [KEY.normal(f"renoise-{float(t):.12g}", (rows, *sampler.shape)) for t in times]
        # A flow's scheduler draws for its last step too, and adds none of it.
        drawn: Iterator[Tensor] = iter([*noise, torch.ones(rows, *sampler.shape)])
        for module in (flow, lcm, tcd):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(drawn))
        return sampler.prior.at(KEY, "prior", rows, torch.arange(rows)).x

    return prepared


def by_pipeline(folder: Path, latents: Tensor, scheduler: Any = None, **call: Any) -> Tensor:
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    return 2 * pipe(list(PROMPTS), latents=latents, output_type="pt", **call).images - 1


@pytest.mark.parametrize("name", EXPORTS)
def test_an_exported_folder_is_sampled_as_its_call_says(name: str, folders: Path, our_noise: Any) -> None:
    sampler = student(folders / name)
    found = ours(sampler)
    call = read_facts(folders / name)["call"]
    theirs = by_pipeline(folders / name, our_noise(sampler), **call)
    assert float((found[0] - found[1]).abs().max()) > 0.01
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("timesteps", [(399,), (749, 399)])
def test_a_network_that_is_told_no_scale_is_guided_by_a_second_pass(
    timesteps: tuple[int, ...], folders: Path, our_noise: Any
) -> None:
    sampler = student(folders / "sd15", timesteps=timesteps, guidance=1.5)
    found, latents = ours(sampler), our_noise(sampler)
    call = {"timesteps": list(timesteps), "guidance_scale": 1.5}
    theirs = by_pipeline(folders / "sd15", latents, diffusers.LCMScheduler, **call)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-3)
    plain = ours(student(folders / "sd15", timesteps=timesteps))
    assert float((found - plain).abs().max()) > 5e-3
    for none in (1.0, 0.0):
        assert torch.equal(ours(student(folders / "sd15", timesteps=timesteps, guidance=none)), plain)


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_a_flow_that_says_nothing_is_told_its_sigmas(guidance: float | None, folders: Path, our_noise: Any) -> None:
    sampler = student(folders / "sd3", sigmas=(1.0, 0.6), guidance=guidance)
    found = ours(sampler)
    side = 2 * sampler.shape[1]
    call = {"sigmas": [1.0, 0.6], "guidance_scale": guidance or 1.0, "height": side, "width": side}
    theirs = by_pipeline(folders / "sd3", our_noise(sampler), **call)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-3)


def test_what_is_given_beside_a_folder_replaces_what_it_says(folders: Path) -> None:
    assert student(folders / "sd3-jumps", sigmas=(1.0, 0.5)).sampling.held == (1.0, 0.5)
    assert student(folders / "sd15-jumps", timesteps=(599,)).sampling.jump == "ddim"


def test_a_scale_that_contradicts_the_folder_is_refused(folders: Path) -> None:
    assert student(folders / "guided").sampling.guidance == 6.0
    assert student(folders / "guided", guidance=6.0).sampling.guidance == 6.0
    assert student(folders / "sd15-noised", guidance=1.0).sampling.guidance is None
    with pytest.raises(UserError, match=r"--guidance: is 4, and the student of this folder is told a scale of 6"):
        student(folders / "guided", guidance=4.0)
    with pytest.raises(UserError, match=r"--guidance: is 1\.5, and the student of this folder makes no second pass"):
        student(folders / "sd15-noised", guidance=1.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sd3", "--timesteps", "999"), "--timesteps: this is a flow, whose times are said before their shift"),
        (("sd15", "--sigmas", "1,0.5"), "--sigmas: this is no flow, and its network is called at --timesteps"),
        (("sd3", "--sigmas", "1,x"), "--sigmas: '1,x' is no list of numbers"),
        (("sd3", "--sigmas", "0.5,1"), "--sigmas: the sigmas 0.5, 1 must be falling numbers above 0 and up to 1"),
        (("sd3",), "--timesteps: is missing, and neither weights nor adapters say"),
    ],
)
def test_what_is_asked_wrongly_of_a_folder_is_one_sentence(
    arguments: tuple[str, ...],
    words: str,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, *more = arguments
    monkeypatch.setattr(sys, "argv", ["fewstep", "sample", "--base", str(folders / base), "--prompt", "blue", *more])
    with pytest.raises(SystemExit) as stopped:
        run_command()
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert (stopped.value.code, sentence.startswith("fewstep: ")) == (2, True)
    assert words in sentence


def test_sigmas_are_falling_numbers_with_commas() -> None:
    assert sigmas_said("1, 0.75,.5") == (1.0, 0.75, 0.5)
    assert sigmas_said(None) == ()
    for text in ("", ",", "-1", "nan", "inf", "1e-3", "2", "0", "0.5,0.5", "1" * 40, "1," * 2000):
        with pytest.raises(UserError, match="--sigmas: "):
            sigmas_said(text)


def test_a_folder_that_contradicts_itself_is_refused(folders: Path, tmp_path: Path) -> None:
    changes: dict[str, tuple[str, dict[str, Any], str]] = {
        "class": ("sd15-noised", {"scheduler": "Evil\nScheduler"}, "for the scheduler, and exported folders have"),
        "flow": ("sd3-jumps", {"scheduler": "LCMScheduler", "timesteps": [999]}, "says that the student is no flow"),
        "no flow": ("sd15-noised", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "has no sigmas in its call"),
        "size": ("sd15-noised", {"call": {"height": 10**9, "width": 8}}, "for height and width in its call"),
        "call": ("sd15-noised", {"call": 3}, "has no 'call' that names arguments"),
        "eta": ("sd15-boundary", {"call": {"eta": 0.3}}, "for eta in its call"),
        "scale": ("sd15-noised", {"call": {"guidance_scale": "7"}}, "for guidance_scale in its call"),
    }
    for name, (source, change, words) in changes.items():
        folder = tmp_path / name
        shutil.copytree(folders / source, folder)
        facts = {**json.loads((folder / "fewstep.json").read_text()), **change}
        (folder / "fewstep.json").write_text(json.dumps(facts))
        with pytest.raises(UserError, match=words):
            student(folder)
