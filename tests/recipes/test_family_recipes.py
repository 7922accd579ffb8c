"""The recipes of transformers, on tiny whole pipelines of their own families: each trains, and is
sampled along its own steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_combinations import without_syncing
from test_methods import trainer_of

from family_folder_kit import family_pipeline, size_of
from family_kit import CASES
from fewstep.planning.twin import twin
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.reading.source import validate
from fewstep.runs.sampler import StudentSampler
from fewstep.schedule import RectifiedFlow, ShiftedFlow
from fewstep.solvers.sampling import Sampling
from fewstep.times import nested_times
from fewstep.zoo.pipelines.published import published

__all__ = ["without_syncing"]
pytestmark = pytest.mark.usefixtures("without_syncing")

FAMILIES = {
    "pixart-sigma-disback": "pixart",
    "sd3-disback": "sd3",
    "sd35-dmd2-4step": "sd3",
    "flux-dmd2-4step-lora": "flux",
    "sana-dmd2-1step": "sana",
    "qwen-image-dmd2-4step-lora": "qwen-image",
    "z-image-dmd2-8step-lora": "z-image",
}
QUICK = "qwen-image-dmd2-4step-lora"
PROMPTS = ["red", "a blue fox", "a"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def captioned_pictures(folder: Path, side: int) -> Path:
    """Made-up pictures with captions."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    for number, prompt in enumerate(PROMPTS):
        values = (torch.rand(side, side, 3, generator=generator) * 255).byte()
        Image.fromarray(values.numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(prompt)
    return folder


def small_one(recipe: DistillRecipe, family: str, root: Path) -> DistillRecipe:
    """The recipe's twin, with a tiny teacher of its own family and the recipe's first level."""
    family_pipeline(family, root / "tokenizers").save_pretrained(root / "pipeline")
    side = size_of(family)
    values = twin(recipe, 12).model_dump(mode="json")
    values["teacher"] = {"kind": "pipeline", "path": str(root / "pipeline"), "size": side}
    values["student"]["first_sigma"] = recipe.student.first_sigma
    if recipe.data is None:
        values["prompts"] = {"kind": "list", "texts": PROMPTS}
    else:
        pictures = captioned_pictures(root / "pictures", side)
        values["data"] = {**recipe.data.model_dump(mode="json"), "path": str(pictures), "size": side}
    made = validate(values, "test")
    assert isinstance(made, DistillRecipe)
    return made


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_is_trained_and_sampled_on_a_teacher_of_its_family(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    family = FAMILIES[name]
    small = small_one(recipe, family, tmp_path)
    parts = build_distillation(small, tmp_path / "run")
    assert parts.teacher.shape == CASES[family].shape
    before = {key: value.clone() for key, value in parts.student.state_dict().items()}
    trainer = trainer_of(small, tmp_path / "run")
    trainer.fit()
    trained = trainer.average.average
    assert any(not torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    samples = StudentSampler(-1.0, 1.0, trained, parts.prior, parts.sampling)(2, classes=1)
    assert samples.shape == (2, *parts.space.shape)
    assert torch.isfinite(samples).all()


def _steps(name: str) -> tuple[Any, Sampling, float]:
    recipe = load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    known = published(recipe.teacher.path)
    assert known is not None
    schedule = known.sketch().schedule
    return schedule, recipe.method.sampling, recipe.student.first_time(schedule)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "pixart-sigma-disback"])
def test_a_flows_student_begins_at_0999_of_the_shifted_times_and_steps_evenly(name: str) -> None:
    schedule, sampling, first = _steps(name)
    assert isinstance(schedule, (RectifiedFlow, ShiftedFlow))
    assert first == pytest.approx(0.999, abs=1e-6)
    steps = sampling.steps
    found = nested_times(sampling.grid, schedule, first, steps)
    even = [0.999 * (1 - index / steps) for index in range(steps)]
    torch.testing.assert_close(found[:-1], torch.tensor(even, dtype=found.dtype), rtol=0, atol=1e-3)


def test_qwen_images_times_are_modelopts() -> None:
    schedule, sampling, first = _steps("qwen-image-dmd2-4step-lora")
    found = nested_times(sampling.grid, schedule, first, sampling.steps)
    said = torch.tensor([0.999, 0.749, 0.4995, 0.24975], dtype=torch.float64)
    torch.testing.assert_close(found[:-1], said, rtol=0, atol=1e-3)


def test_settings_of_modelopt() -> None:
    said = json.loads(json.dumps(load_recipe("qwen-image-dmd2-4step-lora").model_dump(mode="json")))
    method = said["method"]
    assert {method["optimizer"]["lr"], method["fake"]["optimizer"]["lr"]} == {2e-6}
    assert (method["fake"]["updates"], method["steps"], said["target"]["guidance"]["scale"]) == (5, 4, 4.0)
    assert (method["adversarial"]["weight"], method["adversarial"]["r1"]) == (0.03, 0.1)
    assert (said["training"]["batch"], said["training"]["steps"]) == (128, 5000)
    assert 0.5 ** (1 / said["training"]["average"]["steps"]) == pytest.approx(0.9999, abs=1e-7)
