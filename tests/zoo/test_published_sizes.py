"""Published models are known by their sizes: as many parameters as they are said to have, without
weights, and a plan of them asks nobody.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from family_folder_kit import family_pipeline, size_of
from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork
from fewstep.planning.plan import Plan, plan_on_gpus
from fewstep.planning.rehearsal import Rehearsal, rehearse
from fewstep.planning.sketch import parts_of, sketch
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
from fewstep.zoo.pipelines import from_pipeline
from fewstep.zoo.pipelines.pipeline_kinds import KINDS
from fewstep.zoo.pipelines.published import published
from fewstep.zoo.pipelines.published_sizes import MODELS
from pipeline_kit import LENGTH

# In billions, as the models' pages and papers say them.
BILLIONS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 0.860,
    "stabilityai/stable-diffusion-xl-base-1.0": 2.567,
    "segmind/SSD-1B": 1.33,
    "stabilityai/stable-diffusion-3-medium-diffusers": 2.03,
    "stabilityai/stable-diffusion-3.5-large": 8.06,
    "black-forest-labs/FLUX.1-dev": 11.90,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": 0.611,
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": 1.60,
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": 1.60,
    "Qwen/Qwen-Image": 20.43,
    "Tongyi-MAI/Z-Image": 6.15,
}
TEXT = [
    name
    for name in shipped_names()
    if isinstance(recipe := load_recipe(name), DistillRecipe) and recipe.teacher.kind == "pipeline"
]
QUICK = ("pixart-sigma-disback",)


@pytest.mark.parametrize("source", MODELS)
def test_a_model_has_as_many_parameters_as_it_is_said_to_have(source: str) -> None:
    found = published(source)
    assert found is not None
    sketch, codec = found.sketch(), found.codec_sketch()
    assert all(value.is_meta for value in (*sketch.parameters(), *codec.parameters()))
    assert sum(value.numel() for value in sketch.parameters()) == pytest.approx(BILLIONS[source] * 1e9, rel=0.01)
    # Pictures of 512 or 1,024 pixels, as each model has them.
    assert sketch.shape[0] == codec.channels
    assert sketch.shape[1] * codec.factor == (512 if "v1-5" in source else 1024)
    with pytest.raises(UserError, match="were not read"):
        found.denoiser()


def test_ssd_1b_has_a_middle_block_that_features_are_taken_of() -> None:
    """One residual block without attention; a U-Net without any is refused."""
    found = published("segmind/SSD-1B")
    assert found is not None
    network: Any = found.sketch().network
    assert isinstance(network, DenoisingNetwork)
    assert [type(each).__name__ for each in network.unet.mid_block.children()] == ["ModuleList", "ModuleList"]
    assert len(network.unet.mid_block.resnets) == 1
    assert list(network.unet.mid_block.attentions) in ([], [None])
    whole = published("stabilityai/stable-diffusion-xl-base-1.0")
    assert whole is not None
    larger: Any = whole.sketch().network
    depths = [
        [len(each.transformer_blocks) for each in block.attentions]
        for unet in (network.unet, larger.unet)
        for block in unet.up_blocks
        if hasattr(block, "attentions")
    ]
    assert depths == [[4, 4, 10], [2, 1, 1], [10, 10, 10], [2, 2, 2]]
    with torch.device("meta"):
        given = {"text": torch.zeros(1, 77, 2048), "pooled": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        features = network.features(torch.zeros(1, 4, 128, 128), torch.zeros(1), Condition(context=given))
    assert features.shape == (1, network.bottleneck, 32, 32)


def test_an_id_that_is_a_folder_here_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert published("segmind/SSD-1B") is not None
    (tmp_path / "segmind" / "SSD-1B").mkdir(parents=True)
    assert published("segmind/SSD-1B") is None
    assert published("somebody/else") is None


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart", "sana", "qwen-image", "z-image"])
def test_prompts_are_as_long_as_a_plan_takes_them_for(name: str, tmp_path: Path) -> None:
    """But for CLIP's part, which is short in the tiny models."""
    pipe = family_pipeline(name, tmp_path)
    kind = KINDS[type(pipe).__name__]
    assert size_of(name)
    found = from_pipeline(pipe).encoder.null()["text"].shape[1]
    assert found == (kind.tokens - 77 + LENGTH if name == "sd3" else kind.tokens)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rehearsal, whose count is no matter here, and no network."""

    class Each(dict[str, float]):
        def __missing__(self, _: str) -> float:
            return 8.0

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan asked somebody")

    monkeypatch.setattr("fewstep.planning.plan.rehearse", lambda _: Rehearsal(Each(), {}, 1.0, 1.0))
    monkeypatch.setattr(socket.socket, "connect", refused)


def planned(name: str, *changes: str) -> Plan:
    recipe = load_recipe(name, changes)
    assert isinstance(recipe, DistillRecipe)
    return plan_on_gpus(recipe, name, memory_gb=80.0)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TEXT])
def test_a_recipe_of_a_published_model_has_a_plan_without_files(name: str) -> None:
    found = planned(name)
    recipe = load_recipe(name)
    assert isinstance(recipe, DistillRecipe)
    assert found.parts[0].parameters == pytest.approx(BILLIONS[recipe.teacher.path] * 1e9, rel=0.01)
    assert all(setting.state > 0 and setting.activations > 0 for setting in found.settings)
    assert sum(found.steps.values()) == recipe.training.steps
    for setting in found.settings:
        assert setting.largest_batch == setting.most(80 * 2**30)
        assert setting.most(8 * 2**30) <= setting.most(24 * 2**30) <= setting.most(80 * 2**30)


@pytest.mark.parametrize("name", ["sd15-lcm-lora-disback", "pixart-sigma-disback"])
def test_a_start_that_is_not_there_changes_no_sketch(name: str, tmp_path: Path) -> None:
    """Of an adapter it is the recipe's own form; what a copy takes does not depend on its start."""
    roles = []
    for start in ("nowhere.safetensors", "null"):
        recipe = load_recipe(name, [f"student.start={start}"])
        assert isinstance(recipe, DistillRecipe)
        roles.append(parts_of(*sketch(recipe, tmp_path), 0))
    assert roles[0] == roles[1]


@pytest.mark.slow
def test_what_is_computed_again_is_counted_once() -> None:
    """A rehearsal counts the same passes whatever the recipe says of recomputation."""
    counts = []
    for on in ("true", "false"):
        recipe = load_recipe("scenes-diff-instruct", [f"training.recompute={on}"])
        assert isinstance(recipe, DistillRecipe)
        counts.append(rehearse(recipe))
    assert counts[0] == counts[1]
    assert counts[0].graphs == pytest.approx(1.0, abs=0.1)
