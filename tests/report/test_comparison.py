"""The comparison of runs: a plot that is a picture of the size asked for, a page that is
self-contained, both the same for the same curves.
"""

from __future__ import annotations

import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from fewstep.errors import UserError
from fewstep.report import DistanceCurve, plot_curves, write_comparison_report

LEVELS = {"teacher, 35 steps": 3.2, "halves of the data": 1.9}


def curve(name: str, rate: float, floor: float) -> DistanceCurve:
    steps = range(0, 2001, 100)
    return DistanceCurve(
        name, list(steps), [640 * step for step in steps], [floor + 90 * math.exp(-rate * step / 300) for step in steps]
    )


CURVES = [curve("disback", 1.5, 4.6), curve("diff-instruct <b>$x_1$</b>", 0.8, 8.0), curve("_kd", 0.5, 14.0)]
ROWS = [{"run": "disback", "distance": 4.61, "evaluations": 1_280_000}, {"run": "<i>kd</i>", "distance": 14.2}]


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_plot_is_a_picture(tmp_path: Path) -> None:
    path = plot_curves(CURVES, tmp_path / "new" / "curves.png", LEVELS)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (1350, 780)


def test_plot_leaves_no_figure_open(tmp_path: Path) -> None:
    from matplotlib import pyplot

    plot_curves(CURVES, tmp_path / "curves.png")
    assert pyplot.get_fignums() == []


def test_equal_curves_give_equal_bytes(tmp_path: Path) -> None:
    plots = [plot_curves(CURVES, tmp_path / f"{name}.png", LEVELS).read_bytes() for name in "ab"]
    pages = [write_comparison_report(CURVES, ROWS, tmp_path / name, levels=LEVELS).read_bytes() for name in "ab"]
    assert plots[0] == plots[1]
    assert pages[0] == pages[1]


def test_page_shows_the_plot_and_the_table(tmp_path: Path) -> None:
    page = Tags(
        write_comparison_report(
            CURVES, ROWS, tmp_path / "comparison.html", levels=LEVELS, title="Digits & more"
        ).read_text()
    )
    assert sum(tag == "polyline" for tag, _ in page.tags) == 3
    assert "Digits & more" in page.text
    assert "teacher, 35 steps: 3.2" in page.text
    assert "run distance evaluations disback 4.61 1,280,000 <i>kd</i> 14.2 –" in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "b", "i", "img"})
    assert not any("http" in (value or "") for _, attributes in page.tags for value in attributes.values())


def test_columns_choose_and_order(tmp_path: Path) -> None:
    page = Tags(write_comparison_report(CURVES, ROWS, tmp_path / "c.html", columns=["distance", "run"]).read_text())
    assert "distance run 4.61 disback 14.2 <i>kd</i>" in page.text


def test_points_that_a_log_axis_cannot_hold_are_left_out(tmp_path: Path) -> None:
    odd = DistanceCurve("odd", [0, 1, 2, 3], [0, 10, 20, 30], [math.nan, 5.0, math.inf, 0.0])
    assert odd.points() == ((10.0, 5.0),)
    assert plot_curves([odd], tmp_path / "odd.png").is_file()


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        plot_curves([DistanceCurve("empty", [], [], [])], tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()
    page = Tags(write_comparison_report([], [], tmp_path / "empty.html").read_text())
    assert "None of the runs took distances" in page.text


def test_curves_have_equal_lengths() -> None:
    with pytest.raises(UserError, match="'short'"):
        DistanceCurve("short", [0, 1], [0], [1.0, 2.0])


def test_levels_that_are_close_or_impossible(tmp_path: Path) -> None:
    levels = {"a": 4.60, "b": 4.61, "c": 4.62, "none": math.nan, "nought": 0.0}
    assert plot_curves(CURVES, tmp_path / "c.png", levels).is_file()
    page = Tags(write_comparison_report(CURVES, ROWS, tmp_path / "c.html", levels=levels).read_text())
    heights = sorted(float(attributes["y"] or 0) for tag, attributes in page.tags if attributes.get("class") == "note")
    assert len(heights) == 3
    assert all(below - above >= 12.9 for above, below in pairwise(heights))
