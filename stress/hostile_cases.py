"""What a hostile or careless user may hand to the command line, made from a seed: recipes, YAML,
overrides, and what ``hostile_images`` and ``hostile_files`` make (see ``hostile.py``).

Case i of a seed is always the same. What is merely a lot of work (a million steps) is no case here:
it is what was asked for.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from hostile_files import run_folder, weights
from hostile_foreign import foreign
from hostile_images import images
from hostile_lives import belongings, environments
from hostile_values import PLANNED, RECIPES, TEXTS, WORDS, Case, Stock, holder, junk, mutate, places


def recipe(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A recipe with one or a few values changed."""
    name = chance.choice(RECIPES)
    values = copy.deepcopy(stock.recipes[name])
    what = ", ".join(mutate(values, chance) for _ in range(chance.choice((1, 1, 1, 2, 4))) if places(values))
    text = yaml.safe_dump(values, sort_keys=False)
    if chance.random() < 0.05:
        text += "\ntraining: {steps: 4}\n"
    (here / "mine.yaml").write_text(text)
    command = "plan" if chance.random() < 0.05 else "pretrain" if values.get("task") == "pretrain" else "distill"
    return f"{name}: {what}", (
        command,
        str(here / "mine.yaml"),
        *(() if command == "plan" else ("--out", str(here / "out"))),
    )


def bomb(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """YAML that expands, nests, or names types of the language."""
    levels = "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    makers: list[Callable[[], str | bytes]] = [
        lambda: "a: &a [x,x,x,x,x,x,x,x]\n" + levels,
        lambda: "a: " + "[" * chance.choice((300, 900, 5000, 100_000)),
        lambda: "a: " + "[" * 300 + "]" * 300,
        lambda: "task: distill\na: [" + "1," * chance.choice((10_000, 90_000, 400_000)) + "1]\n",
        lambda: "".join(f"k{i}: 1\n" for i in range(chance.choice((5000, 15_000, 100_000)))),
        lambda: "a: " * chance.choice((10, 400)) + "1",
        lambda: "task: distill\n<<: {task: pretrain}\n<<: [{a: 1}, {b: 2}]\n",
        lambda: f"task: {chance.choice(TEXTS)}\n",
        lambda: f"{chance.choice(TEXTS)}\n",
        lambda: f"teacher: !!python/object:os.system {{}}\nx: !!python/name:{chance.choice(['os.system', 'eval'])}\n",
        lambda: "task: 'distill\n" + "x" * chance.choice((100, 100_000, 2_000_000)),
        lambda: "? " * chance.choice((50, 2000)) + "a\n",
        lambda: "- " * chance.choice((50, 2000)) + "a\n",
        lambda: bytes(chance.randrange(256) for _ in range(300)),
        lambda: ("task: distill\n" + "ж" * 50).encode(chance.choice(("utf-16", "utf-32", "cp1251"))),
        lambda: "\ufefftask: distill\n",
        lambda: b"task: distill\n\x00\x00",
        lambda: "",
    ]
    content = chance.choice(makers)()
    (here / "bomb.yaml").write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )
    command = chance.choice(("distill", "distill", "pretrain", "plan"))
    return repr(content[:30]), (
        command,
        str(here / "bomb.yaml"),
        *(() if command == "plan" else ("--out", str(here / "out"))),
    )


def override(stock: Stock, here: Path, chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """``--set`` with keys and values of all kinds."""
    name = chance.choice(RECIPES)
    (here / "mine.yaml").write_text(yaml.safe_dump(stock.recipes[name], sort_keys=False))
    given: list[str] = []
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.choice(places(stock.recipes[name]))
        instead = holder(stock.recipes[name], place)[place[-1]]
        key = ".".join(map(str, place))
        key = chance.choice(
            [*[key] * 16, key + ".a", key + ".", "." + key, "", ".", "a.b.c.d", "a." * 2000 + "b", chance.choice(WORDS)]
        )
        value = (
            chance.choice(TEXTS)
            if chance.random() < 0.3
            else yaml.safe_dump(junk(chance, instead), default_flow_style=True, width=10**6)
            .removesuffix("\n...\n")
            .strip()
        )
        given += ["--set", f"{key}={value}" if chance.random() < 0.97 else key]
    # An argument of a process is at most 128 kB of bytes without zeros.
    given = [text.replace("\0", "\\0").encode("utf-8", "replace").decode()[:100_000] for text in given]
    command = "pretrain" if stock.recipes[name]["task"] == "pretrain" else "distill"
    if chance.random() < 0.05:
        return f"plan {given}"[:80], ("plan", chance.choice(PLANNED), *given)
    return f"{name} {given}"[:80], (command, str(here / "mine.yaml"), "--out", str(here / "out"), *given)


# What holds, or claims to hold, more than a process should be left with.
ALONE = ("bomb", "claim", "long json", "phone")
KINDS: dict[str, tuple[int, Callable[[Stock, Path, random.Random], tuple[str, tuple[str, ...]]]]] = {
    "recipes": (30, recipe),
    "YAML": (8, bomb),
    "overrides": (17, override),
    "images": (12, images),
    "weights": (16, weights),
    "runs": (17, run_folder),
    "belongings": (16, belongings),
    "environment": (4, environments),
    "foreign": (20, foreign),
}


def cases(stock: Stock, count: int, seed: int, of: Sequence[str] = ()) -> Iterator[Case]:
    """The cases, of all kinds or those named ``of``, each with its files in a folder of its own,
    made when it is asked for.
    """
    kinds = [name for name in KINDS if not of or name in of]
    shares = [KINDS[name][0] for name in kinds]
    for number in range(count):
        chance = random.Random(f"{seed}-{number}")
        kind = chance.choices(kinds, shares)[0]
        here = stock.folder / f"case-{number}"
        here.mkdir()
        what, arguments = KINDS[kind][1](stock, here, chance)
        fresh = (kind == "images" and what in ALONE) or "raw header" in what or kind == "environment"
        yield Case(kind, what, arguments, fresh)
        shutil.rmtree(here)
