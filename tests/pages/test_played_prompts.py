"""Pairs and pictures of prompts: by the model that ships, and a student after one step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pages_kit import SMALL, asked

from fewstep.errors import UserError
from fewstep.pages import LocalServer, PlayedRun, PlayPage
from fewstep.pages.played_run import SUGGESTED, Wish
from fewstep.runs import distill, load, load_teacher
from fewstep.runs.pictures.sample_files import picture_png
from fewstep.studies.preference import AskedModel, drawn_study

PROMPTS = ["a red seven at the left", "a large blue three"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(folder / "cache"))
        settings = [*SMALL, "training.steps=1", "training.batch=2", "evaluation.samples=2", "evaluation.reference=null"]
        yield distill("scenes-diff-instruct", settings, folder / "run")


def test_a_prompt_is_drawn_as_the_samplers_draw_it(run: Path) -> None:
    played = PlayedRun.opened(run, PROMPTS[0])
    for prompt in (PROMPTS[1], PROMPTS[0], PROMPTS[1]):
        drawn = played.drawn(Wish(False, 2, 1, prompt=prompt))
        assert drawn.png == picture_png(load(run, prompts=[prompt]).pictured(1, 2)[0], -1.0, 1.0)
        assert drawn.evaluations == 1
    drawn = played.drawn(Wish(True, 2, 3, prompt=PROMPTS[1], guidance=3.0))
    teacher = load_teacher(run, 3.0, prompts=[PROMPTS[1]]).pictured
    assert drawn.png == picture_png(teacher(1, 2, steps=3)[0], -1.0, 1.0)
    assert drawn.evaluations == 6
    with LocalServer(PlayPage(played)) as server:
        about = asked(server.address + "about").json
        assert (about["prompts"], about["classes"]) == (PROMPTS[:1], [])
        # As the recipe measures the teacher.
        assert about["teacher"] == {"steps": 25, "guidance": 3.0}
        said = {"model": "student", "seed": 0, "steps": 1}
        for prompt in ("", " \n", None, 7, "\x00", "\ud800", "x" * 10_001):
            assert asked(server.address + "draw", {**said, "prompt": prompt}).status == 400
        assert asked(server.address + "draw", {**said, "prompt": "<script>é"}).status == 200


def test_the_page_begins_with_prompts_of_the_run(run: Path) -> None:
    prompts = PlayedRun.opened(run).about()["prompts"]
    assert len(prompts) == SUGGESTED
    assert prompts[0].startswith("a red ")


def test_a_pair_is_one_prompt_by_both(run: Path, tmp_path: Path) -> None:
    student, teacher = AskedModel(run), AskedModel(run, True, 3.0)
    with pytest.raises(UserError, match="draws what prompts say; give a file"):
        drawn_study(tmp_path / "study", student, teacher, None, None, 0)
    study = drawn_study(tmp_path / "study", student, teacher, PROMPTS, None, 1)
    assert study.captions == tuple(PROMPTS)
    samples = load(run, prompts=PROMPTS).pictured(2, 1)
    assert study.picture(1, "A") == picture_png(samples[1], -1.0, 1.0)
    study.check_asked(student, teacher, 1, PROMPTS)
