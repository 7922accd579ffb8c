"""From a name or a YAML file, with overrides, to a recipe; and from a mistake in either to one
sentence.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fewstep.errors import UserError
from fewstep.recipes.reading.overrides import assign, read_override, scaled, spell_out
from fewstep.recipes.reading.places import anchored, is_recipe_file
from fewstep.recipes.reading.sentences import sentence_of, shown_value
from fewstep.recipes.reading.yaml_text import MAX_BYTES, parsed
from fewstep.recipes.recipe import TASKS, Recipe
from fewstep.system.locations import absolute


def shipped_names() -> list[str]:
    """The names of the recipes that ship, sorted."""
    folder = resources.files("fewstep.recipes") / "library"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def shipped_text(name: str) -> str:
    """The YAML of a shipped recipe."""
    if name not in shipped_names():
        close = difflib.get_close_matches(name, shipped_names(), 1)
        hint = f"did you mean '{close[0]}'?" if close else "'fewstep recipes' lists those that ship."
        raise UserError(f"there is no recipe '{name}'; {hint}")
    return (resources.files("fewstep.recipes") / "library" / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a shipped name or a YAML file and applies ``a.b=value`` overrides; raises ``UserError``
    that names file, key and remedy.

    Paths in it, which are relative to the working directory, are made absolute.
    """
    values, where = _read(source)
    pairs = [read_override(text) for text in overrides]
    given = dict(pairs)
    for key, value in pairs:
        spell_out(values, key, given)
        assign(values, key, value)
    recipe = validate(values, where, given)
    if "training.steps" in given:
        original, _ = _read(source)
        before = original.get("training", {}).get("steps") if isinstance(original.get("training"), dict) else None
        if isinstance(before, int) and before > 0:
            recipe = scaled(recipe, recipe.training.steps / before, set(given))
    return anchored(recipe)


def load_saved(path: Path) -> Recipe:
    """A run's own recipe, its paths as they are written: absolute, but in runs of earlier
    versions.
    """
    return validate(*_read(path))


def validate(values: Any, where: str, given: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from plain values; ``where`` names their source, ``given`` the dotted keys that came
    from the command line.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: a recipe is a mapping of sections, got {type(values).__name__}.")
    task = values.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f"{where}: 'task' must be one of {', '.join(TASKS)}, got {shown_value(task)}.")
    try:
        return TASKS[task].of(values)
    except ValidationError as error:
        raise UserError(sentence_of(error, TASKS[task], where, given or {}, values)) from error


def scaled_to_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe for ``steps`` steps, the shares of its stages and nodes in their proportions."""
    longer = scaled(recipe, steps / recipe.training.steps, set())
    return longer.model_copy(update={"training": longer.training.model_copy(update={"steps": steps})})


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every value spelled out, in the order of the sections."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=120)


def read_values(path: Path) -> tuple[str, dict[str, Any]]:
    """The text and the plain values of a recipe's file, which need not make a recipe of this
    version. Raises ``UserError`` for a file that is no mapping in YAML.
    """
    values, _ = _read(path)
    return path.read_text(encoding="utf-8"), values


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    name = str(source)
    path = Path(source)
    if isinstance(source, Path) or is_recipe_file(name):
        path = Path(absolute(name))
        if not path.is_file():
            raise UserError(f"{path}: there is no such recipe file; 'fewstep recipes' lists those that ship.")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{name}: is larger than {MAX_BYTES} bytes, which no recipe is.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read as text ({error}).") from error
    else:
        text = shipped_text(name)
    try:
        values = parsed(text)
    except ValueError as error:
        raise UserError(f"{name}: is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: a recipe is a mapping of sections, got {type(values).__name__}.")
    return values, name
