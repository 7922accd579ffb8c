"""Students of diffusers' teachers, made by recipes: one step and four equal ``LCMScheduler``'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_diffusers_release import folder

from fewstep.condition import Condition
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.reading.source import validate
from fewstep.runs.sampler import StudentSampler

diffusers = pytest.importorskip("diffusers")
SETTINGS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STUDENTS: dict[str, dict[str, Any]] = {
    "copy": {},
    "lora": {"rank": 2},
    "network": {"network": {"kind": "small-unet", "channels": 3, "width": 8, "depth": 1, "embedding": 8}},
}


def parts_of(path: Path, method: dict[str, Any], student: dict[str, Any]) -> Distillation:
    """A run of a Diff-Instruct recipe without data, on the teacher in a folder."""
    values = load_recipe("digits-diff-instruct").model_dump(mode="json")
    values |= {"teacher": {"kind": "diffusers", "path": str(path)}, "student": student, "data": None}
    values["method"] |= method
    values["evaluation"]["features"] = {"kind": "fourier"}
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    return build_distillation(recipe, path / "run")


@pytest.mark.filterwarnings("ignore:.*timesteps.*")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize(
    ("method", "timesteps"),
    [({}, [399]), ({"steps": 4, "grid": {"kind": "timesteps", "at": [999, 749, 499, 249]}}, [999, 749, 499, 249])],
    ids=["1 step", "4 steps"],
)
def test_a_students_samples_are_lcms(method, timesteps, kind, prediction, tmp_path, monkeypatch) -> None:
    """DisBack's one step labelled 399 and DMD2's four, from unit noise, whose own noise is the
    student's.
    """
    from diffusers.schedulers import scheduling_lcm

    path, network = folder(tmp_path, diffusers.DDPMScheduler(**SETTINGS, prediction_type=prediction))
    parts = parts_of(path, method, {"kind": kind, **STUDENTS[kind], "first_timestep": timesteps[0]})
    key = Key(0, "sample")
    start = parts.prior.at(key, "prior", 3, None)
    torch.testing.assert_close(float(start.x.std()), 1.0, rtol=0.1, atol=0)
    noises = iter(key.normal(f"renoise-{(each + 1) / 1000:.12g}", start.x.shape) for each in timesteps[1:])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(noises))
    scheduler = scheduling_lcm.LCMScheduler(**SETTINGS, prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(timesteps=timesteps)
    raw = parts.student.network if kind == "network" else None
    x = start.x
    for timestep in timesteps:
        with torch.no_grad():
            label = torch.full((3,), float(timestep))
            emitted = network(x, timestep).sample if raw is None else raw(x, label, Condition())
        found = scheduler.step(emitted, timestep, x)
        x = found.prev_sample
    with torch.no_grad():
        ours = StudentSampler(-1.0, 1.0, parts.student, parts.prior, parts.sampling).draw(key, 3, None, len(timesteps))
    torch.testing.assert_close(ours, found.denoised, rtol=1e-5, atol=1e-5)
