"""Captions under samples: whose they are, and that a hostile prompt stays a text."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_run_report import Page, report, write_run

from fewstep.condition import Classes, Conditions
from fewstep.report.sheets import LONGEST, read_sheet, shortened, shown
from fewstep.runs.pictures.sample_files import captions_below, write_captions, write_samples

OVERRIDE = "\u202e"


class Told(Conditions):
    """Conditions of which only the texts matter."""

    def __init__(self, *texts: str):
        self.said = texts

    count = property(lambda self: len(self.said))
    identity = "0" * 64
    texts = property(lambda self: self.said)  # type: ignore[assignment]
    of = null = sketch = None  # type: ignore[assignment]


def samples_of(count: int, size: int = 8) -> torch.Tensor:
    """Each sample is of one tone of its own."""
    return torch.linspace(-1, 1, count)[:, None, None, None].expand(count, 3, size, size)


def written(folder: Path, captions: list[str], columns: int = 10, size: int = 8) -> Path:
    path = folder / "samples" / "final.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_samples(path, samples_of(len(captions), size), -1.0, 1.0, columns)
    write_captions(path, captions, columns)
    return path


def tone(uri: str) -> tuple[set[int], tuple[int, int]]:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return {value for _, value in image.convert("L").getcolors()}, image.size


def test_captions_are_prompts_or_names_or_numbers():
    numbers = torch.tensor([1, 0, 1])
    assert captions_below(Told("a cat", "a dog"), numbers, ["x", "y"]) == ["a dog", "a cat", "a dog"]
    assert captions_below(Classes(2), numbers, ["zero", "one"]) == ["one", "zero", "one"]
    assert captions_below(Classes(2), numbers) == ["class 1", "class 0", "class 1"]
    assert captions_below(Classes(0), None) == captions_below(Classes(2), None) == []


@pytest.mark.parametrize(("count", "columns", "size"), [(7, 3, 8), (6, 3, 20), (1, 1, 40), (12, 5, 8)])
def test_each_sample_has_its_own_caption(tmp_path, count, columns, size):
    captions = [f"prompt {number}" for number in range(count)]
    sheet = read_sheet(written(tmp_path, captions, columns, size))
    assert [tile.caption for tile in sheet.tiles] == captions
    side = size * max(1, 32 // size)
    for index, tile in enumerate(sheet.tiles):
        (found,), shape = tone(tile.picture.uri)
        assert abs(found - index / max(count - 1, 1) * 255) <= 1
        assert shape == (side, side)


def test_captions_that_all_rows_share_stand_under_the_columns(tmp_path):
    sheet = read_sheet(written(tmp_path, [f"class {number % 5}" for number in range(20)], 5))
    assert [tile.caption for tile in sheet.tiles] == [f"class {number}" for number in range(5)]
    _, (wide, tall) = tone(sheet.tiles[0].picture.uri)
    assert (wide, tall) == (32, 4 * 34 - 2)


def test_without_captions_nothing_is_written_and_the_picture_is_whole(tmp_path):
    path = written(tmp_path, ["a"])
    path.with_suffix(".json").unlink()
    write_captions(path, [])
    assert not path.with_suffix(".json").exists()
    assert read_sheet(path).tiles == ()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"columns": 0, "gap": 2, "captions": ["a"]}',
        '{"columns": 3, "gap": -1, "captions": ["a"]}',
        '{"columns": 3, "gap": 2, "captions": []}',
        '{"columns": 3, "gap": 2, "captions": ["a", 1, "c", "d", "e", "f"]}',
        '{"columns": 4, "gap": 2, "captions": ["a", "b", "c", "d", "e", "f"]}',
        '{"columns": 3, "gap": 99, "captions": ["a", "b", "c", "d", "e", "f"]}',
        '{"columns": "3", "gap": 2, "captions": ["a", "b", "c", "d", "e", "f"]}',
        "[" * 100_000,
    ],
)
def test_captions_that_do_not_fit_are_left_out(tmp_path, content):
    path = written(tmp_path, [*"abcdef"], 3)
    assert len(read_sheet(path).tiles) == 6
    path.with_suffix(".json").write_text(content)
    assert read_sheet(path).tiles == ()


def test_a_picture_that_is_cut_short_has_no_parts(tmp_path):
    path = written(tmp_path, [*"abcdef"], 3)
    path.write_bytes(path.read_bytes()[:60])
    assert read_sheet(path).tiles == ()


HOSTILE = {
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "quotes": '" onmouseover="alert(1)" x=\'',
    "nul": "a\0red\x1b[31m seven",
    "direction": f"a {OVERRIDE}neves der\u2066 \u200f",
    "lines": "a red\n\n seven\t\u2028 above",
    "half": "a \ud800 half",
    "template": "{{ 7 * 7 }}{% raw %}",
    "long": "a red seven above a blue three " * 33_000,
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prompt_stays_a_text(tmp_path, name):
    folder, text = write_run(tmp_path / "run"), HOSTILE[name]
    written(folder, [text, "a blue three"], 2)
    page = report(folder)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "use", "image"})
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    full, beside = (attributes["title"] for tag, attributes in page.tags if tag == "span" and "title" in attributes)
    assert beside == "a blue three"
    assert full == (shown(text) or "(empty)")
    assert full.isprintable()
    assert OVERRIDE not in full
    assert shortened(full) in page.text
    assert len(shortened(full)) <= LONGEST
    if name in ("markup", "quotes", "template"):
        assert full == text
    if name == "long":
        assert full == text.strip()
        assert page.text.count("a red seven above") < 10
        assert shortened(full).endswith("…")
    # What is shown is in the picture's own direction, and ends with it.
    spans = [attributes for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert all(each["dir"] == "auto" for each in spans)
    assert [tag for tag, _ in page.tags].count("bdi") == 2


def test_what_is_not_printable_is_shown_as_its_escape():
    assert shown(HOSTILE["nul"]) == "a\\x00red\\x1b[31m seven"
    assert shown(f"a{OVERRIDE}b") == "a\\u202eb"
    assert shown(HOSTILE["lines"]) == "a red seven above"
    assert shown(HOSTILE["half"]) == "a \\ud800 half"
    # Letters of other scripts, and what joins them, are as they are.
    assert shown("سبعة حمراء \U0001f469\u200d\U0001f680") == "سبعة حمراء \U0001f469\u200d\U0001f680"
    assert shortened("a" * LONGEST) == "a" * LONGEST
    assert shortened("a" * (LONGEST + 1)) == "a" * (LONGEST - 1) + "…"


def test_a_page_with_captions_is_whole_and_fetches_nothing(tmp_path):
    folder = write_run(tmp_path / "run")
    written(folder, [f"prompt {number}" for number in range(20)])
    page: Page = report(folder)
    assert all(value.startswith("data:image/png;base64,") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert all(f"prompt {number}" in page.values("alt") for number in range(20))
