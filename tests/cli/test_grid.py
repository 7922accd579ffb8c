"""What commands print in columns: nothing is wrapped, cut, coloured or read as markup."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fewstep.command.grid import grid, left, right
from fewstep.command.tables.contents import checkpoints_table, findings_table, images_table, inspection_table


def test_words_stand_left_and_numbers_right_each_column_as_wide_as_its_widest_cell() -> None:
    table = grid([*left("run"), *right("steps"), *left("says")], [["a", "5", "x"], ["longer", "12,000", ""]])
    assert table.split("\n") == ["run      steps  says", "a            5  x", "longer  12,000"]


def test_columns_without_headings_have_no_line_of_them() -> None:
    assert grid([*left(""), *right("")], [["a", "1"], ["", "22"]]).split("\n") == ["a   1", "   22"]
    assert grid([*left("a"), *right("b")], []) == "a  b"


def test_a_row_may_be_short_and_begin_with_blanks() -> None:
    assert grid(left("a", "b"), [["  x"], ["* y", "z"]]).split("\n") == ["a    b", "  x", "* y  z"]


@pytest.mark.parametrize(
    "cell", ["[bold]x[/bold]", "[/]", ":smile:", "\\[x]", "[link=https://x.org]x[/link]", "x" * 3000]
)
def test_a_cell_is_shown_as_it_is(cell: str) -> None:
    assert grid(left("", ""), [[cell, "end"]]) == f"{cell}  end"


def test_wide_letters_take_two_columns() -> None:
    assert grid(left("", ""), [["日本", "a"], ["xy", "b"]]).split("\n") == ["日本  a", "xy    b"]


@pytest.mark.parametrize(
    "terminal",
    [
        {"COLUMNS": "20"},
        {"FORCE_COLOR": "1", "TERM": "xterm-256color"},
        {"TERM": "dumb"},
        {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        {"JUPYTER_COLUMNS": "10"},
    ],
)
def test_the_terminal_does_not_matter(terminal: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in terminal.items():
        monkeypatch.setenv(name, value)
    code = (
        "from fewstep.command.grid import grid, left, right; import sys; "
        "sys.stdout.write(grid([*left('word'), *right('number')], [['x' * 200, '1']]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "word" + " " * 198 + "number\n" + "x" * 200 + "       1"


HOSTILE, SHOWN = "a\x1b[31m\n[red]b\r", "a\\x1b[31m\\n[red]b\\r"


def test_what_comes_from_outside_stays_in_its_line() -> None:
    entry = {"name": HOSTILE, "images": 3}
    images = {"path": HOSTILE, "shape": [3, 4, 4], "images": 3, "classes": [entry], "remarks": [HOSTILE]}
    assert images_table(images).split("\n") == [
        f"{SHOWN}: 3 images of 4 x 4, RGB, 1 classes",
        f"  3  {SHOWN}",
        SHOWN,
    ]
    assert inspection_table({"file": HOSTILE, "bytes": 1234}).split("\n") == [f"file   {SHOWN}", "bytes  1,234"]
    finding = {"level": "problem", "place": HOSTILE, "sentence": "is bad.", "remedy": f"Remove {HOSTILE}."}
    assert findings_table([finding]).split("\n") == [
        f"problem  {SHOWN}: is bad.",
        f"           Remove {SHOWN}.",
        "1 problem, no notes.",
    ]
    damaged = {"file": "f", "bytes": 2**20, "state": "damaged", "why": HOSTILE, "step": None}
    found = {"run": "r", "removed": [HOSTILE], "leftovers": [], "resumes": None, "verified": True}
    assert checkpoints_table({**found, "checkpoints": [damaged]}).split("\n") == [
        f"removed r/{SHOWN}",
        f"  -  damaged  1.0 MiB  {SHOWN}",
    ]
