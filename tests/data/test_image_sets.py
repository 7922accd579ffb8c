"""Laws of image sets on disk: pixels come back exactly, labels are whose they are, and each way in
which files can be wrong is one sentence.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import open_images
from fewstep.data.archive import Archive, write_archive
from fewstep.errors import UserError
from image_kit import claiming, picture, png, zipped

NAME = "00000/img00000000.png"


def _pixels(images) -> np.ndarray:
    return ((images.take(torch.arange(len(images))) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def test_a_written_zip_has_edms_layout_and_gives_the_pixels_back(tmp_path):
    path = tmp_path / "set.zip"
    assert (
        write_archive(path, [(Image.fromarray(picture(seed)), seed % 3) for seed in range(1002)], ["x", "y", "z"])
        == 1002
    )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert (names[0], names[999], names[1001], names[-1]) == (
            NAME,
            "00000/img00000999.png",
            "00001/img00001001.png",
            "dataset.json",
        )
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        assert json.loads(archive.read("dataset.json"))["labels"][4] == ["00000/img00000004.png", 1]
    images = open_images(path)
    assert np.array_equal(_pixels(images), np.stack([picture(seed) for seed in range(1002)]))
    assert images.labels.tolist() == [seed % 3 for seed in range(1002)]
    assert images.names == ("x", "y", "z")
    again = tmp_path / "again.zip"
    write_archive(again, [(Image.fromarray(picture(seed)), seed % 3) for seed in range(1002)], ["x", "y", "z"])
    assert again.read_bytes() == path.read_bytes()


def test_values_are_edms(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = open_images(zipped(tmp_path / "a.zip", {"a.png": png(ramp)}))
    expected = torch.arange(256).float().reshape(16, 16) / 127.5 - 1
    assert torch.equal(images.take(torch.tensor([0]))[0], expected.expand(3, 16, 16))
    assert open_images(tmp_path / "a.zip", channels=1).shape == (1, 16, 16)
    assert torch.equal(open_images(tmp_path / "a.zip", channels=1).take(torch.tensor([0]))[0, 0], expected)


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    for seed, name in enumerate(["dog/b.png", "dog/a.png", "cat/z.png", "ant/deep/q.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(picture(seed)))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / ".thumbs.png").write_bytes(b"hidden")
    images = open_images(tmp_path)
    assert images.names == ("ant", "cat", "dog")
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert np.array_equal(_pixels(images), np.stack([picture(seed) for seed in (3, 2, 1, 0)]))
    plain = open_images(tmp_path, labels=False)
    assert plain.labels is None
    assert plain.classes == 0
    assert images.passed_over.as_json() == {
        "hidden files or folders": {"count": 1, "example": ".thumbs.png"},
        "files whose suffix is none of .bmp, .jpeg, .jpg, .png, .ppm, .webp": {"count": 1, "example": "dog/notes.txt"},
    }
    (tmp_path / "stray.png").write_bytes(png(picture(9)))
    with pytest.raises(UserError, match=r"'stray.png' lies beside the sub-folders that name the classes; move it"):
        open_images(tmp_path)
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {"labels": [[name, 5] for name in ("dog/b.png", "dog/a.png", "cat/z.png", "ant/deep/q.png", "stray.png")]}
        )
    )
    assert open_images(tmp_path).labels.tolist() == [5] * 5
    assert open_images(tmp_path).classes == 6


def test_transparency_is_over_white_and_a_palette_is_colours(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    pixels[0, 1] = (0, 0, 0, 0)
    pixels[1, 0] = (0, 0, 0, 51)
    pixels[1, 1] = (0, 0, 255, 255)
    opaque = np.zeros((2, 2, 3), dtype=np.uint8)
    opaque[0] = 255
    images = open_images(zipped(tmp_path / "a.zip", {"a.png": png(pixels), "b.png": png(opaque, "P")}))
    assert _pixels(images)[0].tolist() == [[[255, 0, 0], [255, 255, 255]], [[204, 204, 204], [0, 0, 255]]]
    assert np.array_equal(_pixels(images)[1], opaque)


def test_a_size_takes_the_centred_square(tmp_path):
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, 2:6] = 200
    images = open_images(
        zipped(tmp_path / "a.zip", {"a.png": png(wide), "b.png": png(wide.transpose(1, 0, 2))}), size=2
    )
    assert images.shape == (3, 2, 2)
    assert (_pixels(images) == 200).all()
    square = open_images(zipped(tmp_path / "b.zip", {"a.png": png(picture(3))}), size=4)
    assert np.array_equal(_pixels(square)[0], picture(3))


def _linked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("a.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(picture(0)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png(picture(1)))


def _truncated(path: Path) -> None:
    write_archive(path, [(Image.fromarray(picture(seed)), None) for seed in range(3)])
    path.write_bytes(path.read_bytes()[:-40])


def _flipped(path: Path) -> None:
    write_archive(path, [(Image.fromarray(picture(0)), None)])
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"../a.png": png(picture(0))}, r"entry '\.\./a\.png' names a place outside the zip"),
        ({"/etc/a.png": png(picture(0))}, r"entry '/etc/a\.png' names a place outside the zip"),
        ({"x/../../a.png": png(picture(0))}, r"entry 'x/\.\./\.\./a\.png' names a place outside"),
        ({"C:/a.png": png(picture(0))}, r"entry 'C:/a\.png' names a place outside"),
        (_linked, r"entry 'a\.png' is a link; pack the image itself"),
        (_twice, r"holds two entries of one name"),
        (_truncated, r"is no readable zip .*cut short"),
        (_flipped, r"entry '00000/img00000000\.png' cannot be read .*damaged"),
        ({"a.png": b"MZ no picture"}, r"'a\.png': is no readable PNG, JPEG"),
        ({"a.png": png(picture(0, 40, 40))[:-600]}, r"'a\.png': is no readable PNG, JPEG"),
        ({"a.png": b""}, r"'a\.png': is no readable PNG, JPEG"),
        (
            {"a.png": png(picture(0)), "b.png": png(picture(1, 4, 5))},
            r"'b\.png' has 5 x 4 pixels, the first image 4 x 4; set 'data\.size'",
        ),
        ({"a.png": claiming(9000, 9000)}, r"'a\.png': claims 9000 x 9000 pixels, more than a picture here may have"),
        ({"a.png": claiming(10_000, 10_000)}, r"'a\.png': claims more pixels than"),
        ({"a.png": claiming(60_000, 60_000)}, r"'a\.png': claims more pixels than"),
        ({"readme.txt": b"hello"}, r"holds no images"),
        ({"a.png": png(picture(0)), "dataset.json": b"{labels"}, r"'dataset\.json' is not JSON"),
        ({"a.png": png(picture(0)), "dataset.json": b"[" * 100_000}, r"'dataset\.json' is not JSON"),
        ({"a.png": png(picture(0)), "dataset.json": b"\xff\xfe\x00"}, r"'dataset\.json' is not JSON"),
        ({"a.png": png(picture(0)), "dataset.json": b"[]"}, r"'dataset\.json' must be an object whose 'labels'"),
        (
            {"a.png": png(picture(0)), "dataset.json": b'{"labels": {"a.png": 1}}'},
            r"'dataset\.json' must be an object whose 'labels'",
        ),
        (
            {"a.png": png(picture(0)), "dataset.json": b'{"labels": [["b.png", 1]]}'},
            r"'dataset\.json' has no label for 'a\.png'",
        ),
        (
            {"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", -1]]}'},
            r"has the label \['a\.png', -1\], not a name and a class",
        ),
        (
            {"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", 100000]]}'},
            r"has the label \['a\.png', 100000\], not a name and a class from 0 to 99999",
        ),
        (
            {"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", true]]}'},
            r"has the label \['a\.png', True\]",
        ),
        (
            {"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", [0.5, 1]]]}'},
            r"has the label \['a\.png', \[0\.5, 1\]\]",
        ),
        (
            {"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", 2]], "classes": ["x"]}'},
            r"'classes' must be a list of at least 3 names",
        ),
    ],
)
def test_what_is_wrong_with_a_zip_is_one_sentence_that_names_file_and_entry(files, sentence, tmp_path):
    path = tmp_path / "set.zip"
    if isinstance(files, dict):
        zipped(path, files)
    else:
        files(path)
    with pytest.raises(UserError, match=sentence) as caught:
        open_images(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_set_says_how_to_make_one(tmp_path):
    with pytest.raises(
        UserError,
        match=r"there is no such image set; make one with 'fewstep data zip FOLDER .*' or 'fewstep data emoji",
    ):
        open_images(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"text\.zip: is no readable zip"):
        open_images(tmp_path / "text.zip")


def test_a_bad_image_of_a_set_that_is_not_cached_is_found_when_it_is_read(tmp_path):
    path = zipped(tmp_path / "set.zip", {"a.png": png(picture(0)), "b.png": b"nothing"})
    images = open_images(path, cached_bytes=0)
    assert np.array_equal(
        ((images.take(torch.tensor([0]))[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), picture(0)
    )
    with pytest.raises(UserError, match=r"set\.zip: 'b\.png': is no readable"):
        images.take(torch.tensor([0, 1]))


def test_an_entry_that_claims_too_much_is_refused_before_it_is_read(tmp_path):
    path = zipped(tmp_path / "set.zip", {"a.png": png(picture(0))})
    content = path.read_bytes().replace(len(png(picture(0))).to_bytes(4, "little"), (2**29).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"entry 'a\.png' claims 536,870,912 bytes"):
        open_images(path)


def test_no_two_threads_or_processes_share_an_open_zip(tmp_path):
    path = tmp_path / "set.zip"
    write_archive(path, [(Image.fromarray(picture(seed, 16, 16)), None) for seed in range(50)])
    archive = Archive(path)
    mine = archive._zip()
    other: list[zipfile.ZipFile] = []
    thread = threading.Thread(target=lambda: other.append(archive._zip()))
    thread.start()
    thread.join()
    assert archive._zip() is mine
    assert other[0] is not mine
    expected = [archive.read(name) for name in archive.names]
    child = os.fork()
    if child == 0:
        # What a child reads moves no position of the parent's, and the other way round.
        os._exit(
            0
            if archive._zip() is not mine
            and all(archive.read(name) == content for name, content in zip(archive.names, expected, strict=True))
            else 1
        )
    assert [archive.read(name) for name in archive.names] == expected
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    copy = pickle.loads(pickle.dumps(archive))  # noqa: S301 (made here)
    assert copy.names == archive.names
    assert copy.read(NAME) == archive.read(NAME)


def test_a_failed_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "set.zip"
    write_archive(path, [(Image.fromarray(picture(0)), None)])
    before = path.read_bytes()

    def broken():
        yield Image.fromarray(picture(1)), None
        raise UserError("the source is gone.")

    with pytest.raises(UserError, match=r"^the source is gone\.$"):
        write_archive(path, broken())
    with pytest.raises(UserError, match="there are no images to put into it"):
        write_archive(path, [])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["set.zip"]
