"""Pairs that runs draw, and a run that is played with: what is shown is what the samplers draw."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from pages_kit import SMALL, asked, digits_run

from fewstep.cost import metered
from fewstep.errors import UserError
from fewstep.pages import LocalServer, PlayedRun, PlayPage
from fewstep.pages.played_run import Wish
from fewstep.runs import distill, load, load_teacher
from fewstep.runs.pictures.sample_files import picture_png
from fewstep.studies.preference import AskedModel, drawn_study, study_at


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return digits_run(folder / "one", 0), digits_run(folder / "two", 1)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill("mixture2d-diff-instruct", [*SMALL, "training.steps=2"], tmp_path_factory.mktemp("plane") / "run")


@pytest.fixture(scope="module")
def played(runs: tuple[Path, Path]) -> PlayedRun:
    return PlayedRun.opened(runs[0])


def test_parts_are_the_samples_of_the_call_bit_for_bit(runs: tuple[Path, Path]) -> None:
    student = load(runs[0])
    object.__setattr__(student, "batch", 7)
    whole = student(20, 5)
    parts = list(student.in_parts(20, 5))
    assert [len(part) for part in parts] == [7, 7, 6]
    assert torch.equal(torch.cat(parts), whole)


def test_a_pair_is_the_same_class_and_seed_by_both(runs: tuple[Path, Path], tmp_path: Path) -> None:
    study = drawn_study(tmp_path / "study", AskedModel(runs[0]), AskedModel(runs[1]), None, 13, 4)
    assert study == study_at(tmp_path / "study")
    assert study.captions == tuple(f"class {i % 10}" for i in range(13))
    for model, run in zip("AB", runs, strict=True):
        samples = load(run)(13, 4)
        for pair in range(13):
            assert study.picture(pair, model) == picture_png(samples[pair], -1.0, 1.0)
    assert study.picture(0, "A") != study.picture(0, "B")
    study.check_asked(AskedModel(runs[0]), AskedModel(runs[1]), 4, None)
    for a, b, seed, captions, why in (
        (runs[1], runs[1], 4, None, "another model A"),
        (runs[0], runs[0], 4, None, "another model B"),
        (runs[0], runs[1], 5, None, "--seed 4"),
        (runs[0], runs[1], 4, ["a fox"], "other prompts"),
    ):
        with pytest.raises(UserError, match=why):
            study.check_asked(AskedModel(a), AskedModel(b), seed, captions)
    with pytest.raises(UserError, match="holds 13 pairs"):
        study.check_asked(AskedModel(runs[0]), AskedModel(runs[1]), 4, None, 12)
    with pytest.raises(UserError, match="holds 'answers' already"):
        drawn_study(tmp_path / "study", AskedModel(runs[0]), AskedModel(runs[1]), None, 2, 0)


def test_a_teacher_is_set_beside_its_student(runs: tuple[Path, Path], tmp_path: Path) -> None:
    teacher = AskedModel(runs[0], True, 2.0)
    study = drawn_study(tmp_path / "study", AskedModel(runs[0]), teacher, None, 2, 0)
    samples = load_teacher(runs[0], 2.0)(2, 0)
    assert study.picture(1, "B") == picture_png(samples[1], -1.0, 1.0)
    assert json.loads((study.folder / "study.json").read_text())["models"]["B"]["guidance"] == 2.0


def test_what_cannot_be_a_pair_is_refused_and_leaves_nothing(
    runs: tuple[Path, Path], plane: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    first = AskedModel(runs[0])
    for other, prompts, pairs, why in (
        (first, None, 2, "are one model"),
        (AskedModel(tmp_path), None, 2, "is not a run folder"),
        (AskedModel(plane), None, 2, "samples are points"),
        (AskedModel(runs[1]), ["a fox"], None, "is told no prompts"),
        (AskedModel(runs[1]), None, 10_001, "give 1 to 10,000"),
    ):
        with pytest.raises(UserError, match=why):
            drawn_study(out, first, other, prompts, pairs, 0)
        assert [each.name for each in tmp_path.iterdir()] == []


def test_what_is_played_is_what_the_samplers_draw(runs: tuple[Path, Path], played: PlayedRun) -> None:
    drawn = played.drawn(Wish(False, 3, 1, number=7))
    assert drawn.png == picture_png(load(runs[0])(1, 3, 7)[0], -1.0, 1.0)
    assert drawn.evaluations == 1
    for guidance, each in ((1.0, 1), (2.0, 2)):
        drawn = played.drawn(Wish(True, 3, 4, number=7, guidance=guidance))
        sampler = load_teacher(runs[0], guidance)
        with metered() as meter:
            assert drawn.png == picture_png(sampler(1, 3, 7, 4)[0], -1.0, 1.0)
        assert drawn.evaluations == meter.evaluations
        assert meter.evaluations % each == 0
        assert drawn.milliseconds > 0


def test_the_page_says_what_the_models_take_and_refuses_all_else(played: PlayedRun) -> None:
    with LocalServer(PlayPage(played)) as server:
        about = asked(server.address + "about").json
        assert about["classes"] == [f"class {i}" for i in range(10)]
        assert (about["run"], about["prompts"], about["points"]) == ("one", [], False)
        assert about["student"] == {"steps": 1, "guidance": None}
        assert about["teacher"]["guidance"] == 1.0
        good = {"model": "teacher", "seed": 0, "steps": 2, "class": 1, "guidance": 1.5}
        drawn = asked(server.address + "draw", good).json
        assert drawn["picture"].startswith("data:image/png;base64,")
        for wrong, why in (
            ({"model": "fake"}, "model: is 'fake'"),
            ({"seed": -1}, "seed: is -1"),
            ({"seed": 2**53}, "seed"),
            ({"seed": None}, "seed: is missing"),
            ({"steps": 0}, "steps: is 0; give a whole number from 1 to 10,000"),
            ({"steps": 10_001}, "steps"),
            ({"steps": 2.5}, "steps"),
            ({"class": 10}, "class: is 10"),
            ({"class": None}, "class"),
            ({"guidance": -0.1}, "guidance"),
            ({"guidance": None}, "guidance"),
        ):
            refused = asked(server.address + "draw", {**good, **wrong})
            assert refused.status == 400
            assert why in refused.sentence
        assert asked(server.address + "answer", good).status == 404


def test_one_picture_is_drawn_at_a_time(played: PlayedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each notes when it begins and ends; a second one waits."""
    inside, most, lock = 0, 0, threading.Lock()
    sampler = played._sampler(Wish(False, 0, 1, number=0))

    class Slow:
        shape, low, high, classes = sampler.shape, -1.0, 1.0, 10

        def __call__(self, *arguments: object) -> torch.Tensor:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with lock:
                inside -= 1
            return torch.zeros(1, *self.shape)

    monkeypatch.setattr(played, "_sampler", lambda wish: Slow())
    with LocalServer(PlayPage(played)) as server:
        found: list[int] = []
        said = {"model": "student", "seed": 0, "steps": 1, "class": 1}
        threads = [
            threading.Thread(target=lambda: found.append(asked(server.address + "draw", said).status)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (found, most) == ([200] * 4, 1)


def test_points_are_shown_as_a_scatter(plane: Path) -> None:
    played = PlayedRun.opened(plane)
    assert played.about()["points"]
    drawn = played.drawn(Wish(False, 0, 1))
    assert drawn.png.startswith(b"\x89PNG")
    assert drawn.evaluations == 1
    with pytest.raises(UserError, match="told no prompts"):
        PlayedRun.opened(plane, "a fox")
