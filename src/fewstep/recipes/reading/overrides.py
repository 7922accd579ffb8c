"""Overrides of a recipe: ``section.key=value``, the defaults that are spelled out for it, and steps
that scale along.

``--set training.steps=N`` also scales the counts of steps that are shares of the run
(``values.Share``), so that a short run keeps the recipe's proportions; each stays at least 1, and
the total grows where that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UserError
from fewstep.recipes.config.section import SectionField, fields_of, is_section, kind_of_section, replaced, saved
from fewstep.recipes.reading.yaml_text import DEEPEST, parsed
from fewstep.recipes.recipe import TASKS, DistillRecipe, PretrainRecipe, Recipe
from fewstep.values import Share


def read_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: must be of the form section.key=value, for example --set training.steps=40.")
    if key.count(".") >= DEEPEST:
        raise UserError(
            f"--set {text:.40}...: the key names sections more than {DEEPEST} deep, and no recipe has so many; "
            "shorten it."
        )
    try:
        return key, parsed(value)
    except ValueError as error:
        raise UserError(f"--set {text}: the value is not valid YAML.") from error


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for index, parent in enumerate(parents):
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {key}: '{'.'.join(parents[: index + 1])}' is a value, not a section.")
        values = inner
    values[last] = value


def spell_out(values: dict[str, Any], key: str, given: Mapping[str, Any]) -> None:
    """Writes the defaults of the sections that hold ``key`` and that the recipe leaves out, so that
    an override of one key keeps the rest: their kind before all.

    A section whose kind is overridden too begins from that kind's own defaults.
    """
    task = values.get("task")
    section: type[Any] | None = TASKS.get(task) if isinstance(task, str) else None
    names = key.split(".")
    for index, name in enumerate(names[:-1]):
        field = fields_of(section).get(name) if section is not None else None
        if field is None:
            return
        if values.get(name) is None and f"{'.'.join(names[: index + 1])}.kind" not in given:
            values[name] = _default(field)
        inner = values.get(name)
        if not isinstance(inner, dict):
            # What is missing altogether is made by ``_assign``, which also refuses what is a value.
            if inner is None:
                values.pop(name, None)
            return
        section, values = chosen_section(field, inner), inner


def _default(field: SectionField) -> dict[str, Any] | None:
    """What a section says that is left out or null: what its default says, or the kind where there
    is but one; None for what has neither.
    """
    if is_section(field.default):
        plain: dict[str, Any] = saved(field.default)
        return plain
    if len(field.sections) != 1:
        return None
    kind = kind_of_section(field.sections[0])
    return {} if kind is None else {"kind": kind}


def chosen_section(field: SectionField, values: Mapping[str, Any]) -> type[Any] | None:
    """Which of a field's sections the values are of."""
    if len(field.sections) == 1:
        return field.sections[0]
    usual = kind_of_section(type(field.default)) if is_section(field.default) else None
    kind = values.get("kind", usual)
    return next((section for section in field.sections if kind is not None and kind_of_section(section) == kind), None)


def scaled(recipe: Recipe, factor: float, fixed: set[str]) -> Recipe:
    """The recipe with every ``Share`` scaled, except keys that the user gave."""

    def scale(section: Any, prefix: str) -> Any:
        changes: dict[str, Any] = {}
        for name, field in fields_of(type(section)).items():
            value, key = getattr(section, name), f"{prefix}{name}"
            if is_section(value):
                changes[name] = scale(value, key + ".")
            elif not _given(key, fixed) and any(isinstance(mark, Share) for mark in field.marks):
                changes[name] = (
                    tuple(max(1, round(v * factor)) for v in value)
                    if isinstance(value, tuple)
                    else max(1, round(value * factor))
                )
        return replaced(section, changes)

    longer = scale(recipe, "")
    assert isinstance(longer, (DistillRecipe, PretrainRecipe))
    return longer


def _given(key: str, given: set[str]) -> bool:
    """Whether the user gave this key, or a section that holds it."""
    return any(key == each or key.startswith(each + ".") for each in given)
