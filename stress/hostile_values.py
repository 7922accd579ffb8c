"""Values and texts that hardly any key takes, and where in nested values to put them; with what
hostile cases are made from (see ``hostile.py``).
"""

from __future__ import annotations

import copy
import math
import random
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.planning.twin import twin
from fewstep.recipes import load_recipe

RECIPES = [
    "mixture2d-disback",
    "mixture2d-dmd2-ddil",
    "mixture2d-cd",
    "mixture2d-pd-ddil",
    "mixture2d-teacher",
    "emoji32-disback",
    "digits-fastgan",
    "mixture2d-kd",
]
PLANNED = ["digits-disback", "imagenet64-disback", "ffhq64-fastgan-disback"]
WORDS = [
    "",
    "x",
    "kind",
    "ж\u202e😀",
    "\x07\x1b[31mred\x1b[0m",
    "a\nb",
    "\ud800",
    "a" * 5000,
    "../../etc/passwd",
    "/dev/zero",
    "\0",
    "<script>alert(1)</script>",
    "%s{}{0}",
    "no",
    "copy",
]
HUGE = [10**9, 2**31, 2**63, 10**30, 10**400, 1e12, 1e308, -(10**9), -(2**63) - 1, -1e308]
ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    0.0,
    -0.0,
    1e-308,
    5e-324,
    0.5,
    -1.5,
    math.nan,
    math.inf,
    -math.inf,
    [],
    {},
    [[]],
    [1, "a", None],
    {"kind": "x"},
    {"kind": ["a"]},
    {1: 2},
    {"a": {"b": {}}},
]
WHOLE = [0, 1, 2, 3, 7, 33, 100, 300, -1, -7, *(value for value in HUGE if isinstance(value, int))]
REAL = [
    0.0,
    5e-324,
    1e-308,
    1e-30,
    1e-6,
    0.5,
    0.999,
    1.0,
    2.0,
    100.0,
    1e6,
    1e38,
    1e308,
    -1.0,
    -1e-30,
    math.inf,
    math.nan,
]
TEXTS = [
    "[" * 500,
    "[" * 50_000,
    "{a: " * 400,
    "!!python/object/apply:os.system [ls]",
    "&a [*a]",
    "2001-99-99",
    "0x" + "f" * 50_000,
    "9" * 5000,
    "1:" * 2000 + "1",
]
TEXTS += [
    "{<<: [1]}",
    "'",
    "\x00",
    "? [a]: b",
    "-",
    "{}: 1",
    "!!binary x",
    "!!set {a}",
    "!!int 'a'",
    "!!float a",
    "!!timestamp a",
    "<<",
    "=",
    "~",
    ".nan",
    ".inf",
    "1e999",
]
TEXTS += ["\ud800", "[1, 2", "{[a]: b}", "%YAML 9.9\n--- a", "a\n---\nb"]


@dataclass(frozen=True)
class Case:
    """``arguments`` of one command; ``fresh``: to be run in a process of its own."""

    kind: str
    what: str
    arguments: tuple[str, ...]
    fresh: bool = False


@dataclass(frozen=True)
class Stock:
    """What cases are made from: a whole ``run`` (one of several steps is beside it, in ``steps``),
    a teacher's file, and recipes by name.
    """

    folder: Path
    run: Path
    teacher: Path
    recipes: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> Stock:
        recipes = {}
        for name in RECIPES:
            # Of either task: a twin is of its recipe's type, which a union of both has not.
            recipe: Any = load_recipe(name)
            recipes[name] = twin(recipe, 4, 4).model_dump(mode="json")
            recipes[name]["evaluation"].update(samples=20, draws=1, teacher_steps=[2])
        return cls(folder, folder / "run", folder / "teacher" / "model.safetensors", recipes)


def junk(chance: random.Random, instead: Any = None) -> Any:
    """A value that hardly any key takes; more often than not of the type of what it stands
    ``instead`` of, which gets further.
    """
    if isinstance(instead, int | float) and not isinstance(instead, bool) and chance.random() < 0.75:
        return chance.choice(WHOLE if isinstance(instead, int) else REAL)
    pool = chance.choice((WORDS, HUGE, ODD, ODD))
    value: Any = copy.deepcopy(chance.choice(pool))
    if chance.random() < 0.05:
        for _ in range(chance.choice((5, 50, 200))):
            value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def places(values: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys of all values, sections among them."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in inner for place in ((*before, key), *places(value, (*before, key)))]


def holder(values: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        values = values[key]
    return values


def mutate(values: Any, chance: random.Random) -> str:
    """Changes one thing in nested values; returns what."""
    place = chance.choice(places(values))
    inside, key = holder(values, place), place[-1]
    match chance.randrange(12):
        case 0 if isinstance(inside, dict):
            word = str(key)
            at = chance.randrange(len(word) + 1)
            inside[word[:at] + chance.choice(string.ascii_letters) + word[at:]] = inside.pop(key)
        case 1:
            del inside[key]
        case 2 if isinstance(inside, dict):
            inside[chance.choice(WORDS)] = junk(chance)
        case 3 if isinstance(inside[key], dict):
            inside[key] = list(inside[key].values())
        case 4 if isinstance(inside[key], dict) and "kind" in inside[key]:
            inside[key]["kind"] = chance.choice(
                ["copy", "lora", "edm", "rho", "fixed", "every", "waves", "file", "learned", "network", "x", None, 3]
            )
        case _:
            value = junk(chance, inside[key])
            # A network of so many layers is one that a user may want, and takes minutes.
            inside[key] = 33 if "network" in place and value in (100, 300) else value
    return ".".join(map(str, place))[:60]
