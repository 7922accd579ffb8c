"""The recipes' reference, from the sections themselves: keys, bounds, defaults, and what ships."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import annotated_types as at
from pydantic.fields import FieldInfo

HEAD = """# {title}

{intro} A key without a default must be said. `fewstep recipes NAME` prints a whole recipe to start from, and
`--set SECTION.KEY=VALUE` changes a key.
"""


def _recipe_page(task: str) -> str:
    from fewstep.recipes.recipe import TASKS

    recipe = TASKS[task]
    lines = [HEAD.format(title=f"Recipes: `task: {task}`", intro=" ".join((recipe.__doc__ or "").split()))]
    return "\n".join([*lines, *_section(recipe, "", {})]) + "\n"


def _shipped_page() -> str:
    from fewstep.recipes import shipped_names, shipped_text

    lines = ["# Recipes that ship", "", "| recipe | what it is |", "|---|---|"]
    for name in shipped_names():
        first = shipped_text(name).partition("\n")[0].lstrip("# ").replace("|", "\\|")
        lines.append(f"| `{name}` | {first} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/shipped-recipes.md": _shipped_page,
    "reference/distill-recipes.md": lambda: _recipe_page("distill"),
    "reference/pretrain-recipes.md": lambda: _recipe_page("pretrain"),
}


def _section(section: type[Any], key: str, said: dict[type[Any], str]) -> Iterator[str]:
    """A section's table and those of the sections in it, each once; ``said``: where each stands."""
    from fewstep.recipes.config.section import fields_of, kind_of_section

    kind = kind_of_section(section)
    title = f"{key}: `{kind}`" if kind else key
    if title:
        said[section] = title
        yield from ("", f"{'##' if '.' not in key else '###'} {title}", "")
        yield _doc(section)
    fields = {name: field for name, field in fields_of(section).items() if name not in ("kind", "task")}
    if fields:
        yield from ("", "| key | takes | default |", "|---|---|---|")
        for name, field in fields.items():
            yield f"| `{name}` | {_takes(field, said)} | {_default(field.default)} |"
    for name, field in fields.items():
        for inner in field.sections:
            if inner not in said:
                yield from _section(inner, f"{key}.{name}".lstrip("."), said)


def _doc(section: type[Any]) -> str:
    text = inspect.cleandoc(section.__doc__ or "")
    # What dataclasses write themselves says nothing.
    return "" if text.startswith(f"{section.__name__}(") else text.replace("\\", "\\\\")


def _takes(field: Any, said: dict[type[Any], str]) -> str:
    from fewstep.recipes.config.section import kind_of_section

    if field.sections:
        kinds = [kind_of_section(each) for each in field.sections]
        return "a section" if None in kinds else " or ".join(f"`{kind}`" for kind in kinds)
    return _plain(field.annotation)


def _plain(annotation: Any) -> str:
    """A plain value's type and bounds, in words."""
    from fewstep.recipes.config.section import ByName

    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        named = next((mark for mark in parts[1:] if isinstance(mark, ByName)), None)
        if named is not None:
            return " or ".join(f"`{name}`" for name in named.known)
        return " ".join([_plain(parts[0]), *_bounds(parts[1:])])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_plain(part) for part in parts)
    if origin in (list, tuple):
        inner = [part for part in parts if part is not Ellipsis]
        return "a list: " + ", ".join(dict.fromkeys(_plain(part) for part in inner))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "`true` or `false`", type(None): "null"}
    return words.get(annotation) or "a mapping"


def _bounds(marks: tuple[Any, ...]) -> Iterator[str]:
    for mark in marks:
        inner = mark if isinstance(mark, at.GroupedMetadata) else [mark]
        for bound in inner:
            match bound:
                case at.Ge(ge=value):
                    yield f"from {value} on"
                case at.Gt(gt=value):
                    yield f"above {value}"
                case at.Le(le=value):
                    yield f"up to {value}"
                case at.Lt(lt=value):
                    yield f"below {value}"
                case at.MinLen(min_length=value) if value:
                    yield f"of at least {value}"
                case at.MaxLen(max_length=value) if value is not None:
                    yield f"of at most {value}"
                case FieldInfo():
                    yield from _bounds(tuple(bound.metadata))


def _default(value: Any) -> str:
    from fewstep.recipes.config.section import is_section, saved

    if value is dataclasses.MISSING:
        return ""
    if is_section(value):
        plain = saved(value)
        return f"`kind: {plain['kind']}`" if "kind" in plain else "its defaults"
    return "null" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
