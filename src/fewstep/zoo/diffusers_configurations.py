"""The values of a configuration that diffusers or transformers wrote, each checked before it is
believed.

What is left out takes the class' own default, and what a class does not know it refuses itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import UserError
from fewstep.zoo.nvidia.modules import flag, real, whole_number, whole_numbers, word, words

LARGEST = 4096
"""Of a sample's side."""
MOST = 1_000_000
_DEEPEST = 2
_LONGEST = 1000


@dataclass(frozen=True)
class Expected:
    """What each entry of a configuration must be.

    ``numbers``: whole numbers within bounds, or lists of such, also nested. ``factors``: lists of
    numbers within bounds. ``nullable``: entries that may be null.
    """

    whole: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    wholes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    reals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    factors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    nullable: frozenset[str] = frozenset()

    def check(self, arguments: dict[str, Any]) -> None:
        """Raises ``UserError`` for a value that would be read wrongly, or break the network when it
        is called.
        """
        for name, value in arguments.items():
            if value is not None or name not in self.nullable:
                self._check(arguments, name)

    def taken(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a configuration that are expected, checked; the others are passed over."""
        known = {
            *(*self.whole, *self.wholes, *self.numbers, *self.reals, *self.factors),
            *(*self.flags, *self.texts, *self.words),
        }
        arguments = {name: value for name, value in config.items() if name in known}
        self.check(arguments)
        return arguments

    def _check(self, arguments: dict[str, Any], name: str) -> None:
        if name in self.whole:
            whole_number(arguments, name, *self.whole[name])
        elif name in self.wholes:
            whole_numbers(arguments, name, *self.wholes[name])
        elif name in self.numbers:
            _numbers(arguments[name], name, self.numbers[name], _DEEPEST)
        elif name in self.reals:
            real(arguments, name, *self.reals[name])
        elif name in self.factors:
            _factors(arguments[name], name, self.factors[name])
        elif name in self.flags:
            flag(arguments, name, False)
        elif name in self.texts:
            word(arguments, name)
        elif name in self.words:
            words(arguments, name)


def sides_of(arguments: dict[str, Any]) -> list[int]:
    """Height and width of a sample, from ``sample_size``.

    Raises ``UserError`` for a side that the levels of ``block_out_channels`` cannot halve.
    """
    size = arguments.get("sample_size")
    given = {"sample_size": size if isinstance(size, list) else [size, size]}
    sides = whole_numbers(given, "sample_size", 1, LARGEST)
    if len(sides) != 2:
        raise UserError(f"has {len(sides)} numbers for sample_size, which must be a number or two of them.")
    levels = len(arguments.get("block_out_channels", range(4)))
    if any(side % 2 ** (levels - 1) for side in sides):
        raise UserError(
            f"has {sides[0]} x {sides[1]} for sample_size, which {levels} block_out_channels halve "
            f"{levels - 1} times: it must be a multiple of {2 ** (levels - 1)}."
        )
    return sides


def shape_of(arguments: dict[str, Any], usual: int) -> tuple[int, ...]:
    """That of one sample; ``usual``: the channels where they are left out.

    Raises ``UserError`` for a network that emits other channels than it takes.
    """
    sides = sides_of(arguments)
    channels, emitted = arguments.get("in_channels", usual), arguments.get("out_channels", usual)
    if channels != emitted:
        raise UserError(
            f"has {emitted} for out_channels and {channels} for in_channels, which must be equal: a "
            "variance that a network learnt, or a picture that it is given beside, is not read here."
        )
    return (channels, *sides)


def arguments_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that are arguments of its class."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def check_plain(arguments: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for an entry that no class takes for a size, a number, a flag or a name:
    what a class of diffusers' says of its own arguments is that they are such, or lists of them.
    """
    for name, value in arguments.items():
        _plain(value, name, _DEEPEST)


def check_at_most(value: Any, name: str, most: int) -> None:
    """Raises ``UserError`` for a number, or one in a list, above ``most``; other values pass."""
    for each in value if type(value) in (list, tuple) else [value]:
        if isinstance(each, int | float) and each > most:
            raise UserError(f"has {each} for {name}, which must be at most {most:,}")


def _plain(value: Any, name: str, levels: int) -> None:
    if levels and type(value) in (list, tuple) and len(value) <= _LONGEST:
        for each in value:
            _plain(each, name, levels - 1)
        return
    fits = (
        value is None
        or type(value) is bool
        or (type(value) is int and 0 <= value <= MOST)
        or (type(value) is float and math.isfinite(value))
        or (type(value) is str and len(value) <= _LONGEST)
    )
    if not fits:
        raise UserError(
            f"has {value!r:.80} for {name}, which must be a whole number up to {MOST:,}, a finite number, a flag, a "
            "short text, or a list of such"
        )


def _numbers(value: Any, name: str, bounds: tuple[int, int], levels: int) -> None:
    if levels and type(value) in (list, tuple):
        for each in value:
            _numbers(each, name, bounds, levels - 1)
    else:
        whole_number({name: value}, name, *bounds)


def _factors(value: Any, name: str, bounds: tuple[float, float]) -> None:
    if type(value) not in (list, tuple):
        raise UserError(f"has {value!r:.80} for {name}, which must be a list of numbers.")
    for each in value:
        real({name: each}, name, *bounds)
