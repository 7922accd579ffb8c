"""Text recipes that are trained on pictures with their captions: latents are made once, each sample
is conditioned on its own caption, and every method that needs data takes them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import without_syncing
from test_text_recipes import validated, values

from fewstep.data.latents import bounds_of, latents_of
from fewstep.denoisers import Reflected
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.recipes.building.distillation import build_distillation
from fewstep.runs import distill, evaluate, load
from fewstep.states import Step
from fewstep.zoo.pipelines import load_pipeline
from foreign_kit import Rows, datasets_library, webdataset_library, write_shard
from image_kit import picture, png
from pipeline_kit import FACTOR, SIDE, pipeline

__all__ = ["without_syncing"]
pytestmark = pytest.mark.usefixtures("without_syncing")

CAPTIONS = ["blue", "a red seven", "", "blue", "d e", "a red seven"]
GUIDED = {"low": 1.0, "high": 3.0, "sample_at": 2.0}
METHODS: dict[str, dict[str, Any]] = {
    "lcm": {
        "kind": "consistency",
        "points": 4,
        "rollout_steps": [2],
        "rule": "euler",
        "grid": "uniform",
        "guidance": GUIDED,
    },
    "pd": {"kind": "progressive", "start": 4, "steps": 2, "grid": "uniform", "convert": "v", "guidance": GUIDED},
    "dmd2": {
        "kind": "distribution-matching",
        "times": {"kind": "uniform", "low": 0.02, "high": 0.98},
        "fake": {"kind": "learned", "times": {"kind": "uniform", "low": 0.02, "high": 0.98}},
        "adversarial": {"kind": "fake-trunk"},
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two pipelines, ``sd15`` and ``sdxl``, and ``pictures`` with captions."""
    root = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(root / "cache"))
        for name in ("sd15", "sdxl"):
            pipeline(name, root / f"{name}-tokenizers").save_pretrained(root / name)
        (root / "pictures").mkdir()
        for number, caption in enumerate(CAPTIONS):
            (root / "pictures" / f"{number}.png").write_bytes(png(picture(number, SIDE * FACTOR, SIDE * FACTOR)))
            (root / "pictures" / f"{number}.txt").write_text(caption)
        yield root


def plain(place: Path, method: str, teacher: str = "sd15", **sections: Any) -> dict[str, Any]:
    data = {"kind": "images", "path": str(place / "pictures"), "captions": True}
    wanted = {
        "prompts": {"kind": "captions"},
        "method": METHODS[method],
        "target": {"kind": "fixed"},
        "data": data,
        **sections,
    }
    return values(place / teacher, **wanted)


@pytest.mark.parametrize("teacher", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_captioned_pictures(method: str, teacher: str, place: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("# test\n" + json.dumps(plain(place, method, teacher)))
    run = distill(file, out=tmp_path / "run")
    sampler = load(run)
    assert set(sampler.owner.texts) == {caption for caption in CAPTIONS if caption}
    assert sampler.pictured(2).shape == (2, 3, SIDE * FACTOR, SIDE * FACTOR)


def in_a_folder(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"kind": "images", "path": str(place / "pictures"), "captions": True}


def in_shards(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setitem(sys.modules, "webdataset", webdataset_library())
    write_shard(place / "a.tar", {path.name: path.read_bytes() for path in (place / "pictures").iterdir()})
    return {"kind": "webdataset", "urls": str(place / "a.tar"), "caption": "txt"}


def in_rows(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    pictures = sorted((place / "pictures").glob("*.png"))
    rows = [
        {"image": {"bytes": path.read_bytes()}, "text": caption}
        for path, caption in zip(pictures, CAPTIONS, strict=True)
    ]
    patch.setitem(sys.modules, "datasets", datasets_library(lambda name, split, revision: Rows(rows)))
    return {"kind": "huggingface", "name": str(place / "pictures"), "caption": "text"}


@pytest.mark.parametrize("data", [in_a_folder, in_shards, in_rows])
def test_a_sample_is_conditioned_on_its_own_caption(
    data: Callable[[Path, pytest.MonkeyPatch], dict[str, Any]],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = build_distillation(validated(plain(place, "lcm", data=data(place, monkeypatch))), tmp_path)
    (term,) = parts.stages[0].phases[0].terms
    state = term.states.draw(Step(Key(3), 64))
    model = load_pipeline(place / "sd15")
    latents = latents_of(parts.data, parts.codec).take(torch.arange(len(CAPTIONS)))
    told = model.encoder([*CAPTIONS])["text"]
    assert state.x0 is not None
    for x0, text in zip(state.x0, state.condition.context["text"], strict=True):
        nearest = int((latents - x0).flatten(1).norm(dim=1).argmin())
        assert torch.allclose(text, told[nearest], atol=1e-5)


def test_data_whose_captions_are_not_known_is_refused_where_it_is_trained_on(place: Path, tmp_path: Path) -> None:
    recipe = validated(plain(place, "lcm", prompts={"kind": "list", "texts": ["blue"]}))
    with pytest.raises(UserError, match=r"set 'prompts\.kind: captions'"):
        build_distillation(recipe, tmp_path)
    alone = validated({**plain(place, "dmd2"), "data": None})
    with pytest.raises(UserError, match="add a 'data' section"):
        build_distillation(alone, tmp_path)


def test_thresholds_in_latents_are_quantiles_of_the_data(place: Path, tmp_path: Path) -> None:
    recipe = validated(plain(place, "lcm", reflected={"kind": "static", "on": ["teacher"]}))
    parts = build_distillation(recipe, tmp_path)
    (term,) = parts.stages[0].phases[0].terms
    teacher = term.objective.teacher.denoiser
    assert isinstance(teacher, Reflected)
    bound = float(teacher.threshold.apply(torch.full((1, 1), 1e9)))
    assert bound == pytest.approx(max(map(abs, bounds_of(latents_of(parts.data, parts.codec)))), rel=1e-6)


def test_pictures_of_another_size_are_refused(place: Path, tmp_path: Path) -> None:
    data = {"kind": "images", "path": str(place / "pictures"), "captions": True, "size": 8}
    with pytest.raises(UserError, match=r"set 'data\.size'"):
        build_distillation(validated(plain(place, "lcm", data=data)), tmp_path)


def test_figures_are_of_pictures_against_pictures(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("# test\n" + json.dumps(plain(place, "dmd2")))
    found = evaluate(distill(file, out=tmp_path / "run"))
    assert found["student"]["1"]["fd"] > 0
    assert "latents" in found["left_out"]["mismatch"]
