"""Scores of others' programs from a CSV: joined by name, counted, and refused by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.runs.protocols.score_files import read_scores

NAMES = ["000000.png", "000001.png", "more/000012.png"]


def read(tmp_path: Path, content: str | bytes, names: list[str] = NAMES):
    file = tmp_path / "scores.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_scores(file, tmp_path / "pictures", names)


def test_scores_are_joined_by_name_in_the_pictures_order(tmp_path):
    found = read(
        tmp_path,
        f'prompt,file,hpsv2,pick\n"a, b",more/000012.png,0.25,-1e1\n\nred,./000000.png,0.75,22\n'
        f"blue,elsewhere.png,9,9\nx,{tmp_path}/pictures/000001.png, 0.5 ,.5\n",
    )
    assert found.values == {"hpsv2": (0.75, 0.5, 0.25), "pick": (22.0, 0.5, -10.0)}
    assert found.missing == (0, "")
    assert found.extra == (1, "line 5")
    means = found.as_json()["means"]
    assert means["hpsv2"]["mean"] == 0.5
    assert means["hpsv2"]["high"] - means["hpsv2"]["mean"] == pytest.approx(1.96 * 0.25 / 3**0.5)
    (sentence,) = found.remarks("scores.csv")
    assert sentence == "scores.csv: 1 rows without a picture (such as line 5), which are left out."


def test_scores_are_joined_by_number(tmp_path):
    found = read(tmp_path, "number,reward\n12,1.5\n0,0.5\n7,3\n")
    assert found.values == {"reward": (0.5, 1.5)}
    assert (found.missing, found.extra) == ((1, "'000001.png'"), (1, "line 4"))
    assert found.as_json()["without_scores"] == 1


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path):
    assert read(tmp_path, "\ufefffile_name,s\r\n000000.png,1\r\n").values == {"s": (1.0,)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("000000.png,0.5\n000001.png,0.25\n", "has no column 'file', 'file_name' or 'number'"),
        ("", "has no row of a picture"),
        ("file,s\n", "has no row of a picture"),
        ("file\n000000.png\n", "has 0 columns of scores"),
        ("file,number,s\n000000.png,0,1\n", "more than one of the columns"),
        ("file,s,s\n000000.png,0,1\n", "two columns 's'"),
        ("file,\n000000.png,1\n", "which is no name of a score"),
        ("file,s\n000000.png,nan\n", r"line 2: 's' is 'nan', which is no finite number"),
        ("file,s\n000001.png,1\n000000.png,inf\n", r"line 3: 's' is 'inf'"),
        ("file,s\n000000.png,1e999999\n", "line 2: 's' is '1e999999'"),
        ("file,s\n000000.png,\n", "line 2: 's' is '', which is no finite number"),
        ("file,s\n000000.png,1_0\n", "line 2: 's' is '1_0'"),
        ("file,s\n000000.png,1\n./000000.png,2\n", "line 3 is a second row of '000000.png'"),
        ("file,s\nx.png,1\nx.png,2\n", "line 3 is a second row of 'x.png'"),
        ("file,s\nx.png,1\n", r"has no row of a picture .* \(1 of others, such as 'x.png'\)"),
        ("file,s\n000000.png,1,2\n", "line 2 has 3 fields, the header has 2"),
        ("number,s\n-1,1\n", "line 2: 'number' is '-1', which is no whole number"),
        ("number,s\n" + "9" * 5000 + ",1\n", "which is no whole number"),
        (b"file,s\n0000\x0000.png,1\n", "line 2: 'file' has control characters"),
        (b"file,s\n000000.png,1\x00\n", r"line 2: 's' is '1\\x00'"),
        (b"file,s\x00\n000000.png,1\n", r"has a column 's\\x00'"),
        (b"file,s\n\xff.png,1\n", "line 2 is not UTF-8"),
        ("file,s\n000000.png," + "1" * 2**20 + "\n", "line 2 is not CSV .*field larger than field limit"),
        ("file,s\n" + "x" * 2**20 + ",1\n", "field larger than field limit"),
        ("file," + "s" * 100 + "\n000000.png,1\n", "which is no name of a score"),
        ("file," + ",".join(f"s{number}" for number in range(65)) + "\n", "has 65 columns of scores; give 1 to 64"),
        ('file,s\n"000000.png,1\n', "not CSV"),
        ("file,s\n" + "y" * (2**24 + 1), "has more than 16,777,216 characters"),
    ],
    ids=range(28),
)
def test_what_is_no_file_of_scores_is_refused_by_line(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "scores.csv" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        read_scores(tmp_path / "none.csv", tmp_path, NAMES)
