"""Values that know their name: frozen dataclasses that a recipe may say, and that a file holds.

A class of values has a field ``kind``, a literal of one name which is its default, and bounds in
the annotations of its fields (``annotated_types``). Its text is the only one: a section of a recipe
is the value itself, and so is a description in a file. The subclasses of a class that have a name
are its family; a class that is defined anywhere joins the family without more.

``kind`` is declared ``kind: Literal["NAME"] = field(default="NAME", kw_only=True)``, the first of
the fields, so that descriptions begin with it and calls by position do not see it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Self, TypeVar

import annotated_types as at

from fewstep.errors import UserError

T = TypeVar("T")

MOST = 99_999_999
"""Of anything that is counted: a checkpoint's name has eight digits."""


class Share:
    """Marks a count of steps that keeps its proportion to ``training.steps``."""


class Later:
    """Marks a setting that earlier versions did not have.

    A recipe says it only where it has not its default. A run is known by what its recipe says
    (``keeping.run_identity``), so a run of an earlier version keeps its name.
    """


class Given:
    """Marks an argument of a network's constructor that whoever builds it gives, not a recipe."""


@dataclass(frozen=True)
class Costly:
    """Marks a count that sets what a run costs, of which a rehearsal or a test has at most
    ``most``.
    """

    most: int


class Infinite:
    """Marks a number that may be infinite."""


Count = Annotated[int, at.Interval(ge=1, le=MOST)]
Steps = Annotated[int, at.Interval(ge=1, le=MOST), Share()]
Few = Annotated[int, at.Interval(ge=1, le=10_000)]
"""Points of a grid or steps of a sampler: what is listed in full, or nested, before a run begins.
"""
Positive = Annotated[float, at.Gt(0)]
NotNegative = Annotated[float, at.Ge(0)]
Fraction = Annotated[float, at.Interval(ge=0, le=1)]
BelowOne = Annotated[float, at.Interval(ge=0, lt=1)]


class Contradiction(UserError, ValueError):
    """Values that are each within bounds and do not go together; a recipe's reader says of which
    section.
    """


@dataclass(frozen=True)
class Value:
    """See the module's docstring.

    Raises ``UserError`` for a field that is not within its bounds.
    """

    # What reads recipes is told here how strictly, since it asks the class: by this name, and by no
    # import.
    __pydantic_config__ = MappingProxyType({"extra": "forbid", "strict": True, "allow_inf_nan": False})

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in checked(hints, given, type(self).__name__).items():
            if value is not given[name]:
                object.__setattr__(self, name, value)

    @classmethod
    def family(cls) -> dict[str, type[Self]]:
        """The classes below that have a name, by it, in the order in which they were defined."""
        return {kind: each for each in _below(cls) if (kind := kind_of(each)) is not None}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Rebuilds a value of the family from ``describe``.

        Raises ``UserError`` for an unknown kind or field, and for a field that is not within its
        bounds.
        """
        what = cls.__name__.lower()
        values = dict(description)
        kind, known = values.pop("kind", None), cls.family()
        if not isinstance(kind, str) or kind not in known:
            raise UserError(f"{what}: unknown kind '{kind}'; it must be one of {', '.join(known)}.")
        hints = hints_of(known[kind])
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise UserError(f"{what} '{kind}': unknown field '{unknown[0]}'.")
        try:
            return known[kind](**checked(hints, values, f"{what} '{kind}'"))
        except TypeError as error:
            raise UserError(f"{what} '{kind}': {error}.") from error

    def describe(self) -> dict[str, Any]:
        """Plain values from which ``from_description`` rebuilds it: its kind and its fields."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def kind_of(cls: type) -> str | None:
    """The name of a class of values; None of one that has none of its own."""
    if "kind" not in vars(cls).get("__annotations__", {}):
        return None
    kind = vars(cls).get("kind")
    return kind if isinstance(kind, str) else None


def name_of(value: Value) -> str:
    """The kind of a value that has one."""
    kind = kind_of(type(value))
    assert kind is not None, f"{type(value).__name__} has no kind"
    return kind


def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass' fields, with their marks."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls, include_extras=True)
    return _HINTS[cls]


_HINTS: dict[type, dict[str, Any]] = {}


def checked(hints: Mapping[str, Any], values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values of fields or arguments, lists as tuples; raises ``UserError`` for one that is not
    within its bounds.
    """
    found = {}
    for name, value in values.items():
        try:
            found[name] = _read(hints.get(name, Any), value)
        except ValueError as error:
            raise Contradiction(f"{what}: '{name}' is {value!r:.80}, and must be {error}.") from error
    return found


def marks_in(annotation: Any) -> Iterator[Any]:
    """What an annotation is marked with, also where the mark is of one of its alternatives."""
    yield from getattr(annotation, "__metadata__", ())
    inner = typing.get_origin(annotation)
    for part in typing.get_args(annotation) if inner in (Annotated, typing.Union, UnionType) else ():
        yield from marks_in(part)


def _below(base: type[T]) -> Iterator[type[T]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _below(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.describe()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _read(hint: Any, value: Any) -> Any:
    """The value under an annotation; raises ``ValueError`` with what it must be."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _read_marked(parts[0], parts[1:], value)
    if origin in (typing.Union, UnionType):
        return _read_one_of(parts, value)
    if origin is Literal:
        return _read_literal(parts, value)
    if origin in (tuple, list, Sequence):
        return _read_several(parts, value)
    if inspect.isclass(hint) and issubclass(hint, Value) and not isinstance(value, hint):
        return _read_value(hint, value)
    return _read_plain(hint, value)


def _read_marked(hint: Any, marks: Sequence[Any], value: Any) -> Any:
    if value == math.inf and any(isinstance(mark, Infinite) for mark in marks):
        return value
    read = _read(hint, value)
    for bound in _bounds(marks):
        _check(bound, read)
    return read


def _read_literal(options: Sequence[Any], value: Any) -> Any:
    if not any(value == option and type(value) is type(option) for option in options):
        raise ValueError("one of " + ", ".join(map(str, options)))
    return value


def _read_value(family: type[Value], value: Any) -> Value:
    if not isinstance(value, Mapping):
        raise ValueError(f"a {family.__name__.lower()}, as a mapping with its kind")
    return family.from_description(value)


def _read_plain(hint: Any, value: Any) -> Any:
    if hint is NoneType and value is not None:
        raise ValueError("null")
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not -1e300 < value < 1e300:
            raise ValueError("a finite number")
        return value
    if hint in (int, bool, str) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    if hint in words:
        raise ValueError(words[hint])
    return value


def _read_one_of(parts: Sequence[Any], value: Any) -> Any:
    faults = []
    for part in parts:
        try:
            return _read(part, value)
        except ValueError as error:
            faults.append(str(error))
    raise ValueError(" or ".join(faults))


def _read_several(parts: Sequence[Any], value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list")
    if len(parts) == 2 and parts[1] is not Ellipsis:
        if len(value) != len(parts):
            raise ValueError(f"a list of {len(parts)}")
        return tuple(_read(part, each) for part, each in zip(parts, value, strict=True))
    return tuple(_read(parts[0] if parts else Any, each) for each in value)


def _bounds(marks: Sequence[Any]) -> Iterator[Any]:
    for mark in marks:
        yield from mark if isinstance(mark, at.GroupedMetadata) else (mark,)


def _check(bound: Any, value: Any) -> None:
    failed = {
        at.Gt: lambda: not value > bound.gt,
        at.Ge: lambda: not value >= bound.ge,
        at.Lt: lambda: not value < bound.lt,
        at.Le: lambda: not value <= bound.le,
        at.MultipleOf: lambda: value % bound.multiple_of != 0,
        at.MinLen: lambda: len(value) < bound.min_length,
        at.MaxLen: lambda: len(value) > bound.max_length,
    }.get(type(bound))
    if value is None or failed is None or not failed():
        return
    words = {
        at.Gt: "above",
        at.Ge: "at least",
        at.Lt: "below",
        at.Le: "at most",
        at.MultipleOf: "a multiple of",
        at.MinLen: "a list of at least",
        at.MaxLen: "a list of at most",
    }
    number = next(iter(dataclasses.asdict(bound).values()))
    raise ValueError(f"{words[type(bound)]} {number}")
