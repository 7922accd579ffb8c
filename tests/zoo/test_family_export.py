"""Students of each family as folders of diffusers: what the card's own code draws is what we
sample.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from card_kit import run_cards
from torch import Tensor

from family_folder_kit import NAMES, PROMPTS, family_pipeline, size_of
from family_kit import CASES
from fewstep.condition import Condition
from fewstep.denoisers import NetworkDenoiser, copy_of
from fewstep.errors import UserError
from fewstep.networks.families.transformer import pack
from fewstep.random import Key
from fewstep.solvers.sampling import Sampling
from fewstep.zoo.pipelines import ExportSource, PipelinePlace, export_pipeline, open_pipeline
from fewstep.zoo.pipelines.facts import read_facts

SEED = 5


@dataclass(frozen=True)
class Student:
    """A family's student, how it is sampled and when it is called."""

    family: str
    sampling: Sampling
    times: tuple[float, ...]


ONE = {
    name: Student(name, Sampling("ddim", "uniform"), (0.4, 0.0) if name == "pixart" else (1.0, 0.0)) for name in NAMES
}
FOUR = {
    f"{name}-4": Student(name, Sampling("ddim", "uniform", steps=4), (1.0, 0.75, 0.5, 0.25, 0.0))
    for name in NAMES
    if name != "pixart"
}
NOISED = {
    "sd3-noised": Student("sd3", Sampling("renoise", "uniform", steps=3), (1.0, 0.7, 0.3, 0.0)),
    "pixart-noised": Student("pixart", Sampling("renoise", steps=2), (1.0, 0.5, 0.0)),
    "flux-told": Student("flux", Sampling("ddim", "uniform", guidance=2.0), (1.0, 0.0)),
}
STUDENTS = {**ONE, **FOUR, **NOISED}


class Drawn(Key):
    """Noise as diffusers draws it, from a generator that remembers."""

    def normal(self, purpose: str, shape: Sequence[int], start: int = 0) -> Tensor:
        return torch.randn(*shape, generator=GENERATOR)


GENERATOR = torch.Generator()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    for name in NAMES:
        family_pipeline(name, tmp_path_factory.mktemp(name)).save_pretrained(folder / name)
    return folder


def student_of(teachers: Path, family: str) -> NetworkDenoiser:
    """The teacher's network with other weights."""
    opened = replace(open_pipeline(teachers / family), size=size_of(family))
    student = copy_of(opened.denoiser())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=generator))
    return student.requires_grad_(False)


def source_of(teachers: Path, student: Student) -> ExportSource:
    place = PipelinePlace(str(teachers / student.family))
    model = student_of(teachers, student.family)
    return ExportSource(model, student.sampling, student.times, place, "distribution-matching")


@pytest.fixture(scope="module")
def exported(teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for name, student in STUDENTS.items():
        export_pipeline(source_of(teachers, student), folder / name)
    return folder


@pytest.fixture(scope="module")
def drawn(exported: Path) -> dict[str, Any]:
    asked = {}
    for name, student in STUDENTS.items():
        noise = CASES[student.family].noise()
        packed = student.family in ("flux", "qwen-image")
        asked[name] = {"prompts": PROMPTS, "latents": pack(noise) if packed else noise, "seed": SEED}
    return run_cards(exported, asked)


@torch.no_grad()
def our_pictures(teachers: Path, student: Student) -> Tensor:
    """Of the student that is in memory, in [0, 1]."""
    opened = replace(open_pipeline(teachers / student.family), size=size_of(student.family))
    model, text = student_of(teachers, student.family), opened.whole()
    x = CASES[student.family].noise()
    given = student.sampling.condition(Condition(context=text.encoder(PROMPTS)), x)
    GENERATOR.manual_seed(SEED)
    times = torch.tensor(student.times, dtype=torch.float64)
    latents = student.sampling.sample(model, Drawn(0), 0, (x, given), model.schedule, times)
    return (text.codec.decode(latents) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_cards_own_code_draws_what_we_sample(name: str, teachers: Path, drawn: dict[str, Any]) -> None:
    ours, theirs = our_pictures(teachers, STUDENTS[name]), drawn[name]["pictures"]
    assert theirs.shape == ours.shape
    assert float((ours[0] - ours[1]).abs().max()) > 0.01
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", STUDENTS)
def test_our_own_reader_opens_the_folder(name: str, teachers: Path, exported: Path) -> None:
    student = STUDENTS[name]
    inner = student_of(teachers, student.family)
    found = replace(open_pipeline(exported / name), size=size_of(student.family))
    read = found.denoiser()
    for key, value in inner.state_dict().items():
        assert torch.equal(read.state_dict()[key], value)
    assert (read.prediction, read.inputs, read.shape) == (inner.prediction, inner.inputs, inner.shape)
    # What was a shift by the number of tokens is a number now.
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(read.schedule.sigma(times), inner.schedule.sigma(times), rtol=1e-12, atol=1e-12)


def test_the_facts_say_where_the_network_is_called(exported: Path, teachers: Path) -> None:
    facts = read_facts(exported / "sd3-4")
    assert (facts["steps"], facts["scheduler"], facts["pipeline"]) == (
        4,
        "FlowMatchEulerDiscreteScheduler",
        "StableDiffusion3Pipeline",
    )
    assert facts["call"]["sigmas"] == [1.0, 0.75, 0.5, 0.25]
    assert facts["sigmas"] == pytest.approx([1.0, 0.9, 0.75, 0.5])
    assert facts["timesteps"] == pytest.approx([1000, 900, 750, 500])
    assert "timesteps 1000, 900, 750, 500" in (exported / "sd3-4" / "README.md").read_text()
    assert "of its transformer of" in (exported / "sd3-4" / "README.md").read_text()
    assert read_facts(exported / "flux-told")["call"]["guidance_scale"] == 2.0
    assert read_facts(exported / "flux")["call"]["guidance_scale"] == 3.5
    assert json.loads((exported / "sd3-noised/scheduler/scheduler_config.json").read_text())["stochastic_sampling"]


def test_what_no_flow_scheduler_does_is_refused(teachers: Path, tmp_path: Path) -> None:
    for sampling in (Sampling("gamma", "uniform", steps=2), Sampling("ddim", "uniform", steps=2, rule="dpm2m")):
        student = Student("sd3", sampling, (1.0, 0.5, 0.0))
        with pytest.raises(UserError, match="which no scheduler of diffusers' does as ours"):
            export_pipeline(source_of(teachers, student), tmp_path / "out")
    with pytest.raises(UserError, match="reads no guidance scale, and its sampling says 2"):
        export_pipeline(
            source_of(teachers, Student("sd3", Sampling("ddim", "uniform", guidance=2.0), (1.0, 0.0))), tmp_path / "out"
        )
    source = replace(source_of(teachers, ONE["sd3"]), teacher=PipelinePlace(str(teachers / "flux")))
    with pytest.raises(UserError, match="give the pipeline that it was distilled from"):
        export_pipeline(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
