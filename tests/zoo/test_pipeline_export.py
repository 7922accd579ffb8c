"""Students as folders of diffusers: what the card's own code draws is what we sample."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_kit import FACTOR, PROMPTS, SCHEDULE, SIDE, condition, noise, pipeline, times_of
from torch import Tensor, nn

from fewstep.denoisers import Boundary, NetworkDenoiser, Reflected, copy_of
from fewstep.errors import UserError
from fewstep.networks.lora import add_adapter
from fewstep.prediction import V
from fewstep.random import Key
from fewstep.schedule import RectifiedFlow
from fewstep.solvers.sampling import Sampling
from fewstep.zoo.pipelines import ExportSource, PipelinePlace, export, export_pipeline, load_pipeline, time_ids
from fewstep.zoo.pipelines.facts import changed_files, read_facts

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

FOUR = (999, 749, 499, 249)
SEED = 5
NO_SIGNAL = {**SCHEDULE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Case:
    """A student: of which teacher, sampled along which timesteps."""

    teacher: str
    timesteps: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    boundary: bool = False
    prediction: Any = None
    tolerance: float = 1e-3


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
    "boundary-twice": Case("guided", (999, 499), Sampling(steps=2, guidance=4.0), boundary=True, tolerance=2e-3),
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


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return code


def run_cards(parent: Path, names: Sequence[str]) -> dict[str, Any]:
    """What the code of each folder's card makes, in a process that has no fewstep."""
    asked = {"prompts": PROMPTS, "latents": noise(), "seed": SEED}
    torch.save({name: {**asked, "code": code_of(parent / name)} for name in names}, parent / "given.pt")
    script = Path(__file__).with_name("card_script.py")
    surroundings = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [sys.executable, script, "given.pt", "found.pt"],
        cwd=parent,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return torch.load(parent / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def exported(teachers, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for name, case in CASES.items():
        assert export_pipeline(source_of(teachers, case), folder / name) == folder / name
    for name in SHORT:
        export_pipeline(source_of(teachers, CASES["one-step"]), folder / name, name)
    return folder


@pytest.fixture(scope="module")
def drawn(exported) -> dict[str, Any]:
    return run_cards(exported, [*CASES, *SHORT])


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
