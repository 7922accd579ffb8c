"""Captions of Hugging Face sets and of shards: the same prompts, picture by picture, as those of a
folder of the same pictures.
"""

from __future__ import annotations

import gc
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.data import Dataset, captioned, open_images
from fewstep.data.archive import write_archive
from fewstep.data.conversion.convert import huggingface, webdataset
from fewstep.data.conversion.image_records import from_rows, from_shards
from fewstep.data.prompts import read_hub_prompts, read_prompts
from fewstep.errors import UserError
from fewstep.recipes import config
from foreign_kit import Rows, datasets_library, webdataset_library, write_shard
from image_kit import picture, png

CAPTIONS = ("a fox", None, "a hen\nin the snow", "", "a fox", "caf\u00e9 \u732b")
"""A fox twice; one picture has no caption, and one an empty one."""
LACKING = 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def files() -> dict[str, bytes]:
    """The set as files: ``NAME.txt`` beside ``NAME.png``."""
    pictures = {f"{number}.png": png(picture(number)) for number in range(len(CAPTIONS))}
    texts = {f"{number}.txt": text.encode() for number, text in enumerate(CAPTIONS) if text is not None}
    return {**pictures, **texts}


def folder(place: Path) -> Path:
    (place / "set").mkdir()
    for name, content in files().items():
        (place / "set" / name).write_bytes(content)
    return place / "set"


def shards(place: Path) -> str:
    """The same in two shards."""
    for number, names in enumerate(("012", "345")):
        write_shard(place / f"x-{number}.tar", {name: each for name, each in files().items() if name[0] in names})
    return str(place / "x-{0..1}.tar")


def rows() -> Rows:
    """The same as rows; what lacks a caption has null."""
    return Rows(
        {"image": {"bytes": png(picture(number)), "path": None}, "text": text, "words": [text]}
        for number, text in enumerate(CAPTIONS)
    )


def of_shards(place: Path, patch: pytest.MonkeyPatch, caption: str | None = "txt") -> Dataset:
    patch.setitem(sys.modules, "webdataset", webdataset_library())
    return config.WebDatasetData(kind="webdataset", urls=shards(place), caption=caption).open()


def of_rows(place: Path, patch: pytest.MonkeyPatch, caption: str | None = "text") -> Dataset:
    patch.setitem(sys.modules, "datasets", datasets_library(lambda name, split, revision: rows()))
    (place / "hub").mkdir(exist_ok=True)
    return config.HuggingFaceData(kind="huggingface", name=str(place / "hub"), caption=caption).open()


@pytest.mark.parametrize("opened", [of_shards, of_rows])
def test_captions_are_those_of_a_folder_picture_by_picture(
    opened: Callable[[Path, pytest.MonkeyPatch], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, found = open_images(folder(tmp_path), captions=True), opened(tmp_path, monkeypatch)
    index = torch.arange(len(CAPTIONS))
    assert found.captions(index) == [text or "" for text in CAPTIONS] == plain.captions(index)
    assert torch.equal(found.take(index), plain.take(index))
    (prompts, samples), (others, wanted) = captioned(found), captioned(plain)
    assert prompts.identity == others.identity
    assert torch.equal(samples.numbers, wanted.numbers)
    assert samples.numbers.tolist() == [0, -1, 1, -1, 0, 2]


@pytest.mark.parametrize(
    ("opened", "name", "example"),
    [(of_shards, "shards '", "sample '1'"), (of_rows, "data set '", "row 1")],
)
def test_pictures_without_a_caption_are_counted_and_said_at_each_opening(
    opened: Callable[[Path, pytest.MonkeyPatch], Dataset],
    name: str,
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(2):
        (remark,) = opened(tmp_path, monkeypatch).remarks
        assert remark.startswith(name)
        assert f"passed over {LACKING} images without a caption (such as '" in remark
        assert f"{example}')." in remark


@pytest.mark.parametrize(("opened", "caption"), [(of_shards, "txt"), (of_rows, "text")])
def test_without_captions_a_set_is_what_it_was(
    opened: Callable[..., Dataset], caption: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = opened(tmp_path, monkeypatch, None)
    with_them = opened(tmp_path, monkeypatch, caption)
    assert without.captions(torch.tensor([0])) is None
    with zipfile.ZipFile(without.source.path) as archive:  # type: ignore[attr-defined]
        assert "metadata.jsonl" not in archive.namelist()
    assert without.source.path != with_them.source.path  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="'caption' of a Hugging Face set or of shards"):
        captioned(without)


@pytest.mark.parametrize(
    ("opened", "caption", "sentence"),
    [
        (of_shards, "cap", r"shards '.*': none of 6 images has a caption; set 'data\.caption' to the extension"),
        (of_rows, "none", r"data set '.*' has no column 'none'; it has image, text, words; set 'data\.caption'"),
        (of_rows, "words", r"column 'words': row 0 is a list \(\['a fox'\]\), where a text should be"),
    ],
)
def test_what_holds_no_captions_is_refused_and_nothing_is_kept(
    opened: Callable[..., Dataset], caption: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path, monkeypatch, caption)
    assert not list((tmp_path / "cache").rglob("*.zip"))
    assert not list((tmp_path / "cache").rglob("about.json"))


def test_a_column_of_nulls_is_no_column_of_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Rows({"image": {"bytes": png(picture(number))}, "text": None} for number in range(3))
    monkeypatch.setitem(sys.modules, "datasets", datasets_library(lambda name, split, revision: empty))
    (tmp_path / "hub").mkdir()
    with pytest.raises(UserError, match=r"none of 3 images has a caption; set 'data\.caption' to the column"):
        huggingface(tmp_path, str(tmp_path / "hub"), "train", "image", None, None, None, "text")


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (
            lambda: from_shards([{"__key__": "k", "png": b"", "txt": b"\xff"}], None, "s.tar", "txt"),
            r"s\.tar: sample 'k': '\.txt' is not UTF-8 \(.*\); save the captions as UTF-8",
        ),
        (
            lambda: from_shards([{"__key__": "k", "png": b"", "txt": b"a\0"}], None, "s.tar", "txt"),
            r"s\.tar: sample 'k': '\.txt': the caption has the control character U\+0000",
        ),
        (
            lambda: from_rows([{"image": {"bytes": b""}, "text": "x" * 10_001}], "image", None, "set", "text"),
            r"set: column 'text': row 0 has 10,001 characters, more than a prompt may have",
        ),
        (
            lambda: from_rows([{"image": {"bytes": b""}}], "image", None, "set", "text"),
            r"set: row 0 has no column 'text'; it has image; set 'data\.image', 'data\.label' and 'data\.caption'",
        ),
    ],
)
def test_what_is_no_caption_is_one_sentence_with_its_place(records: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list(records())


def test_captions_that_could_not_be_read_again_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from fewstep.data.archive import Packed

    monkeypatch.setattr("fewstep.data.archive.MOST_BYTES", 100)
    pictures = [Packed(Image.new("RGB", (4, 4)), None, "x" * 30) for _ in range(2)]
    with pytest.raises(UserError, match="the captions of its first 2 images have more than 100 bytes"):
        write_archive(tmp_path / "a.zip", pictures)
    assert not list(tmp_path.iterdir())


# The library leaves files to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_itself_gives_the_captions(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    found = open_images(webdataset(tmp_path / "data", shards(tmp_path), None, None, "txt"), captions=True)
    assert found.captions(torch.arange(len(CAPTIONS))) == [text or "" for text in CAPTIONS]
    gc.collect()


# The library leaves files to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_datasets_library_itself_gives_captions_and_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    (place := tmp_path / "hub").mkdir()
    for number, text in enumerate(CAPTIONS):
        (place / f"{number}.png").write_bytes(png(picture(number)))
        with open(place / "metadata.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"file_name": f"{number}.png", "text": text}) + "\n")
    found = config.HuggingFaceData(kind="huggingface", name=str(place), caption="text").open()
    index = torch.arange(len(CAPTIONS))
    assert found.captions(index) == [text or "" for text in CAPTIONS]
    assert torch.equal(found.take(index), open_images(folder(tmp_path)).take(index))
    (table := tmp_path / "table").mkdir()
    parquet.write_table(pyarrow.table({"id": index.tolist(), "text": list(CAPTIONS)}), table / "train.parquet")
    prompts = read_hub_prompts(str(table))
    assert prompts.texts == tuple(text for text in CAPTIONS if text)
    assert any("passed over 2 empty prompts" in remark for remark in prompts.remarks)
    assert read_prompts(table / "train.parquet").identity == prompts.identity
    gc.collect()
