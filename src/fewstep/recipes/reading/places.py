"""What a recipe names outside itself, by the marks on its fields; and paths that mean the same from
everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from fewstep.recipes.config import Names, WebDatasetData
from fewstep.recipes.config.section import fields_of, is_section
from fewstep.system.locations import absolute, is_address, is_hub_id

AnySection = TypeVar("AnySection", bound=BaseModel)


@dataclass(frozen=True)
class Named:
    """``value`` of the field with the dotted ``key`` and its ``mark``, in the section ``owner``.

    ``value`` is None where the field may name something and does not.
    """

    key: str
    value: str | None
    mark: Names
    owner: BaseModel


def named_in(section: BaseModel, prefix: str = "") -> Iterator[Named]:
    """All fields of a section, and of the sections in it, that name what lies outside."""
    for name, field in fields_of(type(section)).items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if is_section(value):
            yield from named_in(value, f"{key}.")
        for number, each in _listed(value):
            yield from named_in(each, f"{key}.{number}.")
        for mark in field.marks:
            if isinstance(mark, Names) and value not in mark.besides:
                yield Named(key, value, mark, section)


def with_names(section: AnySection, value_of: Callable[[Named], str | None], prefix: str = "") -> AnySection:
    """The section with the values that ``value_of`` gives to what it names."""
    inner = {name: getattr(section, name) for name in type(section).model_fields}
    sections = {name: value for name, value in inner.items() if isinstance(value, BaseModel)}
    changed: dict[str, Any] = {
        name: with_names(value, value_of, f"{prefix}{name}.") for name, value in sections.items()
    }
    for name, value in inner.items():
        if listed := _listed(value):
            changed[name] = [with_names(each, value_of, f"{prefix}{name}.{number}.") for number, each in listed]
    for named in named_in(section, prefix):
        if named.owner is section:
            changed[named.key.removeprefix(prefix)] = value_of(named)
    return section.model_copy(update=changed)


def _listed(value: Any) -> list[tuple[int, BaseModel]]:
    """The sections of a list of them, with their numbers; nothing of another value."""
    return (
        [(number, each) for number, each in enumerate(value) if isinstance(each, BaseModel)]
        if isinstance(value, list)
        else []
    )


def anchored(recipe: AnySection, sections: Collection[str] | None = None) -> AnySection:
    """The recipe with absolute paths: a relative path is one below the working directory.

    ``sections``: those whose paths are made so, all unless given. Addresses, ids of the hub and the
    names of what ships stay as they are.
    """

    def value_of(named: Named) -> str | None:
        chosen = sections is None or named.key.partition(".")[0] in sections
        return _placed(named) if chosen else named.value

    return with_names(recipe, value_of)


def _placed(named: Named) -> str | None:
    value, mark = named.value, named.mark
    if value is None or mark.what == "shipped" or is_address(value):
        return value
    if mark.hub is not None and is_hub_id(value, mark.hub):
        return value
    if mark.what == "recipe" and not is_recipe_file(value):
        return value
    # WebDataset has addresses of other forms, which are refused where shards are opened.
    if isinstance(named.owner, WebDatasetData) and ":" in value:
        return value
    return absolute(value)


def without_folders(section: AnySection) -> AnySection:
    """The section with the last part of each path alone, for files that are passed on to other
    machines.
    """
    return with_names(
        section, lambda named: Path(named.value).name if named.value and os.path.isabs(named.value) else named.value
    )


def is_recipe_file(name: str) -> bool:
    """Whether a recipe's name is a file's, and not of one that ships."""
    return name.endswith((".yaml", ".yml")) or "/" in name
