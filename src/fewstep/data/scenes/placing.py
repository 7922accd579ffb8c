"""Where the digits of a scene stand, and which scenes there are.

A combination is what a scene holds: a digit, a colour and a place, or two digits with their colours
and a relation. Each digit of two has a place as well, which follows from the relation: left and
right, or top and bottom. A digit of a colour at a place is held out where ``is_held_out`` says so,
and a scene is held out if any of its digits is.

All numbers are whole pixels of a picture of ``SIDE`` x ``SIDE``, made of uniform numbers by
operations that are exact: the same on every machine.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from fewstep.data.digits import digit_images
from fewstep.data.scenes.vocabulary import (
    BESIDE,
    BOTTOM,
    COLOURS,
    DIGITS,
    LEFT,
    MIDDLE,
    PHRASINGS,
    PLACES,
    RELATIONS,
    RIGHT,
    TOP,
)
from fewstep.random import Key

SIDE = 32
SMALLEST = {1: 15, 2: 13}
LARGEST = {1: 24, 2: 15}
"""The sizes of a digit in pixels, both inclusive, by the number of digits."""
HALF = 20
"""From this size on a digit counts as large."""
SAID_SMALL, SAID_LARGE = 17, 22
"""Up to this size a caption may call a digit small, and from this size on large."""
TONES = (-0.9, 0.3)
"""The range of the background's grey in [-1, 1]."""
EMPTY = 0.1
"""The share of captions that are empty."""
UNIFORMS = 12
"""How many uniform numbers a scene is made of."""

Part = Literal["train", "test"]
Combinations = Literal["seen", "held-out", "all"]


@dataclass(frozen=True, eq=False)
class Arrangement:
    """A batch of n scenes of k digits, in the picture's order: the first digit is the left or the
    upper one.

    ``digits``, ``colours``, ``writings`` (indices of the shipped digits), ``sizes``, ``tops`` and
    ``lefts`` (pixels): (n, k) int64. ``place`` of one digit, ``relation`` of two, and the caption's
    ``phrasing``: (n,) int64. ``tone``: the background's grey in [-1, 1], (n,) float32. ``empty``:
    whether the caption is, (n,) bool.
    """

    digits: Tensor
    colours: Tensor
    writings: Tensor
    sizes: Tensor
    tops: Tensor
    lefts: Tensor
    place: Tensor
    relation: Tensor
    phrasing: Tensor
    tone: Tensor
    empty: Tensor

    def __len__(self) -> int:
        return len(self.tone)

    def __getitem__(self, rows: Tensor | slice) -> Arrangement:
        """Some of the scenes."""
        return Arrangement(*(getattr(self, field.name)[rows] for field in fields(self)))


def is_held_out(digit: Tensor, colour: Tensor, place: Tensor) -> Tensor:
    """Whether a digit of a colour at a place is held out, bool, of int64 tensors of one shape.

    Of each colour at each place one digit is: a tenth of all. At the five places of a colour these
    are five digits, so that each digit, colour and place is held out equally often.
    """
    return digit == (colour + 2 * place) % len(DIGITS)


def places_of(relation: Tensor) -> Tensor:
    """The places (n, 2) of two digits with a relation (n,): left and right, or top and bottom."""
    return torch.where((relation == BESIDE)[:, None], torch.tensor([LEFT, RIGHT]), torch.tensor([TOP, BOTTOM]))


@functools.cache
def combinations(number: int, which: Combinations) -> Tensor:
    """All combinations of one or two digits: rows (digit, colour, place), or (digit, colour, digit,
    colour, relation), int64, in the order of their numbers.
    """
    counts = [len(DIGITS), len(COLOURS)] * number + [len(PLACES) if number == 1 else len(RELATIONS)]
    found = torch.cartesian_prod(*map(torch.arange, counts))
    if which == "all":
        return found
    places = found[:, -1:] if number == 1 else places_of(found[:, -1])
    out = is_held_out(found[:, 0:-1:2], found[:, 1:-1:2], places).any(dim=1)
    return found[out == (which == "held-out")]


@functools.cache
def handwriting(part: Part) -> tuple[Tensor, Tensor]:
    """The shipped digits of a part: indices (10, most) int64, and how many there are of each class
    (10,); a row is filled up with -1.

    A fifth of each class is for tests, the rest for training. The parts share no digit.
    """
    labels, key = digit_images().labels, Key(0, "scenes-handwriting")
    assert labels is not None
    rows = []
    for digit in range(len(DIGITS)):
        own = torch.nonzero(labels == digit).flatten()
        own = own[key.permutation(f"digit-{digit}", len(own))]
        tested = round(len(own) / 5)
        rows.append(own[:tested] if part == "test" else own[tested:])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1), torch.tensor(
        [len(row) for row in rows]
    )


def arranged(uniforms: Tensor, number: int, part: Part, which: Combinations) -> Arrangement:
    """The scenes of ``uniforms`` (n, UNIFORMS) float64 in [0, 1), with ``number`` digits."""
    combination, tone, empty, phrasing = uniforms[:, :4].unbind(1)
    table = combinations(number, which)
    held = table[_whole(combination, len(table))]
    shown, colours, last = held[:, 0:-1:2], held[:, 1:-1:2], held[:, -1]
    written, counts = handwriting(part)
    smallest, largest = SMALLEST[number], LARGEST[number]
    sizes = smallest + _whole(uniforms[:, 4 : 4 + number], largest - smallest + 1)
    tops, lefts = (_alone if number == 1 else _together)(sizes, last, uniforms[:, 8:12])
    return Arrangement(
        digits=shown,
        colours=colours,
        writings=written[shown, _whole(uniforms[:, 6 : 6 + number], counts[shown])],
        sizes=sizes,
        tops=tops,
        lefts=lefts,
        place=last if number == 1 else torch.full_like(last, -1),
        relation=last if number == 2 else torch.full_like(last, -1),
        phrasing=_whole(phrasing, PHRASINGS[number]),
        tone=(TONES[0] + (TONES[1] - TONES[0]) * tone).float(),
        empty=empty < EMPTY,
    )


def _alone(sizes: Tensor, place: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tops and lefts (n, 1) of one digit at a place: near its edge, and about the middle
    otherwise.
    """
    free, place = SIDE - sizes, place[:, None]
    slack = free // 8
    near = _whole(uniforms[:, 0:1], slack + 1)
    wide, narrow = (_about(free // 2, reach, uniforms[:, 1:2]) for reach in (free // 4, slack))
    across = torch.where(place == MIDDLE, narrow, wide)
    centred = _about(free // 2, slack, uniforms[:, 2:3])
    tops = torch.where(place == TOP, near, torch.where(place == BOTTOM, free - near, across))
    lefts = torch.where(place == LEFT, near, torch.where(place == RIGHT, free - near, across))
    return tops, torch.where(place == MIDDLE, centred, lefts)


def _together(sizes: Tensor, relation: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tops and lefts (n, 2) of two digits: one after the other along the line of their relation,
    with what is left of the line before, between and after them, and about level across it. At
    least a pixel is between them.
    """
    one, other = sizes.unbind(1)
    free = SIDE - one - other - 1
    before = _whole(uniforms[:, 0], free + 1)
    between = _whole(uniforms[:, 1], free - before + 1)
    along = torch.stack([before, before + one + 1 + between], dim=1)
    level = _whole(uniforms[:, 2], SIDE - one + 1)
    level = torch.stack([level, _about(level, 3, uniforms[:, 3])], dim=1)
    level = torch.minimum(level.clamp(min=0), SIDE - sizes)
    beside = (relation == BESIDE)[:, None]
    return torch.where(beside, level, along), torch.where(beside, along, level)


def _whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """A whole number in [0, count) for each uniform number in [0, 1)."""
    return torch.minimum((uniform * count).long(), torch.as_tensor(count) - 1)


def _about(middle: Tensor, reach: Tensor | int, uniform: Tensor) -> Tensor:
    """A whole number at most ``reach`` from the middle."""
    return middle - reach + _whole(uniform, 2 * torch.as_tensor(reach) + 1)
