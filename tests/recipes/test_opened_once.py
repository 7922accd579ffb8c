"""What a command needs of a text-to-image model is opened once, and what it does not need is not
opened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import without_syncing
from test_text_recipes import PROMPTS, ended, folders, own_cache, recipe

import fewstep.planning.plan
import fewstep.recipes.config.teachers
import fewstep.runs.loading
from fewstep.planning.plan import plan_on_gpus
from fewstep.planning.rehearsal import Rehearsal
from fewstep.recipes.building.frozen_teachers import sketched
from fewstep.runs import evaluate, load, load_guided, load_teacher
from fewstep.runs.export import export_source
from fewstep.runs.loading import load_alone, load_beside
from fewstep.runs.pictures.asked_pictures import pictured_by
from fewstep.zoo.pipelines import OpenedPipeline

__all__ = ["ended", "folders", "own_cache", "without_syncing"]
pytestmark = pytest.mark.usefixtures("without_syncing")

PARTS = ("codec", "codec_sketch", "encoder", "denoiser", "sketch")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a pipeline, each of its parts and a student's file were opened."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, key: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **said: Any) -> Any:
            found[key] += 1
            return original(*args, **said)

        monkeypatch.setattr(owner, name, counted)

    count(fewstep.recipes.config.teachers, "open_pipeline", "pipeline")
    count(fewstep.runs.loading, "load_model", "student")
    for part in PARTS:
        count(OpenedPipeline, part, part)
    return found


def test_a_student_is_loaded_without_its_teachers_network(ended: Path, opened: Counter[str]) -> None:
    load(ended, prompts=["blue"])
    assert opened == {"student": 1, "pipeline": 1, "codec": 1, "encoder": 1}
    opened.clear()
    load_guided(ended, 1.0, ["blue"])
    assert opened == {"student": 1, "pipeline": 1, "codec": 1, "encoder": 1}


def test_a_student_beside_its_teacher_shares_what_is_around_both(ended: Path, opened: Counter[str]) -> None:
    pictured_by(ended, False, True, 3.0, ["blue", "a d e"])
    assert opened == {"student": 1, "pipeline": 1, "codec": 1, "encoder": 1, "denoiser": 1}
    teacher = load_teacher(ended, prompts=["blue", "a d e"])
    beside, apart = load_beside(ended, teacher), load(ended, prompts=["blue", "a d e"])
    assert torch.equal(beside.pictured(3, seed=1), apart.pictured(3, seed=1))
    assert (beside.owner.texts, beside.batch) == (apart.owner.texts, apart.batch)


def test_an_evaluation_opens_each_part_once(ended: Path, opened: Counter[str]) -> None:
    evaluate(ended, guidance=[2.0, 3.0])
    assert {part: opened[part] for part in ("codec", "encoder", "denoiser", "student")} == dict.fromkeys(
        ("codec", "encoder", "denoiser", "student"), 1
    )


def test_an_export_reads_no_text_encoder(ended: Path, opened: Counter[str]) -> None:
    source = export_source(ended)
    assert source.prompt == PROMPTS[0]
    assert (opened["encoder"], opened["codec"], opened["student"]) == (0, 0, 1)


def test_a_plan_opens_the_pipeline_once(
    folders: dict[str, Path], opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = {"pipeline": 1, "sketch": 1, "codec_sketch": 1}
    sketched(recipe(folders["sdxl"]))
    assert opened == once
    opened.clear()
    # A rehearsal opens the twin's teacher, which is another one.
    rehearsed = Rehearsal(defaultdict(lambda: 4.0), {}, graphs=1.0, graphs_bf16=0.5)
    monkeypatch.setattr(fewstep.planning.plan, "rehearse", lambda _: rehearsed)
    found = plan_on_gpus(recipe(folders["sdxl"]), "r.yaml")
    assert opened == once
    assert "codec" in {part.role for part in found.parts}


def test_a_student_alone_has_no_prompts(ended: Path) -> None:
    alone = load_alone(ended)
    assert (alone.classes, alone.codec) == (0, None)
    assert (alone.sampling, alone.prior.time) == (load(ended).sampling, load(ended).prior.time)
