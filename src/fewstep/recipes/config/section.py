"""What sections of a recipe are made of: strict models, and choices among values that know their
name.

A section is a model of pydantic, or a value from below (``fewstep.values``), whose text there is
the only one. A choice among values, networks or sections is open: what is registered or defined
when a recipe is read can be chosen.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self

import annotated_types as at
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fewstep.system.locations import Hub
from fewstep.values import Later, Value, hints_of, marks_in

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and values are not coerced from other types
    beyond int to float.
    """

    model_config = STRICT

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The section of plain values; raises pydantic's ``ValidationError``."""
        # As JSON, in which a value is a mapping; of Python's objects a strict model wants the value
        # itself.
        passed = _translated(values, _TO_PRIVATE)
        made = cls.model_validate_json(json.dumps(passed))
        return made if passed == values else _translated(made, _FROM_PRIVATE)

    @model_serializer(mode="wrap")
    def _as_saved(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Its values, less what is marked ``Later`` and has its default."""
        values: dict[str, Any] = plain(self)
        return {key: value for key, value in values.items() if not _is_unsaid(self, key)}


# A file's name may be of any bytes, of which Python makes half characters; JSON has none, so that
# they pass as private ones.
_TO_PRIVATE = {0xDC80 + byte: 0x10EE80 + byte for byte in range(128)}
# Python does not write whole numbers of more than some thousand digits; none is within any bound.
_MOST_BITS = 10_000
_FROM_PRIVATE = {private: half for half, private in _TO_PRIVATE.items()}


def _translated(value: Any, table: Mapping[int, int]) -> Any:
    """A value, or a section, with all its texts translated."""
    if isinstance(value, str):
        return value.translate(table)
    if type(value) is int and value.bit_length() > _MOST_BITS:
        return math.inf
    if isinstance(value, Mapping):
        return {_translated(key, table): _translated(inner, table) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_translated(inner, table) for inner in value)
    if is_section(value):
        return replaced(value, {name: _translated(getattr(value, name), table) for name in fields_of(type(value))})
    return value


@dataclass(frozen=True)
class Names:
    """Marks a field whose value names what lies outside the recipe.

    ``weights``: a file or folder of them; ``shipped``: weights in this package, by name; ``data``:
    images, a data set or shards; ``recipe``: another recipe. A value may be an address, or an id of
    ``hub`` where that is given. By this mark paths are found (``recipes.reading.places``), and what
    a checksum is taken of (``recipes.building.checksums``). ``file``: the name of what ships, where
    it is not the value. ``within``: the file or folder that is meant by a path, where that may be
    the folder of a run. ``read``: the file that is read of a value, None for no value, where one is
    read of that too. ``besides``: values that name nothing.
    """

    what: Literal["weights", "shipped", "data", "recipe"]
    hub: Hub | None = None
    file: str | None = None
    within: Callable[[Path], Path] | None = None
    read: Callable[[str | None], Path] | None = None
    besides: frozenset[str] = frozenset()


def check_one(section: Any, first: str, second: str) -> None:
    """Raises ``ValueError`` unless of two fields exactly one is said, the other null."""
    if (getattr(section, first) is None) == (getattr(section, second) is None):
        both = "are both said" if getattr(section, second) is not None else "are both null"
        raise ValueError(f"'{first}' and '{second}' {both}; say one of them, and set the other to null")


def null_beside(values: Any, said: str, other: str) -> Any:
    """Plain values of a section in which ``other`` is null unless given, where ``said`` is said."""
    return {other: None, **values} if isinstance(values, Mapping) and values.get(said) is not None else values


WeightsPath = Annotated[str, Names("weights")]
Seed = Annotated[int, at.Interval(ge=-(2**63), lt=2**63)]
"""What torch takes as one."""


class Choice(abc.ABC):
    """Marks a field that takes one of several sections, told apart by their ``kind``; ``usual``:
    the kind of a section that says none.
    """

    usual: str | None = None

    @abc.abstractmethod
    def options(self, base: Any) -> Mapping[str, type[Any]]:
        """The sections by kind, of a field that is annotated as a ``base``."""

    def unknown(self, expected: str) -> str:
        """What a kind must be, ``expected`` being the known ones."""
        return f"one of {expected}"

    def __get_pydantic_core_schema__(self, base: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        to_plain = core_schema.plain_serializer_function_ser_schema(self.said)
        return core_schema.no_info_plain_validator_function(functools.partial(self.read, base), serialization=to_plain)

    def said(self, section: Any) -> Any:
        """A section as a recipe's file has it."""
        return saved(section)

    def read(self, base: Any, given: Any) -> Any:
        """The section of plain values; raises pydantic's errors."""
        options = self.options(base)
        if isinstance(given, tuple(options.values())):
            return given
        if not isinstance(given, Mapping):
            raise PydanticCustomError("dict_type", "Input should be an object")
        kind, expected = given.get("kind", self.usual), ", ".join(f"'{name}'" for name in options)
        if kind is None:
            raise PydanticCustomError("union_tag_not_found", "no kind", {"must_be": expected})
        if not isinstance(kind, str) or kind not in options:
            raise PydanticCustomError(
                "union_tag_invalid", "unknown kind", {"tag": str(kind), "must_be": self.unknown(expected)}
            )
        return _adapter(kind, options[kind]).validate_json(json.dumps({"kind": kind, **given}))


@dataclass(frozen=True)
class Kinds(Choice):
    """Any value of the family of the annotated class."""

    usual: str | None = None

    def options(self, base: Any) -> Mapping[str, type[Any]]:
        return base.family()


class ByName:
    """Marks a field whose value needs no more than its name, which is what a recipe says;
    ``known``: the values by name.
    """

    def __init__(self, known: Mapping[str, Any]):
        self.known = known

    def __get_pydantic_core_schema__(self, base: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        to_plain = core_schema.plain_serializer_function_ser_schema(self.name_of)
        return core_schema.no_info_plain_validator_function(self._read, serialization=to_plain)

    def name_of(self, value: Any) -> str:
        """The name of one of its values."""
        return next(name for name, known in self.known.items() if known == value)

    def _read(self, given: Any) -> Any:
        if any(given is known for known in self.known.values()):
            return given
        if not isinstance(given, str) or given not in self.known:
            raise PydanticCustomError(
                "literal_error", "Input should be {names}", {"names": " or ".join(f"'{name}'" for name in self.known)}
            )
        return self.known[given]


@dataclass(frozen=True)
class _Tag:
    """Puts the kind into the places that errors name, as a union of sections does."""

    kind: str

    def __get_pydantic_core_schema__(self, section: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.tagged_union_schema({self.kind: handler(section)}, "kind")


def _adapter(kind: str, section: type[Any]) -> TypeAdapter[Any]:
    if section not in _ADAPTERS:
        tagged: Any = Annotated[section, _Tag(kind)]
        _ADAPTERS[section] = TypeAdapter(tagged)
    return _ADAPTERS[section]


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


@dataclass(frozen=True)
class SectionField:
    """A field of a section: its annotation, with marks, and its default (``dataclasses.MISSING``
    for none).
    """

    annotation: Any
    default: Any

    @property
    def marks(self) -> list[Any]:
        """What it is annotated with, also where the annotation is of one of its alternatives."""
        return list(marks_in(self.annotation))

    @property
    def sections(self) -> list[type[Any]]:
        """The sections of which it takes one; none for a plain value."""
        return list(_sections_in(self.annotation))


def fields_of(section: type[Any]) -> dict[str, SectionField]:
    """The fields of a section, whether a model or a value."""
    if section not in _FIELDS:
        _FIELDS[section] = _of_model(section) if issubclass(section, BaseModel) else _of_value(section)
    return _FIELDS[section]


_FIELDS: dict[type[Any], dict[str, SectionField]] = {}


def _of_model(section: type[BaseModel]) -> dict[str, SectionField]:
    found = {}
    for name, field in section.model_fields.items():
        default = dataclasses.MISSING if field.is_required() else field.get_default(call_default_factory=True)
        found[name] = SectionField(
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation, default
        )
    return found


def _of_value(section: type[Any]) -> dict[str, SectionField]:
    hints = hints_of(section)
    return {field.name: SectionField(hints[field.name], field.default) for field in dataclasses.fields(section)}


def is_section(value: Any) -> bool:
    """Whether a field's value has fields of its own."""
    return isinstance(value, (BaseModel, Value))


def replaced(section: Any, changes: Mapping[str, Any]) -> Any:
    """The section with other values, which are not validated."""
    return (
        section.model_copy(update=changes)
        if isinstance(section, BaseModel)
        else dataclasses.replace(section, **changes)
    )


def saved(section: Any) -> Any:
    """The plain values of a section as a recipe's file has them."""
    if isinstance(section, BaseModel):
        return section.model_dump(mode="json")
    if isinstance(section, Value):
        return {
            name: _said(field, getattr(section, name))
            for name, field in fields_of(type(section)).items()
            if not _is_unsaid(section, name)
        }
    return [saved(each) for each in section] if isinstance(section, (list, tuple)) else section


def _said(field: SectionField, value: Any) -> Any:
    by_name = next((mark for mark in field.marks if isinstance(mark, ByName)), None)
    return saved(value) if by_name is None else by_name.name_of(value)


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The dotted key at which two nested descriptions first differ, None where they do not."""
    for key in [*one, *(key for key in other if key not in one)]:
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = first_difference(a, b)
            if inner is not None:
                return f"{key}.{inner}"
        elif a != b or (key in one) != (key in other):
            return key
    return None


def kind_of_section(section: type[Any]) -> str | None:
    """The one kind that a section is of, None for a section without one."""
    field = fields_of(section).get("kind")
    options = _literals(field.annotation) if field is not None else ()
    return options[0] if len(options) == 1 else None


def _is_unsaid(section: Any, name: str) -> bool:
    field = fields_of(type(section)).get(name)
    return (
        field is not None
        and any(isinstance(mark, Later) for mark in field.marks)
        and getattr(section, name) == field.default
    )


def _literals(annotation: Any) -> Sequence[str]:
    if typing.get_origin(annotation) is Annotated:
        return _literals(typing.get_args(annotation)[0])
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _sections_in(annotation: Any) -> Iterator[type[Any]]:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        choice = next((mark for mark in parts[1:] if isinstance(mark, Choice)), None)
        yield from _sections_in(parts[0]) if choice is None else choice.options(parts[0]).values()
    elif origin in (typing.Union, UnionType):
        for part in parts:
            yield from _sections_in(part)
    elif isinstance(annotation, type) and issubclass(annotation, (BaseModel, Value)):
        yield annotation
