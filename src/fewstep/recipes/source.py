"""From a name or a YAML file, with overrides, to a recipe; and from a mistake in either to one sentence.

``--set training.steps=N`` also scales the counts of steps that are shares of the run (see ``config.Share``), so that a short run keeps the recipe's proportions; each
stays at least 1, and the total grows where that needs it.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fewstep.errors import UserError
from fewstep.locations import absolute
from fewstep.recipes.config.base import SectionField, fields_of, is_section, kind_of_section, replaced, saved
from fewstep.recipes.places import anchored, is_recipe_file
from fewstep.recipes.recipe import DistillRecipe, PretrainRecipe, Recipe
from fewstep.values import Share

_TASKS: dict[str, type[DistillRecipe] | type[PretrainRecipe]] = {"distill": DistillRecipe, "pretrain": PretrainRecipe}
# The longest that ships has 3 kB; PyYAML takes a thousand times the length of a text in memory.
_MAX_BYTES = 200_000
_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """YAML without anchors (a few lines of them can expand to gigabytes), tags, merges, dates and keys that are given twice, and with YAML 1.2's floats (1e-5 is a number) and booleans
    (``on`` and ``no`` are words).
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed in recipes", event.start_mark)
        if event.tag is not None:
            raise yaml.composer.ComposerError(None, None, f"tags ({event.tag}) are not allowed in recipes", event.start_mark)
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # PyYAML looks ahead over what is open, which takes a time that grows with its square.
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"lists and mappings are nested more than {_DEEPEST} deep", self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in given:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is given twice", key.start_mark)
            given.add(key.value)
        return super().construct_mapping(node, deep)


_LEFT_OUT = {f"tag:yaml.org,2002:{name}" for name in ("bool", "merge", "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {first: [(tag, pattern) for tag, pattern in resolvers if tag not in _LEFT_OUT] for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)|[-+]?([0-9]*\.[0-9]+|[0-9]+\.[0-9]*)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    list("-+0123456789."),
)


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
    """Reads a shipped name or a YAML file and applies ``a.b=value`` overrides; raises ``UserError`` that names file, key and remedy.

    Paths in it, which are relative to the working directory, are made absolute.
    """
    values, where = _read(source)
    pairs = [_override(text) for text in overrides]
    given = dict(pairs)
    for key, value in pairs:
        _spell_out(values, key, given)
        _assign(values, key, value)
    recipe = validate(values, where, given)
    if "training.steps" in given:
        original, _ = _read(source)
        before = original.get("training", {}).get("steps") if isinstance(original.get("training"), dict) else None
        if isinstance(before, int) and before > 0:
            recipe = _scaled(recipe, recipe.training.steps / before, set(given))
    return anchored(recipe)


def load_saved(path: Path) -> Recipe:
    """A run's own recipe, its paths as they are written: absolute, but in runs of earlier versions."""
    return validate(*_read(path))


def validate(values: Any, where: str, given: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from plain values; ``where`` names their source, ``given`` the dotted keys that came from the command line."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: a recipe is a mapping of sections, got {type(values).__name__}.")
    task = values.get("task")
    if not isinstance(task, str) or task not in _TASKS:
        raise UserError(f"{where}: 'task' must be one of {', '.join(_TASKS)}, got {_shown(task)}.")
    try:
        return _TASKS[task].of(values)
    except ValidationError as error:
        raise UserError(_sentence(error, _TASKS[task], where, given or {})) from error


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe for ``steps`` steps, the shares of its stages and nodes in their proportions."""
    scaled = _scaled(recipe, steps / recipe.training.steps, set())
    return scaled.model_copy(update={"training": scaled.training.model_copy(update={"steps": steps})})


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every value spelled out, in the order of the sections."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=120)


def read_values(path: Path) -> tuple[str, dict[str, Any]]:
    """The text and the plain values of a recipe's file, which need not make a recipe of this version. Raises ``UserError`` for a file that is no mapping in YAML."""
    values, _ = _read(path)
    return path.read_text(encoding="utf-8"), values


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    name = str(source)
    path = Path(source)
    if isinstance(source, Path) or is_recipe_file(name):
        path = Path(absolute(name))
        if not path.is_file():
            raise UserError(f"{path}: there is no such recipe file; 'fewstep recipes' lists those that ship.")
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{name}: is larger than {_MAX_BYTES} bytes, which no recipe is.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read as text ({error}).") from error
    else:
        text = shipped_text(name)
    try:
        values = _parsed(text)
    except ValueError as error:
        raise UserError(f"{name}: is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: a recipe is a mapping of sections, got {type(values).__name__}.")
    return values, name


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: must be of the form section.key=value, for example --set training.steps=40.")
    try:
        return key, _parsed(value)
    except ValueError as error:
        raise UserError(f"--set {text}: the value is not valid YAML.") from error


def _parsed(text: str) -> Any:
    """The value of a YAML text; raises ``ValueError`` for what is none: malformed, nested too deeply, or with numbers of thousands of digits."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for index, parent in enumerate(parents):
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {key}: '{'.'.join(parents[: index + 1])}' is a value, not a section.")
        values = inner
    values[last] = value


def _spell_out(values: dict[str, Any], key: str, given: Mapping[str, Any]) -> None:
    """Writes the defaults of the sections that hold ``key`` and that the recipe leaves out, so that an override of one key keeps the rest: their kind before all.

    A section whose kind is overridden too begins from that kind's own defaults.
    """
    task = values.get("task")
    section: type[Any] | None = _TASKS.get(task) if isinstance(task, str) else None
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
        section, values = _chosen(field, inner), inner


def _default(field: SectionField) -> dict[str, Any] | None:
    """What a section says that is left out or null: what its default says, or the kind where there is but one; None for what has neither."""
    if is_section(field.default):
        plain: dict[str, Any] = saved(field.default)
        return plain
    if len(field.sections) != 1:
        return None
    kind = kind_of_section(field.sections[0])
    return {} if kind is None else {"kind": kind}


def _chosen(field: SectionField, values: Mapping[str, Any]) -> type[Any] | None:
    """Which of a field's sections the values are of."""
    if len(field.sections) == 1:
        return field.sections[0]
    usual = kind_of_section(type(field.default)) if is_section(field.default) else None
    kind = values.get("kind", usual)
    return next((section for section in field.sections if kind is not None and kind_of_section(section) == kind), None)


def _scaled(recipe: Recipe, factor: float, fixed: set[str]) -> Recipe:
    """The recipe with every ``Share`` scaled, except keys that the user gave."""

    def scale(section: Any, prefix: str) -> Any:
        changes: dict[str, Any] = {}
        for name, field in fields_of(type(section)).items():
            value, key = getattr(section, name), f"{prefix}{name}"
            if is_section(value):
                changes[name] = scale(value, key + ".")
            elif not _given(key, fixed) and any(isinstance(mark, Share) for mark in field.marks):
                changes[name] = tuple(max(1, round(v * factor)) for v in value) if isinstance(value, tuple) else max(1, round(value * factor))
        return replaced(section, changes)

    scaled = scale(recipe, "")
    assert isinstance(scaled, (DistillRecipe, PretrainRecipe))
    return scaled


def _given(key: str, given: set[str]) -> bool:
    """Whether the user gave this key, or a section that holds it."""
    return any(key == each or key.startswith(each + ".") for each in given)


def _sentence(error: ValidationError, root: type[BaseModel], where: str, given: Mapping[str, Any]) -> str:
    """The first problem in words: source, key, what is wrong, what to do."""
    problem = error.errors()[0]
    # An unknown key may look like anything, also like what pydantic puts in for chosen kinds.
    unknown = problem["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    keys = [*_plain_keys(root, problem["loc"][:-1]), str(problem["loc"][-1])] if unknown else list(_plain_keys(root, problem["loc"]))
    dotted = ".".join(keys)
    source = next((f"--set {key}" for key in given if dotted == key or dotted.startswith(key + ".") or key.startswith(dotted + ".")), where)
    kind, context = problem["type"], problem.get("ctx", {})
    if unknown:
        known = [name for section in _sections(root, problem["loc"][:-1]) for name in fields_of(section)]
        close = difflib.get_close_matches(keys[-1], known, 1)
        return f"{source}: unknown key '{dotted}'; " + (f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}.")
    sentences = {
        "missing": lambda: f"the key '{dotted}' is missing; add it.",
        "json_invalid": lambda: "holds half of a character (a lone surrogate), which no text is; correct it.",
        "union_tag_not_found": lambda: f"'{dotted}' must say its 'kind'; one of {context.get('must_be') or _tags(root, problem['loc'])}.",
        "union_tag_invalid": lambda: f"'{dotted}.kind' is '{context['tag']}'; it must be {context.get('must_be') or 'one of ' + context['expected_tags']}.",
        # A section's own check, which says what it was given.
        "value_error": lambda: f"in '{dotted}' {str(context['error']).removesuffix('.')}.",
    }
    if kind in sentences:
        return f"{source}: {sentences[kind]()}"
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{source}: '{dotted}' is {_shown(problem['input'])}: {message}."


class _Short(reprlib.Repr):
    """Values of any size and depth in a few words."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write whole numbers of more than some thousand digits.
        return repr(value) if abs(value) < 10**40 else f"a whole number of {value.bit_length()} bits"


def _shown(value: Any) -> str:
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
    """Each part of a location, the sections in which it stands, and whether it is the kind of one of these."""
    sections, choice = [root], False
    for part in location:
        tagged = [section for section in sections if kind_of_section(section) == part]
        # A kind comes first where there is a choice: a section of the kind 'network' may have a field of that name.
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
