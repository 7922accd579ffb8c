"""The house keeps its numbers, and they are counted rightly."""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from bench_kit import imported

house = imported("house")
# Read once: all of the source is parsed.
FOUND = house.measured(house.ROOT / "src" / "fewstep")
MOST = {
    "texts of a value": 2,
    "dispatch on choices": 11,
    "lines over 120": 0,
    "docstring lines over 100": 0,
    "closets": 11,
}


@pytest.mark.parametrize("name", MOST)
def test_a_count_grows_no_more(name: str) -> None:
    assert FOUND[name] <= MOST[name], "see 'python benchmarks/house.py'"


def test_no_folder_has_more_than_12_files() -> None:
    assert FOUND["widest folder"][1] <= 12, f"{FOUND['widest folder'][0]}: give some of its files a room of their own"


def test_no_modules_import_one_another() -> None:
    assert FOUND["circles"] == []


def test_one_table_names_classes_by_hand() -> None:
    assert FOUND["registries"] == ["fewstep.denoisers.model_files._MODELS"]


def test_a_name_stands_for_one_thing_unless_the_script_says_why() -> None:
    assert FOUND["ambiguous names"] == sorted(house.STAYS)


def _modules(**sources: str) -> dict[str, ast.Module]:
    return {f"house.{name}": ast.parse(textwrap.dedent(source)) for name, source in sources.items()}


def test_a_circle_is_found_and_a_chain_is_none() -> None:
    chain = _modules(a="from house import b", b="from house.c import x", c="x = 1")
    assert house.circles(chain) == []
    closed = {**chain, **_modules(c="from house import a")}
    assert house.circles(closed) == [["house.a", "house.b", "house.c"]]


def test_names_of_two_things_are_found_and_private_names_are_not() -> None:
    twice = _modules(a="def same(): ...\ndef _own(): ...", b="class same: ...\ndef _own(): ...")
    assert house.ambiguous(twice) == ["same"]
    twice["house.inner.a"] = ast.parse("")
    assert house.ambiguous(twice) == ["a.py", "same"]


def test_questions_by_the_type_of_a_choice_are_counted() -> None:
    asked = "isinstance(x, config.A)\nisinstance(x, (config.A, config.B))\nisinstance(x, str)"
    assert house.dispatches(_modules(a=asked)) == 2


def test_files_are_counted_by_folder_and_by_length(tmp_path: Path) -> None:
    wide = tmp_path / "fewstep" / "wide"
    wide.mkdir(parents=True)
    (wide / "__init__.py").write_text("", encoding="utf-8")
    for number, lines in enumerate((house.CLOSET, house.CLOSET + 1, 1)):
        (wide / f"file_{number}.py").write_text("x = 1\n" * lines, encoding="utf-8")
    (wide.parent / "long.py").write_text(f"x = '{'y' * house.WIDTH}'\n" + "x = 1\n" * 50, encoding="utf-8")
    found = house.measured(wide.parent)
    assert found["widest folder"] == ["wide", 3]
    assert (found["closets"], found["longest file"], found["lines over 120"]) == (2, 51, 1)


def test_no_two_files_of_tests_have_one_name() -> None:
    """Each is imported by its name alone, so that the second would not be run."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("*.py"))
    assert [name for name, count in names.items() if count > 1 and name != "conftest.py"] == []
