"""The scenes as a data set: pictures, captions and attributes by index."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, repeat
from typing import get_args

import torch
from torch import Tensor

from fewstep.data.dataset import Described
from fewstep.data.digits import digit_images
from fewstep.data.scenes.drawing import pictured
from fewstep.data.scenes.placing import (
    HALF,
    SAID_LARGE,
    SAID_SMALL,
    SIDE,
    UNIFORMS,
    Arrangement,
    Combinations,
    Part,
    arranged,
    combinations,
)
from fewstep.data.scenes.vocabulary import COLOURS, DIGITS, PLACES, RELATIONS, SIZES, SceneWords, caption
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.system.files import digest_of

RULES = 1
"""The number of the rules by which an index becomes a scene. Other rules make other pictures, and
have another number.
"""
# Scenes that are looked at together where all are asked for.
_AT_ONCE = 2**16


@dataclass(frozen=True, eq=False)
class Scenes(Described):
    """``count`` scenes of one or two ``digits``, (3, 32, 32) in [-1, 1], without classes.

    ``part``: whose handwriting it is; the two parts share none. ``combinations``: the scenes that
    hold no held-out digit (``seen``), those that hold one (``held-out``), or both (``all``). A
    scene is a function of ``seed`` and its index, and is made when it is asked for.

    Raises ``UserError`` for no scene, for another number of digits, and for a part or combinations
    that there are not.
    """

    count: int
    digits: int = 1
    part: Part = "train"
    combinations: Combinations = "seen"
    seed: int = 0

    labels = None
    classes = 0
    low = -1.0
    high = 1.0
    names = ()

    def __post_init__(self) -> None:
        known = {"digits": (1, 2), "part": get_args(Part), "combinations": get_args(Combinations)}
        wrong = next((name for name, values in known.items() if getattr(self, name) not in values), None)
        if wrong is not None:
            options = ", ".join(map(str, known[wrong]))
            raise UserError(f"scenes: '{wrong}' is '{getattr(self, wrong)}', and must be one of {options}.")
        if self.count < 1:
            raise UserError(f"scenes: 'count' must be at least 1, got {self.count}.")

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, SIDE, SIDE)

    def take(self, index: Tensor) -> Tensor:
        return pictured(self.arrangement(index))

    @cached_property
    def identity(self) -> str:
        said = {"digits": self.digits, "part": self.part, "combinations": self.combinations, "seed": self.seed}
        made = {"kind": "scenes", "rules": RULES, "of": digit_images().identity, "count": self.count}
        return digest_of({}, {**made, **said})

    @property
    def values(self) -> Mapping[str, int]:
        """Of one digit: ``digit_1``, ``colour_1``, ``size`` (small below 20 pixels, large from
        there on) and ``place``. Of two: ``digit_1``, ``colour_1``, ``digit_2``, ``colour_2`` and
        ``relation``; the first digit is the left or the upper one.
        """
        one = {"digit_1": len(DIGITS), "colour_1": len(COLOURS)}
        if self.digits == 1:
            return {**one, "size": len(SIZES), "place": len(PLACES)}
        return {**one, "digit_2": len(DIGITS), "colour_2": len(COLOURS), "relation": len(RELATIONS)}

    def attributes(self, index: Tensor) -> dict[str, Tensor]:
        scenes = self.arrangement(index)
        found = {
            "digit_1": scenes.digits[:, 0],
            "colour_1": scenes.colours[:, 0],
            "size": (scenes.sizes[:, 0] >= HALF).long(),
            "place": scenes.place,
            "digit_2": scenes.digits[:, -1],
            "colour_2": scenes.colours[:, -1],
            "relation": scenes.relation,
        }
        return {name: found[name] for name in self.values}

    def captions(self, index: Tensor) -> list[str]:
        """The captions of the scenes at ``index`` (n,) int64 in [0, N), in several phrasings; one
        in ten is empty. A caption calls a digit small up to 17 pixels, and large from 22 on.
        """
        return [text for part in index.split(_AT_ONCE) for text in _captions(self.arrangement(part))]

    def words(self, index: Tensor) -> list[SceneWords]:
        """All that can be said of the scenes at ``index`` (n,)."""
        scenes, found = self.arrangement(index), []
        rows = zip(scenes.digits, scenes.colours, scenes.sizes, scenes.place, scenes.relation, strict=True)
        for digits, colours, sizes, place, relation in rows:
            shown, tints = tuple(digits.tolist()), tuple(colours.tolist())
            if len(shown) == 2:
                found.append(SceneWords(shown, tints, relation=int(relation)))
            else:
                size = 0 if sizes[0] <= SAID_SMALL else 1 if sizes[0] >= SAID_LARGE else None
                found.append(SceneWords(shown, tints, size=size, place=int(place)))
        return found

    @cached_property
    def numbered_captions(self) -> tuple[tuple[str, ...], Tensor]:
        """The captions that there are, in the order in which they come first, and the number of
        each scene's, (N,) int64.
        """
        texts: dict[str, int] = {}
        rows = torch.arange(len(self)).split(1000)
        numbers = [texts.setdefault(text, len(texts)) for each in rows for text in self.captions(each)]
        return tuple(texts), torch.tensor(numbers)

    def arrangement(self, index: Tensor) -> Arrangement:
        """What stands where in the scenes at ``index`` (n,)."""
        key = Key(self.seed, f"scenes-{self.digits}-{self.part}-{self.combinations}")
        uniforms = _uniforms(key, index).reshape(len(index), UNIFORMS)
        return arranged(uniforms, self.digits, self.part, self.combinations)


def scene_prompts(digits: int, held_out: bool) -> list[str]:
    """A prompt for each combination of one or two ``digits``, in the shortest phrasing that says
    all of it: those that are held out, or those that are not.

    "a red seven at the left": 40 are held out and 360 are not. "a red seven above a blue three":
    2,432 are held out and 10,368 are not.
    """
    rows = combinations(digits, "held-out" if held_out else "seen").tolist()
    if digits == 1:
        return [caption(SceneWords((row[0],), (row[1],), place=row[2]), 1) for row in rows]
    return [caption(SceneWords((row[0], row[2]), (row[1], row[3]), relation=row[4]), 0) for row in rows]


def _uniforms(key: Key, index: Tensor) -> Tensor:
    """The uniform numbers of each scene, one after another, float64: each scene has its own range
    of the numbers of one draw.
    """
    # Scenes that follow one another are drawn at once.
    starts = torch.nonzero(torch.diff(index, prepend=index[:1] - 2) != 1).flatten().tolist()
    runs = [
        key.uniform("scene", UNIFORMS * (end - start), UNIFORMS * int(index[start]))
        for start, end in pairwise([*starts, len(index)])
    ]
    return torch.cat(runs) if runs else torch.empty(0, dtype=torch.float64)


def _captions(scenes: Arrangement) -> list[str]:
    """The captions of scenes. Many scenes have one caption, so that each is found by one number:
    what decides it, four bits each.
    """
    size, number = scenes.sizes[:, 0], scenes.digits.shape[1]
    unsaid = (size > SAID_SMALL) & (size < SAID_LARGE) if number == 1 else torch.full_like(scenes.empty, True)
    size = (size >= SAID_LARGE).long().masked_fill(unsaid, -1)
    said = [*scenes.digits.T, *scenes.colours.T, size + 1, scenes.place + 1, scenes.relation + 1, scenes.phrasing]
    codes = torch.stack([each << 4 * place for place, each in enumerate(said)]).sum(0)
    texts = map(_caption, repeat(number), codes.tolist())
    return ["" if empty else text for text, empty in zip(texts, scenes.empty.tolist(), strict=True)]


@functools.cache
def _caption(number: int, code: int) -> str:
    """The caption of a scene of one or two digits, of what decides it."""
    said = [code >> 4 * place & 15 for place in range(2 * number + 4)]
    size, place, relation = (None if each == 0 else each - 1 for each in said[-4:-1])
    return caption(SceneWords(tuple(said[:number]), tuple(said[number:-4]), size, place, relation), said[-1])
