"""Sets of other libraries become a zip once, image for image, and what cannot is one sentence; and
what `fewstep data` does.
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.command.cli import app
from fewstep.data import open_images
from fewstep.data.conversion.convert import cached, huggingface, webdataset
from fewstep.data.conversion.hub import commit_of
from fewstep.data.conversion.image_records import ImageRecord, from_rows, from_shards, write_records
from fewstep.data.conversion.shards import expanded
from fewstep.data.tree import HIDDEN, PassedOver
from fewstep.errors import UserError
from fewstep.recipes import config
from fewstep.runs.pictures.image_sets import describe_images, make_zip
from fewstep.runs.pictures.sample_files import write_samples
from foreign_kit import Rows, datasets_library, read_shards, webdataset_library, write_shard
from image_kit import picture, png, zipped


def _pixels(path: Path) -> np.ndarray:
    return open_images(path).pixels.permute(0, 2, 3, 1).numpy()


def test_rows_and_shards_give_the_same_images_as_files(tmp_path):
    (tmp_path / "lone.png").write_bytes(png(picture(2)))
    rows = [{"image": {"bytes": png(picture(seed)), "path": None}, "label": 2 - seed} for seed in range(2)]
    rows.append({"image": {"bytes": None, "path": str(tmp_path / "lone.png")}, "label": 0})
    samples = [
        {
            "__key__": f"s{seed}",
            "__url__": "a.tar",
            "png": png(picture(seed)),
            "cls": str(2 - seed).encode(),
            "json": b"{}",
        }
        for seed in range(3)
    ]
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
        (
            lambda: from_rows([{"image": {"bytes": b""}, "label": -1}], "image", "label", "set"),
            r"set: row 0: the class is -1, not a whole number from 0",
        ),
        (
            lambda: from_rows([{"image": {"bytes": b""}, "label": 1.7}], "image", "label", "set"),
            r"set: row 0: the class is 1\.7, not a whole number from 0",
        ),
        (
            lambda: from_shards([{"__key__": "k", "png": b"", "cls": b"1.7"}], "cls", "s.tar"),
            r"the class is b'1\.7', not a whole number",
        ),
        (
            lambda: from_shards([{"__key__": "k", "txt": b""}], None, "s.tar"),
            r"s\.tar: sample 'k' has 0 images, not one",
        ),
        (
            lambda: from_shards([{"__key__": "k", "png": b"", "jpg": b""}], None, "s.tar"),
            r"sample 'k' has 2 images, not one",
        ),
        (lambda: from_shards([{"__key__": "k", "png": b""}], "cls", "s.tar"), r"sample 'k' has no '\.cls'"),
        (
            lambda: from_shards([{"__key__": "k", "png": b"", "cls": b"dog"}], "cls", "s.tar"),
            r"the class is b'dog', not a whole number",
        ),
        (
            lambda: [ImageRecord(png(picture(0)), None, "a"), ImageRecord(png(picture(0, 5, 4)), None, "b")],
            r"b: has 4 x 5 pixels, the first image 4 x 4; give a size",
        ),
    ],
)
def test_what_cannot_be_converted_is_one_sentence_and_leaves_nothing(records, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        write_records(tmp_path / "new" / "set.zip", records(), None)
    assert list((tmp_path / "new").iterdir()) == []


def _writer(made: list[Path]):
    def write(path: Path) -> PassedOver:
        made.append(path)
        write_records(path, [ImageRecord(png(picture(len(made))), None, "x")], None)
        return PassedOver.of({HIDDEN: [".x"]})

    return write


def test_a_cached_set_is_made_once_for_what_was_asked_of_one_content(tmp_path):
    made: list[Path] = []
    first = cached(tmp_path, {"name": "a", "size": 4}, {"commit": "1"}, _writer(made), "a")
    assert cached(tmp_path, {"size": 4, "name": "a"}, {"commit": "1"}, _writer(made), "a") == first
    other = cached(tmp_path, {"name": "a", "size": 5}, {"commit": "1"}, _writer(made), "a")
    newer = cached(tmp_path, {"name": "a", "size": 4}, {"commit": "2"}, _writer(made), "a")
    assert made == [first.path, other.path, newer.path]
    assert np.array_equal(_pixels(first.path)[0], picture(1))
    images = open_images(first)
    assert images.remarks == ("a: passed over 1 hidden files or folders (such as '.x').",)
    assert images.passed_over == first.passed_over == PassedOver({HIDDEN: (1, ".x")})


@pytest.mark.parametrize("rule", ["CONVERSION", "reading_rules"])
def test_other_rules_make_another_set(rule, tmp_path, monkeypatch):
    made: list[Path] = []
    cached(tmp_path, {}, {}, _writer(made), "a")
    monkeypatch.setattr(f"fewstep.data.conversion.convert.{rule}", 99 if rule == "CONVERSION" else lambda: "99")
    cached(tmp_path, {}, {}, _writer(made), "a")
    assert len(set(made)) == 2


def test_the_newest_set_serves_where_its_source_cannot_be_asked(tmp_path):
    made: list[Path] = []
    asked = {"name": "a"}
    old, new = (cached(tmp_path, asked, {"commit": commit * 40}, _writer(made), "a") for commit in "12")
    os.utime(old.path, (1, 1))
    found = cached(tmp_path, asked, None, _writer(made), "a")
    assert found.path == new.path
    assert re.fullmatch(
        r"a: what it holds now cannot be asked; the conversion of \d{4}-\d\d-\d\d serves \(commit 222222222222\)\.",
        found.remarks[-1],
    )
    assert (
        cached(tmp_path, {"name": "b"}, None, _writer(made), "b")
        .remarks[-1]
        .endswith("its library has given what it has.")
    )
    assert len(made) == 3


def test_a_zip_that_was_cut_or_altered_is_made_anew_and_that_is_said(tmp_path):
    made: list[Path] = []
    first = cached(tmp_path, {}, {}, _writer(made), "a")
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-7])
    again = cached(tmp_path, {}, {}, _writer(made), "a")
    assert again.remarks[-1] == f"{first.path}: was cut or altered since it was made, and is made anew."
    assert len(made) == 2
    assert len(open_images(again)) == 1


def test_a_process_that_ends_while_a_set_is_made_leaves_none(tmp_path):
    made: list[Path] = []

    class Killed(BaseException):
        pass

    def write(path: Path) -> PassedOver:
        _writer(made)(path)
        raise Killed

    with pytest.raises(Killed):
        cached(tmp_path, {}, {}, write, "a")
    assert cached(tmp_path, {}, {}, _writer(made), "a").path == made[0]
    assert len(made) == 2
    assert np.array_equal(_pixels(made[0])[0], picture(2))


def test_two_processes_make_one_set_once(tmp_path):
    """The second waits for the first; each has the set of the one that wrote it."""
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:

            def write(path: Path, number: int = number) -> PassedOver:
                (tmp_path / f"written-{number}").touch()
                time.sleep(0.5)
                write_records(path, [ImageRecord(png(picture(5)), None, "x")], None)
                return PassedOver()

            os._exit(
                0 if np.array_equal(_pixels(cached(tmp_path / "cache", {}, {}, write, "a").path)[0], picture(5)) else 1
            )
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert len(list(tmp_path.glob("written-*"))) == 1


@pytest.mark.parametrize(
    "urls",
    [
        "pipe:touch x.tar",
        "http://a/b.tar::pipe:id.tar",
        "file:/a.tar",
        "gs://b/c.tar",
        "-",
        "list.yaml",
        "http://a/$(id).tar",
        "http://a/list.yaml",
        "http://a/x y.tar",
    ],
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


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Two shards of two samples each, the library standing in as a function."""
    monkeypatch.setitem(sys.modules, "webdataset", webdataset_library())
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for number in range(2):
        samples = {f"{number}{seed}.jpg": png(picture(2 * number + seed, 6, 8)) for seed in range(2)}
        write_shard(
            tmp_path / f"x-{number}.tar",
            {**samples, **{name.replace("jpg", "cls"): b"1" for name in samples}, f"__MACOSX/._{number}0.jpg": b"fork"},
        )
    return str(tmp_path / "x-{0..1}.tar")


def test_a_recipe_names_shards_and_gets_images_by_index(shards, tmp_path):
    choice = config.WebDatasetData(kind="webdataset", urls=shards, label="cls", size=6)
    data = choice.open()
    assert (len(data), data.shape, data.classes) == (4, (3, 6, 6), 2)
    assert np.array_equal(
        data.take(torch.tensor([1]))[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy(),
        picture(1, 6, 8)[:, 1:7],
    )
    assert data.remarks == (
        (
            f"shards '{shards}': passed over 1 hidden files or folders (such as '__MACOSX'); 1 classes without "
            "an image, which keep their numbers (such as '0')."
        ),
    )
    before = data.identity
    (tmp_path / "x-1.tar").write_bytes((tmp_path / "x-0.tar").read_bytes())
    assert choice.open().identity != before
    (tmp_path / "x-1.tar").unlink()
    with pytest.raises(UserError, match=r"x-1\.tar: cannot be read \(No such file"):
        choice.open()
    (tmp_path / "x-1.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"(?s)shards '.*': cannot be read \(.*\); check 'data\.urls'"):
        choice.open()


def test_the_same_shards_elsewhere_are_one_set(shards, tmp_path):
    (tmp_path / "moved").mkdir()
    for number in range(2):
        (tmp_path / f"x-{number}.tar").rename(tmp_path / "moved" / f"y{number}.tar")
    one = webdataset(tmp_path / "data", str(tmp_path / "moved" / "y{0,1}.tar"), "cls", None)
    (tmp_path / "moved").rename(tmp_path / "again")
    assert webdataset(tmp_path / "data", str(tmp_path / "again" / "y{0..1}.tar"), "cls", None).path == one.path


def test_shards_of_a_server_are_known_by_what_it_says_of_them(shards, tmp_path, monkeypatch):
    said: list[dict[str, str] | None] = []
    monkeypatch.setattr("fewstep.data.conversion.convert.address_marks", lambda url: said[-1])
    monkeypatch.setattr(
        sys.modules["webdataset"], "WebDataset", lambda urls, **more: read_shards([str(tmp_path / "x-0.tar")], **more)
    )
    found = []
    for each in ({"etag": '"1"'}, {"etag": '"1"'}, {"etag": '"2"'}, None, {}):
        said.append(each)
        found.append(webdataset(tmp_path / "data", "http://a/x-{0..1}.tar", "cls", None))
    assert found[0].path == found[1].path != found[2].path == found[3].path != found[4].path
    assert "cannot be asked; the conversion of" in found[3].remarks[-1]
    assert (
        found[4]
        .remarks[-1]
        .startswith("shards 'http://a/x-{0..1}.tar': their server says nothing by which a change would be seen")
    )


# The library leaves files to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_library_itself_gives_what_its_stand_in_gives(shards, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "webdataset")
    pytest.importorskip("webdataset")
    found = open_images(webdataset(tmp_path / "data", shards, "cls", 6))
    assert (len(found), found.labels.tolist()) == (4, [1, 1, 1, 1])
    assert "__MACOSX" in found.remarks[0]
    gc.collect()


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{a,b}-{2..1}.tar", ["a-2.tar", "a-1.tar", "b-2.tar", "b-1.tar"]),
        ("{000..001}.tar", ["000.tar", "001.tar"]),
    ],
)
def test_braces_are_ranges_and_choices(urls, names):
    assert expanded(urls) == names


@pytest.mark.parametrize(
    "urls", ["{0..1.tar", "{{0..1},2}.tar", "{0}.tar", "{0..999999999}.tar", "{0..999}-{0..999}.tar", "0}.tar"]
)
def test_braces_that_are_neither_are_refused(urls):
    with pytest.raises(UserError, match=r"'data\.urls' is '.*', (whose|where|which)"):
        expanded(urls)


@pytest.fixture
def library(monkeypatch):
    """The datasets library, standing in; it notes what it was asked to load."""

    def load(name, split, revision):
        library.asked.append((name, revision))
        return Rows([{"image": {"bytes": png(picture(len(library.asked))), "path": None}}])

    library = datasets_library(load)
    library.asked = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return library


def test_the_newest_of_the_hub_is_the_commit_that_it_is_now(library, tmp_path, monkeypatch):
    commits = ["a" * 40]
    monkeypatch.setattr(
        "fewstep.data.conversion.convert.commit_of",
        lambda name, revision: revision if revision and len(revision) == 40 else commits[-1],
    )

    def found(revision=None):
        return huggingface(tmp_path, "some/set", "train", "image", None, revision, None)

    first = found()
    assert first.remarks == (
        f"data set 'some/set': its newest commit is {'a' * 40}; set 'data.revision' to it, so that it stays the same.",
    )
    assert found().path == first.path
    # The commit itself is the same set, and needs no word.
    assert found("a" * 40) == (first.path, "data set 'some/set'", (), PassedOver())
    commits.append("b" * 40)
    assert found().path != first.path
    commits.append(None)
    assert "the conversion of" in found().remarks[-1]
    assert found("a" * 40).path == first.path
    assert library.asked == [("some/set", "a" * 40), ("some/set", "b" * 40)]


def test_a_folder_of_the_library_is_known_by_its_content(library, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.csv").write_text("1", encoding="utf-8")

    def path(name="set"):
        return huggingface(tmp_path / "cache", str(tmp_path / name), "train", "image", None, None, None).path

    first = path()
    assert path() == first
    (tmp_path / "set").rename(tmp_path / "moved")
    assert path("moved") == first
    (tmp_path / "moved" / "a.csv").write_text("2", encoding="utf-8")
    assert path("moved") != first


def test_a_hub_that_cannot_be_reached_names_no_commit(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(self, name, **more):
        raise hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(hub.HfApi, "dataset_info", offline)
    assert commit_of("some/set", None) is None
    assert commit_of("some/set", "c" * 40) == "c" * 40


def test_a_recipe_names_images(tmp_path):
    zipped(
        tmp_path / "a.zip",
        {"a.png": png(picture(0)), "b.png": png(picture(1))},
        {"labels": [["a.png", 0], ["b.png", 1]]},
    )
    data = config.ImagesData(kind="images", path=str(tmp_path / "a.zip"), size=2).open()
    assert (data.shape, data.classes, data.low, data.high) == ((3, 2, 2), 2, -1.0, 1.0)
    plain = config.ImagesData(kind="images", path=str(tmp_path / "a.zip"), labels=False, channels=1).open()
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
    write_records(
        tmp_path / "set.zip",
        [ImageRecord(png(np.full((40, 40, 3), colour, dtype=np.uint8)), None, "x") for colour in colours],
        None,
    )
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
    made = CliRunner().invoke(
        app, ["data", "zip", str(tmp_path / "set"), str(tmp_path / "set.zip"), "--size", "4", "--json"]
    )
    assert json.loads(made.stdout) == {
        "path": str(tmp_path / "set.zip"),
        "images": 1,
        "shape": [3, 4, 4],
        "classes": [{"name": "one", "images": 1}],
    }
    shown = CliRunner().invoke(app, ["data", "show", str(tmp_path / "set.zip"), "--out", str(tmp_path / "sheet.png")])
    assert shown.stdout.splitlines() == [
        f"{tmp_path / 'set.zip'}: 1 images of 4 x 4, RGB, 1 classes",
        "  1  one",
        str(tmp_path / "sheet.png"),
    ]
    for name in ("zip", "emoji", "scenes", "show"):
        assert f"Example: fewstep data {name}" in CliRunner().invoke(app, ["data", name, "--help"]).stdout
