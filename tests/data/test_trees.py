"""One tree of images is one set, in a folder or in an archive; what of it is passed over is
counted, and moves no class.
"""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.command.tables.contents import images_table
from fewstep.data import Images, open_images
from fewstep.data.labels import class_number
from fewstep.data.tree import EMPTY, HIDDEN, LINK, NOWHERE, SUFFIX, natural
from fewstep.errors import UserError
from fewstep.runs.pictures.image_sets import describe_images, make_zip
from image_kit import picture, png, zipped


def _tree(path: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            place.mkdir()
        else:
            place.write_bytes(png(picture(seed)) if name.endswith(".png") else b"no image")
    return path


def _as_macos_packs(folder: Path, path: Path) -> Path:
    """The zip that macOS makes of a folder: the folder itself is in it, and beside it a second
    tree.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder.name}/", b"")
        for file in sorted(folder.rglob("*")):
            name = f"{folder.name}/{file.relative_to(folder).as_posix()}"
            if file.is_dir():
                archive.writestr(f"{name}/", b"")
                continue
            archive.writestr(name, file.read_bytes())
            archive.writestr(f"__MACOSX/{Path(name).parent.as_posix()}/._{file.name}", b"\0\5\x16\7 fork")
        archive.writestr(f"{folder.name}/.DS_Store", b"\0\0\0\1Bud1")
    return path


def _same(one: Images, other: Images) -> None:
    assert one.names == other.names
    assert one.classes == other.classes
    assert torch.equal(one.take(torch.arange(len(one))), other.take(torch.arange(len(other))))
    assert (one.labels is None) is (other.labels is None)
    assert one.labels is None or torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    "names",
    [
        ["dog/b.png", "dog/a.png", "cat/z.png", "cat/notes.txt"],
        ["b.png", "a.png"],
        ["1/x/b.png", "10/a.png", "2/c.png", "3/"],
    ],
)
def test_an_archive_made_on_a_mac_is_the_folder_that_it_was_made_of(names, tmp_path):
    folder = _tree(tmp_path / "photos", names)
    packed = open_images(_as_macos_packs(folder, tmp_path / "photos.zip"))
    _same(open_images(folder), packed)
    assert packed.passed_over.kinds[HIDDEN] == (2, "__MACOSX")


def test_an_archive_of_class_folders_has_classes_and_edms_own_folders_are_none(tmp_path):
    content = png(picture(0))
    images = open_images(zipped(tmp_path / "a.zip", {"dog/a.png": content, "cat/b.png": content}))
    assert (images.names, images.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert images.remarks == (
        (
            f"{tmp_path / 'a.zip'}: has no dataset.json, so that its 2 folders are the classes; set "
            "'data.labels: false' for no classes."
        ),
    )
    assert open_images(tmp_path / "a.zip", labels=False).remarks == ()
    plain = open_images(
        zipped(tmp_path / "b.zip", {"00000/img00000000.png": content, "00001/img00001000.png": content})
    )
    assert (plain.labels, plain.remarks) == (None, ())
    described = open_images(
        zipped(
            tmp_path / "c.zip",
            {
                "set/x.png": content,
                "set/dataset.json": json.dumps({"labels": [["x.png", 3]]}).encode(),
                "__MACOSX/._set": b"",
            },
        )
    )
    assert described.labels.tolist() == [3]


def test_numbers_in_names_of_classes_count_as_numbers_and_a_changed_order_is_said(tmp_path):
    images = open_images(_tree(tmp_path / "set", ["10/a.png", "2/b.png", "1/c.png"]))
    assert images.names == ("1", "2", "10")
    assert images.labels.tolist() == [0, 2, 1]
    (said,) = images.remarks
    assert "class 1 is '2'; an earlier fewstep, which sorted them by characters, had '10' there" in said
    for kept in (["01/a.png", "02/a.png", "10/a.png"], ["ant/a.png", "bee/a.png", "n02/a.png"]):
        assert open_images(_tree(tmp_path / kept[0][:3].strip("/"), kept)).remarks == ()
    assert sorted(["b", "a10", "a9", "a", "a09", "10", "9"], key=natural) == ["9", "10", "a", "a09", "a9", "a10", "b"]


def test_a_name_in_an_archive_may_be_of_any_length(tmp_path):
    content = png(picture(0))
    images = open_images(
        zipped(
            tmp_path / "a.zip", {f"{'9' * 5000}/a.png": content, "2/b.png": content, f"1/{'x/' * 20_000}c.png": content}
        )
    )
    assert images.names == ("1", "2", "9" * 5000)


def test_a_class_without_a_readable_image_keeps_its_number(tmp_path):
    folder = _tree(tmp_path / "set", ["ant/a.png", "bee/x.tiff", "cat/", "dog/d.png"])
    (folder / "cow").symlink_to(folder / "ant")
    images = open_images(folder)
    assert images.names == ("ant", "bee", "cat", "cow", "dog")
    assert images.labels.tolist() == [0, 4]
    assert images.classes == 5
    assert images.passed_over.as_json() == {
        SUFFIX: {"count": 1, "example": "bee/x.tiff"},
        LINK: {"count": 1, "example": "cow"},
        EMPTY: {"count": 3, "example": "bee"},
    }
    sentence, empty = images.remarks
    assert sentence == (
        f"{folder}: passed over 1 files whose suffix is none of .bmp, .jpeg, .jpg, .png, .ppm, .webp (such "
        "as 'bee/x.tiff'); 1 links to folders (such as 'cow'); "
        "3 classes without an image, which keep their numbers (such as 'bee')."
    )
    assert "class 1 ('bee') has no image and keeps its number" in empty
    make_zip(folder, tmp_path / "set.zip")
    _same(images, open_images(tmp_path / "set.zip"))
    assert images_table(describe_images(folder)).splitlines()[-2:] == [sentence, empty]


def test_links_are_followed_to_files_and_counted_where_they_lead_nowhere(tmp_path):
    folder = _tree(tmp_path / "set", ["a.png"])
    (folder / "b.png").symlink_to(folder / "a.png")
    (folder / "c.png").symlink_to(folder / "gone.png")
    images = open_images(folder)
    assert len(images) == 2
    assert images.passed_over.kinds == {NOWHERE: (1, "c.png")}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder = _tree(tmp_path / "set", ["ant/a.png", "bee/b.png"])
    real = os.scandir

    def failing(place):
        if str(place).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(UserError, match=r"bee: cannot be read \(Permission denied\); make it readable"):
        open_images(folder)


def test_two_classes_for_one_image_are_refused_and_labels_of_no_image_are_counted(tmp_path):
    content = png(picture(0))
    with pytest.raises(UserError, match=r"'dataset\.json' gives 'x/a\.png' two classes, 1 and 2; leave one of them"):
        open_images(zipped(tmp_path / "a.zip", {"x/a.png": content}, {"labels": [["x/a.png", 1], ["x\\a.png", 2]]}))
    images = open_images(
        zipped(tmp_path / "b.zip", {"a.png": content}, {"labels": [["a.png", 1], ["a.png", 1], ["gone.png", 0]]})
    )
    assert images.labels.tolist() == [1]
    assert images.passed_over.kinds == {"labels of dataset.json without an image": (1, "gone.png"), EMPTY: (1, "0")}


@pytest.mark.parametrize(
    "value",
    [
        1.7,
        "1.7",
        b"1.7",
        -1,
        100_000,
        "-1",
        "1_0",
        "",
        b"dog",
        float("nan"),
        float("inf"),
        None,
        [1],
        "1" * 5000,
        np.float32(0.5),
    ],
)
def test_a_class_is_a_whole_number(value):
    with pytest.raises(UserError, match="refused"):
        class_number(value, lambda: UserError("refused"))


@pytest.mark.parametrize("value", [3, 3.0, "3", b"3", b" 3\n", np.int64(3), np.float32(3)])
def test_a_whole_number_is_a_class_however_it_is_written(value):
    assert class_number(value, lambda: UserError("refused")) == 3


def test_a_fraction_in_dataset_json_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has the label \['a\.png', 1\.7\]"):
        open_images(zipped(tmp_path / "a.zip", {"a.png": png(picture(0))}, {"labels": [["a.png", 1.7]]}))


def test_names_that_are_not_utf8_are_names(tmp_path):
    folder = tmp_path / "set"
    for seed, name in enumerate([b"caf\xe9", b"dog"]):
        place = os.path.join(os.fsencode(folder), name)
        os.makedirs(place)
        with open(os.path.join(place, b"\xff.png"), "wb") as stream:
            stream.write(png(picture(seed)))
    (folder / "dog" / "b.txt").write_text("x", encoding="utf-8")
    images = open_images(folder)
    described = make_zip(folder, tmp_path / "set.zip")
    _same(images, open_images(tmp_path / "set.zip"))
    assert "caf\\udce9" in images_table(described)
    assert len(images.identity) == 64


def test_names_that_macos_packs_without_saying_their_coding_are_read_as_utf8(tmp_path):
    name = unicodedata.normalize("NFD", "café/ß.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("dog/a.png", png(picture(0)))
        archive.writestr(name, png(picture(1)))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    # The flag that says UTF-8 is taken out, of the entry and of the directory.
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.rindex(sign)
        content[start + place + 1] &= ~0x08 & 0xFF
    (tmp_path / "a.zip").write_bytes(bytes(content))
    images = open_images(tmp_path / "a.zip")
    assert images.names == (name.split("/")[0], "dog")
    assert images.labels.tolist() == [0, 1]
