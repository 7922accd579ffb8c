"""From what pydantic finds wrong in a recipe to one sentence: source, key, what is wrong, what to
do.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fewstep.recipes.config.section import SectionField, fields_of, kind_of_section


def sentence_of(
    error: ValidationError, root: type[BaseModel], where: str, given: Mapping[str, Any], values: Mapping[str, Any]
) -> str:
    """The first problem in words: source, key, what is wrong, what to do; ``values`` as they were
    given.
    """
    problem = error.errors()[0]
    # An unknown key may look like anything, also like what pydantic puts in for chosen kinds.
    unknown = problem["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    keys = (
        [*_plain_keys(root, problem["loc"][:-1]), str(problem["loc"][-1])]
        if unknown
        else list(_plain_keys(root, problem["loc"]))
    )
    dotted = ".".join(keys)
    source = next(
        (
            f"--set {key}"
            for key in given
            if dotted == key or dotted.startswith(key + ".") or key.startswith(dotted + ".")
        ),
        where,
    )
    kind, context = problem["type"], problem.get("ctx", {})
    if unknown:
        known = [name for section in _sections(root, problem["loc"][:-1]) for name in fields_of(section)]
        close = difflib.get_close_matches(keys[-1], known, 1)
        return f"{source}: unknown key '{dotted}'; " + (
            f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}."
        )
    sentences = {
        "missing": lambda: f"the key '{dotted}' is missing; add it.",
        "json_invalid": lambda: "holds half of a character (a lone surrogate), which no text is; correct it.",
        "union_tag_not_found": lambda: (
            f"'{dotted}' must say its 'kind'; one of {context.get('must_be') or _tags(root, problem['loc'])}."
        ),
        "union_tag_invalid": lambda: (
            f"'{dotted}.kind' is '{context['tag']}'; it must be "
            f"{context.get('must_be') or 'one of ' + context['expected_tags']}."
        ),
        # A section's own check, which says what it was given.
        "value_error": lambda: f"in '{dotted}' {str(context['error']).removesuffix('.')}.",
    }
    if kind in sentences:
        return f"{source}: {sentences[kind]()}"
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{source}: '{dotted}' is {shown_value(_given_at(values, keys, problem['input']))}: {message}."


def _given_at(values: Any, keys: Sequence[str], otherwise: Any) -> Any:
    """What was given under a key, before it was made fit to be read."""
    for key in keys:
        if not isinstance(values, Mapping) or key not in values:
            return otherwise
        values = values[key]
    return values


class _Short(reprlib.Repr):
    """Values of any size and depth in a few words."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write whole numbers of more than some thousand digits.
        return repr(value) if abs(value) < 10**40 else f"a whole number of {value.bit_length()} bits"


def shown_value(value: Any) -> str:
    return _Short().repr(value)


def _plain_keys(root: type[Any], location: Sequence[int | str]) -> Iterator[str]:
    """The keys as the user wrote them: without the tags that pydantic puts in for chosen kinds."""
    for part, sections, is_tag in _walked(root, location):
        inner = isinstance(part, str) and ("[" in part or part in ("int", "constrained-int"))
        if _fields_named(sections, part) or not (is_tag or inner):
            yield str(part)


def _sections(root: type[Any], location: Sequence[int | str]) -> list[type[Any]]:
    """The sections at a location, of which one was meant."""
    *_, (_, sections, _) = _walked(root, [*location, ""])
    return sections


def _walked(root: type[Any], location: Sequence[int | str]) -> Iterator[tuple[int | str, list[type[Any]], bool]]:
    """Each part of a location, the sections in which it stands, and whether it is the kind of one
    of these.
    """
    sections, choice = [root], False
    for part in location:
        tagged = [section for section in sections if kind_of_section(section) == part]
        # A kind comes first where there is a choice: a section of the kind 'network' may have a
        # field of that name.
        if tagged and (choice or not _fields_named(sections, part)):
            yield part, [], True
            sections, choice = tagged, False
            continue
        yield part, sections, False
        inner = [section for field in _fields_named(sections, part) for section in field.sections]
        sections, choice = inner or sections, len(inner) > 1


def _fields_named(sections: Sequence[type[Any]], name: int | str) -> list[SectionField]:
    return [fields_of(section)[name] for section in sections if isinstance(name, str) and name in fields_of(section)]


def _tags(root: type[Any], location: Sequence[int | str]) -> str:
    return ", ".join(f"'{kind}'" for section in _sections(root, location) if (kind := kind_of_section(section)))
