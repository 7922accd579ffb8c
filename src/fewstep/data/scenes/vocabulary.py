"""The words of the scenes: what can be said of a scene, how a caption says it, and how a prompt is
read.

A caption is words and a phrasing. ``said`` is what is left of the words in a phrasing, and
``parse`` is the inverse of ``caption``: ``parse(caption(words, phrasing))`` is ``said(words,
phrasing)``, for all words and phrasings.

The words of two digits are in the picture's order: the first digit is the left or the upper one. A
caption may name the digits in the other order, "a blue three below a red seven"; ``parse`` puts
them back, so that equal pictures have equal words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fewstep.errors import UserError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "orange": (250, 140, 10),
    "yellow": (245, 235, 60),
    "green": (30, 160, 50),
    "cyan": (50, 220, 230),
    "blue": (40, 60, 230),
    "purple": (155, 45, 205),
    "pink": (255, 115, 200),
}
"""Each colour as red, green and blue in [0, 255]."""
PLACES = ("at the left", "at the right", "at the top", "at the bottom", "in the middle")
SIZES = ("small", "large")
RELATIONS = ("left of", "above")
"""Of the first digit to the second."""
LEFT, RIGHT, TOP, BOTTOM, MIDDLE = range(5)
BESIDE, STACKED = range(2)

_OPPOSITES = ("right of", "below")
_COLOUR_NAMES = tuple(COLOURS)
_ALONE = (
    "{plain}",
    "{plain} {place}",
    "{sized}",
    "{sized} {place}",
    "{place}, {plain}",
    "{bare} in {colour}",
    "{bare} in {colour} {place}",
    "a picture of {sized} {place}",
)
_TOGETHER = (
    "{plain} {relation} {other}",
    "{plain} is {relation} {other}",
    "{plain} with {other} {opposite} it",
    "{bare} in {colour} {relation} {other_bare} in {other_colour}",
    "a picture of {plain} {relation} {other}",
)
# Two digits are named in either order.
PHRASINGS = {1: len(_ALONE), 2: 2 * len(_TOGETHER)}
"""How many phrasings there are of one digit and of two."""


@dataclass(frozen=True)
class SceneWords:
    """What is said of a scene: its ``digits``, one or two, each in [0, 10), and the ``colours`` of
    these, indices of ``COLOURS``; of one digit ``size`` and ``place``, of two their ``relation``,
    indices of ``SIZES``, ``PLACES`` and ``RELATIONS``. What is None is not said.

    Raises ``UserError`` unless one digit has no relation and two digits have one.
    """

    digits: tuple[int, ...]
    colours: tuple[int, ...]
    size: int | None = None
    place: int | None = None
    relation: int | None = None

    def __post_init__(self) -> None:
        number = 1 if self.relation is None else 2
        if (len(self.digits), len(self.colours)) != (number, number):
            raise UserError(
                f"scenes: one digit has no relation and two digits have one, each with a colour; got {self}."
            )

    def asked(self) -> dict[str, int]:
        """What is said, by the names that ``Scenes.attributes`` has: ``digit_1``, ``colour_1``,
        ``size``, ``place``, ``digit_2``, ``colour_2``, ``relation``.
        """
        numbered = {f"digit_{number}": digit for number, digit in enumerate(self.digits, 1)}
        numbered |= {f"colour_{number}": colour for number, colour in enumerate(self.colours, 1)}
        others = {"size": self.size, "place": self.place, "relation": self.relation}
        return numbered | {name: value for name, value in others.items() if value is not None}


def caption(words: SceneWords, phrasing: int) -> str:
    """The words as a text, in a phrasing in [0, PHRASINGS[number of digits]).

    Raises ``UserError`` for a phrasing that there is not, and for one that says a place where the
    words have none.
    """
    pattern, reversed_order = _pattern(words, phrasing)
    return pattern.format(**_spoken(words, reversed_order))


def said(words: SceneWords, phrasing: int) -> SceneWords:
    """The words less what the phrasing leaves out.

    Raises ``UserError`` as ``caption`` does.
    """
    pattern, _ = _pattern(words, phrasing)
    return replace(
        words,
        size=words.size if "{sized}" in pattern else None,
        place=words.place if "{place}" in pattern else None,
    )


def parse(prompt: str) -> SceneWords | None:
    """What a prompt asks for; None for a text that is in none of the phrasings, such as an empty
    one. Capitals, spaces around it and a full stop do not matter.
    """
    text = prompt.strip().removesuffix(".").lower()
    for number, expressions in _EXPRESSIONS.items():
        for expression in expressions:
            if (match := expression.fullmatch(text)) is not None:
                return _alone(match) if number == 1 else _together(match)
    return None


def with_article(words: str) -> str:
    """The words after "a", or after "an" where they begin with the sound of a vowel."""
    # "one" begins with the sound of a w.
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('one') else 'a'} {words}"


def _pattern(words: SceneWords, phrasing: int) -> tuple[str, bool]:
    """The text with places for the words, and whether the second digit is named first."""
    number = len(words.digits)
    if not 0 <= phrasing < PHRASINGS[number]:
        raise UserError(f"scenes: there is no phrasing {phrasing}; it must be in [0, {PHRASINGS[number]}).")
    if number == 1 and words.place is None and "{place}" in _ALONE[phrasing]:
        raise UserError(f"scenes: phrasing {phrasing} says a place, and the words have none; take another phrasing.")
    return (_ALONE[phrasing], False) if number == 1 else (_TOGETHER[phrasing // 2], bool(phrasing % 2))


def _spoken(words: SceneWords, reversed_order: bool) -> dict[str, str]:
    digits = [DIGITS[digit] for digit in words.digits]
    colours = [_COLOUR_NAMES[colour] for colour in words.colours]
    plain = [f"{colour} {digit}" for colour, digit in zip(colours, digits, strict=True)]
    if words.relation is None:
        size = "" if words.size is None else f"{SIZES[words.size]} "
        place = "" if words.place is None else PLACES[words.place]
        return {
            "plain": with_article(plain[0]),
            "sized": with_article(size + plain[0]),
            "bare": with_article(digits[0]),
            "colour": colours[0],
            "place": place,
        }
    relations = RELATIONS[words.relation], _OPPOSITES[words.relation]
    first, second = (1, 0) if reversed_order else (0, 1)
    return {
        "plain": with_article(plain[first]),
        "other": with_article(plain[second]),
        "bare": with_article(digits[first]),
        "other_bare": with_article(digits[second]),
        "colour": colours[first],
        "other_colour": colours[second],
        "relation": relations[first],
        "opposite": relations[second],
    }


def _alone(match: re.Match[str]) -> SceneWords:
    found = match.groupdict()
    size, place = found.get("size"), found.get("place")
    return SceneWords(
        (DIGITS.index(found["digit"]),),
        (_COLOUR_NAMES.index(found["colour"]),),
        size=None if size is None else SIZES.index(size),
        place=None if place is None else PLACES.index(place),
    )


def _together(match: re.Match[str]) -> SceneWords:
    found = match.groupdict()
    digits = DIGITS.index(found["digit"]), DIGITS.index(found["other_digit"])
    colours = _COLOUR_NAMES.index(found["colour"]), _COLOUR_NAMES.index(found["other_colour"])
    # Of the digit that is named first to the other one, or of the other one to it.
    relation, opposite = found.get("relation"), found.get("opposite")
    if relation in RELATIONS or opposite in _OPPOSITES:
        index = RELATIONS.index(relation) if relation else _OPPOSITES.index(opposite)
        return SceneWords(digits, colours, relation=index)
    index = _OPPOSITES.index(relation) if relation else RELATIONS.index(opposite)
    return SceneWords(digits[::-1], colours[::-1], relation=index)


def _expressions(patterns: tuple[str, ...]) -> Iterator[re.Pattern[str]]:
    """What matches a phrasing's texts, with a group for each word."""
    digits, colours = "|".join(DIGITS), "|".join(COLOURS)
    relations = "|".join((*RELATIONS, *_OPPOSITES))
    words = {
        "plain": f"an? (?P<colour>{colours}) (?P<digit>{digits})",
        "sized": f"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<colour>{colours}) (?P<digit>{digits})",
        "bare": f"an? (?P<digit>{digits})",
        "colour": f"(?P<colour>{colours})",
        "place": f"(?P<place>{'|'.join(PLACES)})",
        "other": f"an? (?P<other_colour>{colours}) (?P<other_digit>{digits})",
        "other_bare": f"an? (?P<other_digit>{digits})",
        "other_colour": f"(?P<other_colour>{colours})",
        "relation": f"(?P<relation>{relations})",
        "opposite": f"(?P<opposite>{relations})",
    }
    for pattern in patterns:
        yield re.compile(pattern.format(**words))


_EXPRESSIONS = {1: tuple(_expressions(_ALONE)), 2: tuple(_expressions(_TOGETHER))}
