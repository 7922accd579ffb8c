"""Sets of other libraries become a zip once, image for image, and what cannot is one sentence; and what `fewstep data` does."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from image_kit import picture, png, zipped
from PIL import Image

from fewstep.cli import app
from fewstep.data import open_images
from fewstep.data.convert import Record, cached, from_rows, from_shards, huggingface, webdataset, write_records
from fewstep.errors import UserError
from fewstep.recipes import config
from fewstep.recipes.parts import build_data
from fewstep.runs.data import describe_images, make_zip
from fewstep.runs.pictures import write_samples


def _pixels(path: Path) -> np.ndarray:
    return open_images(path).pixels.permute(0, 2, 3, 1).numpy()


def test_rows_and_shards_give_the_same_images_as_files(tmp_path):
    (tmp_path / "lone.png").write_bytes(png(picture(2)))
    rows = [{"image": {"bytes": png(picture(seed)), "path": None}, "label": 2 - seed} for seed in range(2)]
    rows.append({"image": {"bytes": None, "path": str(tmp_path / "lone.png")}, "label": 0})
    samples = [{"__key__": f"s{seed}", "__url__": "a.tar", "png": png(picture(seed)), "cls": str(2 - seed).encode(), "json": b"{}"} for seed in range(3)]
    write_records(tmp_path / "rows.zip", from_rows(rows, "image", "label", "rows"), None)
    write_records(tmp_path / "shards.zip", from_shards(samples, "cls", "shards"), None)
    assert (tmp_path / "rows.zip").read_bytes() == (tmp_path / "shards.zip").read_bytes()
    assert np.array_equal(_pixels(tmp_path / "rows.zip"), np.stack([picture(seed) for seed in range(3)]))
    assert open_images(tmp_path / "rows.zip").labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (lambda: from_rows([{"img": 1}], "image", None, "set"), r"set: row 0 has no column 'image'; it has img"),
        (lambda: from_rows([{"image": "text"}], "image", None, "set"), r"set: row 0: column 'image' holds no image"),
        (lambda: from_rows([{"image": {"bytes": b"x"}}], "image", None, "set"), r"set: row 0: is no readable PNG"),
        (lambda: from_rows([{"image": {"bytes": b""}, "label": -1}], "image", "label", "set"), r"set: row 0: the class is -1, not a whole number from 0"),
        (lambda: from_shards([{"__key__": "k", "txt": b""}], None, "s.tar"), r"s\.tar: sample 'k' has 0 images, not one"),
        (lambda: from_shards([{"__key__": "k", "png": b"", "jpg": b""}], None, "s.tar"), r"sample 'k' has 2 images, not one"),
        (lambda: from_shards([{"__key__": "k", "png": b""}], "cls", "s.tar"), r"sample 'k' has no '\.cls'"),
        (lambda: from_shards([{"__key__": "k", "png": b"", "cls": b"dog"}], "cls", "s.tar"), r"the class is b'dog', not a whole number"),
        (lambda: [Record(png(picture(0)), None, "a"), Record(png(picture(0, 5, 4)), None, "b")], r"b: has 4 x 5 pixels, the first image 4 x 4; give a size"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence_and_leaves_nothing(records, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        write_records(tmp_path / "new" / "set.zip", records(), None)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_cached_set_is_made_once_for_what_was_asked(tmp_path):
    made = []

    def write(path: Path) -> None:
        made.append(path)
        write_records(path, [Record(png(picture(len(made))), None, "x")], None)

    first = cached(tmp_path, {"name": "a", "size": 4}, write)
    assert cached(tmp_path, {"size": 4, "name": "a"}, write) == first
    other = cached(tmp_path, {"name": "a", "size": 5}, write)
    assert made == [first, other]
    assert np.array_equal(_pixels(first)[0], picture(1))


@pytest.mark.parametrize(
    "urls", ["pipe:touch x.tar", "http://a/b.tar::pipe:id.tar", "file:/a.tar", "gs://b/c.tar", "-", "list.yaml", "http://a/$(id).tar", "http://a/list.yaml", "http://a/x y.tar"]
)
def test_addresses_that_run_programs_are_not_opened(urls, tmp_path):
    with pytest.raises(UserError, match=r"'data\.urls' is '.*', neither a path of \.tar files nor an http address"):
        webdataset(tmp_path, urls, None, None)


def test_libraries_that_are_missing_are_named_with_their_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[data\]'"):
        huggingface(tmp_path, "x", "train", "image", None, None, None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[data\]'"):
        webdataset(tmp_path, "x-{0..3}.tar", None, None)


def test_a_recipe_names_shards_and_gets_images_by_index(tmp_path, monkeypatch):
    """The library stands in as an iterable of samples: the path from a recipe's section to a data set."""
    samples = [{"__key__": str(seed), "jpg": png(picture(seed, 6, 8)), "cls": b"1"} for seed in range(3)]
    library = types.ModuleType("webdataset")
    library.WebDataset = lambda urls, shardshuffle: samples  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "webdataset", library)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    data = build_data(config.WebDatasetData(kind="webdataset", urls="x-{0..3}.tar", label="cls", size=6))
    assert (len(data), data.shape, data.classes) == (3, (3, 6, 6), 2)
    assert np.array_equal(data.take(torch.tensor([1]))[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy(), picture(1, 6, 8)[:, 1:7])

    def broken():
        raise FileNotFoundError("x-0.tar")
        yield

    library.WebDataset = lambda urls, shardshuffle: broken()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"shards 'y\.tar': cannot be read \(x-0\.tar\); check 'data\.urls'"):
        build_data(config.WebDatasetData(kind="webdataset", urls="y.tar"))


def test_a_recipe_names_images(tmp_path):
    zipped(tmp_path / "a.zip", {"a.png": png(picture(0)), "b.png": png(picture(1))}, {"labels": [["a.png", 0], ["b.png", 1]]})
    data = build_data(config.ImagesData(kind="images", path=str(tmp_path / "a.zip"), size=2))
    assert (data.shape, data.classes, data.low, data.high) == ((3, 2, 2), 2, -1.0, 1.0)
    plain = build_data(config.ImagesData(kind="images", path=str(tmp_path / "a.zip"), labels=False, channels=1))
    assert (plain.shape, plain.classes, plain.labels) == ((1, 4, 4), 0, None)


def test_a_folder_becomes_the_zip_of_the_same_set(tmp_path):
    for seed, name in enumerate(["dog/b.png", "dog/a.png", "cat/z.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(png(picture(seed)))
    described = make_zip(tmp_path / "set", tmp_path / "set.zip")
    assert described == {
        "path": str(tmp_path / "set.zip"),
        "images": 3,
        "shape": [3, 4, 4],
        "classes": [{"name": "cat", "images": 1}, {"name": "dog", "images": 2}],
    }
    one, other = open_images(tmp_path / "set"), open_images(tmp_path / "set.zip")
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.labels, other.labels)
    make_zip(tmp_path / "set.zip", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "set.zip").read_bytes()
    with pytest.raises(UserError, match=r"give a name that ends in \.zip"):
        make_zip(tmp_path / "set", tmp_path / "set.tar")


def test_a_sheet_shows_each_image_in_its_colours(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    write_records(tmp_path / "set.zip", [Record(png(np.full((40, 40, 3), colour, dtype=np.uint8)), None, "x") for colour in colours], None)
    assert describe_images(tmp_path / "set.zip", tmp_path / "sheet.png")["sheet"] == str(tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(io.BytesIO((tmp_path / "sheet.png").read_bytes())))
    assert sheet.shape == (44, 20 * 42 + 2, 3)
    for column, colour in enumerate(colours):
        assert (sheet[2:42, 2 + 42 * column : 42 + 42 * column] == colour).all()


def test_a_picture_of_rgb_samples_has_their_values(tmp_path):
    samples = torch.from_numpy(picture(0, 32, 32)).permute(2, 0, 1)[None].float() / 127.5 - 1
    write_samples(tmp_path / "one.png", samples, -1.0, 1.0, columns=1)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png"))[2:34, 2:34], picture(0, 32, 32))


def test_the_commands_make_and_show(tmp_path):
    from typer.testing import CliRunner

    (tmp_path / "set" / "one").mkdir(parents=True)
    (tmp_path / "set" / "one" / "a.png").write_bytes(png(picture(0, 6, 8)))
    made = CliRunner().invoke(app, ["data", "zip", str(tmp_path / "set"), str(tmp_path / "set.zip"), "--size", "4", "--json"])
    assert json.loads(made.stdout) == {"path": str(tmp_path / "set.zip"), "images": 1, "shape": [3, 4, 4], "classes": [{"name": "one", "images": 1}]}
    shown = CliRunner().invoke(app, ["data", "show", str(tmp_path / "set.zip"), "--out", str(tmp_path / "sheet.png")])
    assert shown.stdout.splitlines() == [f"{tmp_path / 'set.zip'}: 1 images of 4 x 4, RGB, 1 classes", "        1 one", str(tmp_path / "sheet.png")]
    for name in ("zip", "emoji", "show"):
        assert f"Example: fewstep data {name}" in CliRunner().invoke(app, ["data", name, "--help"]).stdout
