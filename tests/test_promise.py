"""The names on ``docs/reference/api.md`` are there, and take what they took.

``python tests/test_promise.py`` writes the golden file anew, where a change is meant: the changelog
says it, and a deprecation comes first.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import fewstep as fs

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "promise.json"


def promised() -> dict[str, Any]:
    """The objects that the page names, by the place where it names them."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    found = {}
    for place in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE):
        module, _, name = place.rpartition(".")
        found[place] = getattr(importlib.import_module(module), name)
    return found


def signatures() -> dict[str, dict[str, str]]:
    """By place: how it is called, and its public methods by name."""
    return {place: _called(each) for place, each in sorted(promised().items())}


def _called(each: Any) -> dict[str, str]:
    if not inspect.isclass(each):
        return {"call": _taken(each)}
    own = {
        name: value
        for base in reversed(each.__mro__)
        if base.__module__.startswith("fewstep")
        for name, value in vars(base).items()
        if not name.startswith("_")
    }
    methods = {
        name: _taken(getattr(value, "__func__", value))
        for name, value in sorted(own.items())
        if inspect.isfunction(getattr(value, "__func__", value))
    }
    # An exception is made as Python makes it.
    return methods if issubclass(each, Exception) else {"call": _taken(each), **methods}


def _taken(each: Any) -> str:
    """What it takes: names, how each is given, and defaults that are plain values; without types,
    which each version of Python spells otherwise.
    """
    parts = []
    for parameter in inspect.signature(each).parameters.values():
        default = parameter.default
        plain = default is None or isinstance(default, (bool, int, float, str))
        said = "" if default is parameter.empty else f"={default!r}" if plain else "=..."
        only = parameter.kind.name.lower().replace("positional_or_keyword", "")
        parts.append(f"{parameter.name}{said}{f' [{only}]' if only else ''}")
    return f"({', '.join(parts)})"


def test_what_a_program_may_rely_on_is_there_and_takes_what_it_took() -> None:
    before = json.loads(GOLDEN.read_text(encoding="utf-8"))
    now = signatures()
    assert before.keys() - now.keys() == set(), "promised names are gone"
    changed = {
        f"{place}.{name}": (taken, now[place].get(name))
        for place, of_name in before.items()
        for name, taken in of_name.items()
        if now[place].get(name) != taken
    }
    assert changed == {}, "promised signatures changed; see the head of this file"
    assert now.keys() - before.keys() == set(), "new names of the page are not in the golden file"


def test_about_sixty_names_are_promised_and_each_is_reached_from_the_package() -> None:
    found = promised()
    assert 55 <= len(found) <= 85
    for place, each in found.items():
        assert inspect.getdoc(each), place
        package, name = place.split(".")[1], place.rpartition(".")[2]
        assert getattr(getattr(fs, package), name, None) is each or getattr(fs, name) is each, place


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(signatures(), indent=1) + "\n", encoding="utf-8")
