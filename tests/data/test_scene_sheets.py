"""A sheet of scenes: each picture with its caption, written once, or refused in a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fewstep.command.cli import app
from fewstep.data.scenes import Scenes
from fewstep.errors import UserError
from fewstep.runs.pictures.image_sets import show_scenes
from fewstep.runs.pictures.sample_files import _broken, write_captioned


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def test_a_sheet_shows_each_scene_and_a_caption_below_it(tmp_path):
    data = Scenes(7, 2, "test", "held-out", 3)
    described = show_scenes(tmp_path / "sheet.png", 2, "test", "held-out", 7, 3)
    assert described["captions"] == data.captions(torch.arange(7))
    assert described["sheet"] == str(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture)
    pixels = ((data.take(torch.arange(7)) + 1) / 2 * 255).round().to(torch.uint8)
    height = (sheet.shape[0] - 8) // 2
    for index in range(7):
        top, left = 8 + index // 6 * height, 8 + index % 6 * 168
        tile = sheet[top : top + 160, left : left + 160]
        assert (tile[2::5, 2::5] == pixels[index].permute(1, 2, 0).numpy()).all()
        below = sheet[top + 160 : top + height - 8, left : left + 160]
        # Something is written there, and nothing on the margin.
        assert (below < 128).any()
        assert (sheet[:, left - 8 : left] == 255).all()


def test_captions_are_broken_at_spaces():
    text = "a picture of a large blue three at the left"
    lines = _broken(text, 14, len)
    assert " ".join(lines) == text
    assert all(len(line) <= 14 for line in lines)
    assert _broken("incomprehensibilities of", 14, len) == ["incomprehensibilities", "of"]


def test_pictures_of_one_channel_are_grey(tmp_path):
    write_captioned(tmp_path / "grey.png", torch.zeros(1, 1, 8, 8), ["a digit"], -1.0, 1.0)
    with Image.open(tmp_path / "grey.png") as picture:
        assert picture.getpixel((9, 9)) == (128, 128, 128)


def test_the_command_writes_a_sheet(tmp_path):
    path = tmp_path / "sheet.png"
    made = CliRunner().invoke(app, ["data", "scenes", str(path), "--digits", "2", "--count", "3", "--json"])
    described = json.loads(made.stdout)
    assert described == {
        "sheet": str(path),
        "scenes": 3,
        "shape": [3, 32, 32],
        "digits": 2,
        "part": "train",
        "combinations": "seen",
        "seed": 0,
        "captions": Scenes(3, 2).captions(torch.arange(3)),
    }
    again = CliRunner().invoke(app, ["data", "scenes", str(tmp_path / "other.jpg"), "--count", "1"])
    assert again.stdout.splitlines() == [str(tmp_path / "other.jpg")]
    assert (tmp_path / "other.jpg").read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"out": "sheet.txt"}, "is no name of a picture"),
        ({"count": 201}, "a sheet has at most 200 scenes, got 201"),
        ({"part": "all"}, "'part' is 'all', and must be one of train, test"),
        ({"combinations": "new"}, "'combinations' is 'new', and must be one of seen, held-out, all"),
    ],
)
def test_sheets_that_cannot_be_are_refused(tmp_path, changes, sentence):
    settings = {"count": 2, **changes}
    with pytest.raises(UserError, match=sentence):
        show_scenes(tmp_path / settings.pop("out", "sheet.png"), **settings)
    assert not list(tmp_path.glob("sheet*"))
