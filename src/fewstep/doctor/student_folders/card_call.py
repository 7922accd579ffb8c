"""The call of a pipeline in a model card's Python, read and not run.

A card comes from whoever published the folder. Its blocks of Python are parsed; of a call only
literals are taken, and names that a literal was given to once.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.zoo.pipelines.folder_sampling import MOST_LISTED

MOST_BYTES = 2**20
_MOST_CODE, _MOST_BLOCKS = 20_000, 50
_BLOCK = re.compile(r"^```(?:python|py)[^\n`]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
SAMPLING = ("timesteps", "sigmas", "num_inference_steps", "guidance_scale", "true_cfg_scale")
_LOADED = "from_pretrained"


@dataclass(frozen=True)
class CardCall:
    """``arguments``: literals by name; ``unknown``: names of what is given by something else.
    ``scheduler``: the class of the scheduler that is put in the place of the pipeline's, empty for
    one that is not known, None where none is; and ``settings``: what is said beside.
    """

    arguments: Mapping[str, Any]
    unknown: frozenset[str] = frozenset()
    scheduler: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_card(path: Path) -> str:
    """The card's text. Raises ``UserError`` for one that is too large or cannot be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: has more than {MOST_BYTES:,} bytes, and is not read; shorten the card.")
        return path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it from a copy.") from error


def card_call(text: str) -> CardCall | None:
    """The first call of a pipeline in a card's blocks of Python; None where there is none."""
    for block in list(_BLOCK.finditer(text))[:_MOST_BLOCKS]:
        tree = _parsed(block.group(1))
        found = None if tree is None else _call_in(tree)
        if found is not None:
            return found
    return None


def _parsed(code: str) -> ast.Module | None:
    if len(code) > _MOST_CODE:
        return None
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _call_in(tree: ast.Module) -> CardCall | None:
    assigned = list(_assigned(tree))
    literals = _literals(assigned)
    pipelines = {name for name, value in assigned if _calls(value, _LOADED)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_of_pipeline(node, pipelines):
            scheduler, settings = _scheduler(tree, literals)
            arguments, unknown = _given(node, literals)
            return CardCall(arguments, unknown, scheduler, settings)
    return None


def _is_of_pipeline(node: ast.Call, pipelines: set[str]) -> bool:
    if isinstance(node.func, ast.Name) and node.func.id in pipelines:
        return True
    return any(each.arg in SAMPLING for each in node.keywords)


def _given(node: ast.Call, literals: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The literals of a call's keywords, and the names of the others."""
    arguments, unknown = {}, set()
    for each in node.keywords:
        value = _literal(each.value, literals)
        if each.arg is None or value is _NONE_KNOWN:
            unknown.add(each.arg or "**")
        else:
            arguments[each.arg] = value
    return arguments, frozenset(unknown)


def _scheduler(tree: ast.Module, literals: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """What a block puts in as ``pipe.scheduler = X.from_config(...)``."""
    for node in ast.walk(tree):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not (isinstance(node, ast.Assign) and isinstance(target, ast.Attribute) and target.attr == "scheduler"):
            continue
        made = node.value
        maker = made.func if isinstance(made, ast.Call) else None
        if isinstance(made, ast.Call) and isinstance(maker, ast.Attribute) and isinstance(maker.value, ast.Name):
            return maker.value.id, _given(made, literals)[0]
        return "", {}
    return None, {}


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _literals(assigned: list[tuple[str, ast.expr]]) -> dict[str, Any]:
    """Names that one literal was given to, and nothing else."""
    times = Counter(name for name, _ in assigned)
    found = {name: _literal(value, {}) for name, value in assigned if times[name] == 1}
    return {name: value for name, value in found.items() if value is not _NONE_KNOWN}


def _calls(value: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(value))


_NONE_KNOWN = object()


def _literal(node: ast.expr, literals: Mapping[str, Any]) -> Any:
    """A number, a text, a truth value, None or a list of numbers; else ``_NONE_KNOWN``."""
    if isinstance(node, ast.Name):
        return literals.get(node.id, _NONE_KNOWN)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _NONE_KNOWN
    if isinstance(value, (list, tuple)):
        is_listed = len(value) <= MOST_LISTED and all(type(each) in (int, float) for each in value)
        return list(value) if is_listed else _NONE_KNOWN
    return value if value is None or type(value) in (int, float, bool, str) else _NONE_KNOWN
