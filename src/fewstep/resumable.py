"""Objects that remember, and how a run finds them.

Objectives and wrappers are frozen values; what changes while a run goes on (a position on a path, a
switch rule's window) lives in ``Resumable`` objects. The trainer finds them by walking the
dataclass fields of the stages it was given, so that a checkpoint misses none, whoever built the
stages. What could hide such an object from the walk is refused when a phase is built
(``check_open``): a class that is no dataclass of its own, an attribute beside the fields, a
function that holds values from outside it, a set.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import dataclasses
import enum
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import UserError


class Inert:
    """Says of its objects that they remember nothing which a checkpoint would need: a data set and
    the files that it reads.
    """


# What holds no other part: numbers, texts, and what a run does not look into.
_PLAIN = (str, bytes, int, float, complex, type(None))
_NUMBERS = (range, slice, np.ndarray, np.generic, Tensor, torch.dtype, torch.device)
_LEAVES = (*_PLAIN, *_NUMBERS, PurePath, enum.Enum, type, types.ModuleType, Inert, nn.Module)
# What is bound to an object, which is walked.
_BOUND = (types.MethodType, types.BuiltinMethodType)
# Containers without attributes: they are what is in them.
_CONTAINERS = ("builtins", "types", "collections")


class Resumable(abc.ABC):
    """Has a state of plain JSON values, and of named tensors where those are many (a buffer of
    samples).
    """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state, as JSON values."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Returns to a state that ``state_dict`` gave."""

    def tensors(self) -> dict[str, Tensor]:
        """The part of the state that is tensors; none unless a class has some."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Returns to what ``tensors`` gave; called after ``load_state_dict``."""
        return

    def networks(self) -> Sequence[nn.Module]:
        """The networks that it runs, made now if they are not there yet, so that they can be laid
        out over processes with all others; none unless a class has some.
        """
        return ()

    def in_use(self) -> Sequence[nn.Module]:
        """Those of ``networks`` that it runs now; all of them unless a class knows better."""
        return self.networks()

    def figures(self) -> dict[str, float]:
        """Named numbers worth a line in the log whenever they change; none unless a class has
        some.
        """
        return {}


@contextlib.contextmanager
def untouched(root: Any) -> Iterator[None]:
    """Whatever the stateful objects in ``root`` come to remember inside is forgotten again."""
    kept = [
        (each, copy.deepcopy(each.state_dict()), {name: value.clone() for name, value in each.tensors().items()})
        for each in find_resumable(root).values()
    ]
    try:
        yield
    finally:
        for each, state, tensors in kept:
            each.load_state_dict(state)
            each.load_tensors(tensors)


def find_resumable(root: Any) -> dict[str, Resumable]:
    """Every stateful object reachable from ``root`` through dataclass fields, lists, tuples,
    mappings, methods and partial calls, by the first place it was found.
    """
    return {place: value for place, value in _walk(root, "", set()) if isinstance(value, Resumable)}


def walk(root: Any) -> Iterator[Any]:
    """Every value reachable from ``root`` in the same way, once each; what is inside a module, a
    text or a number is not walked.
    """
    for _, value in _walk(root, "", set()):
        yield value


def check_open(root: Any, owner: str) -> None:
    """Raises ``UserError`` for the first part reachable from ``root`` that may hide what it
    remembers from the walk, and so from checkpoints; ``owner`` says whose part it is.
    """
    for place, value in _walk(root, "", set()):
        hidden = _hidden(value)
        if hidden:
            raise UserError(f"{owner}: {_named(value)}{f' ({place[1:]})' if place else ''} {hidden}")


def _walk(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    yield place, value
    for name, inner in _parts(value):
        yield from _walk(inner, f"{place}.{name}", seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, by name."""
    if isinstance(value, _LEAVES):
        return
    if dataclasses.is_dataclass(value):
        # A field that nobody gave is what a stateful object keeps for itself.
        yield from (
            (item.name, getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.init or not isinstance(value, Resumable)
        )
    elif isinstance(value, Mapping):
        yield from ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(index), inner) for index, inner in enumerate(value))
    elif isinstance(value, _BOUND):
        yield "__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))


def _hidden(value: Any) -> str:
    """Why a part may hide something, as the end of a sentence; nothing where it does not."""
    if isinstance(value, nn.Module):
        return _hidden_in_module(value)
    if isinstance(value, types.FunctionType):
        return _hidden_in_function(value)
    if isinstance(value, (set, frozenset)):
        plain = all(isinstance(inner, _LEAVES[:-1]) for inner in value)
        return "" if plain else "is a set of parts, which has no order to name them by; use a list or a mapping."
    return "" if _is_walked_whole(value) else _hidden_beside_fields(value)


def _is_walked_whole(value: Any) -> bool:
    """Whether all that a value has is among its parts, or is its own affair."""
    if isinstance(value, (*_LEAVES, *_BOUND, functools.partial)):
        return True
    # A class that says what the state is answers for all that its objects have.
    if isinstance(value, Resumable):
        return "state_dict" in vars(type(value)) or not dataclasses.is_dataclass(value)
    return isinstance(value, (Mapping, list, tuple)) and type(value).__module__ in _CONTAINERS


def _hidden_in_function(function: types.FunctionType) -> str:
    held = [*function.__code__.co_freevars, *vars(function)]
    if not held:
        return ""
    remedy = "give them as a dataclass' fields or to functools.partial."
    return f"holds values from outside it ({', '.join(held)}), which a checkpoint cannot find; {remedy}"


def _hidden_beside_fields(value: Any) -> str:
    if not type(value).__dictoffset__ and "__slots__" not in vars(type(value)):
        return "is of a kind that is not looked into; use a dataclass, a list or a mapping, or make it a Resumable."
    own = "__dataclass_fields__" in vars(type(value))
    fields = {item.name for item in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    # What a cached property keeps can be computed again.
    beside = [
        name
        for name in _attributes(value)
        if name not in fields and not isinstance(getattr(type(value), name, None), functools.cached_property)
    ]
    remedy = (
        "decorate its class with @dataclass(frozen=True, eq=False) and declare all that it has as fields, or "
        "make what remembers a Resumable."
    )
    if beside:
        return f"has '{beside[0]}' beside its fields, which a checkpoint cannot find; {remedy}"
    if not own and (dataclasses.is_dataclass(value) or not _is_stateless(type(value))):
        return f"is no dataclass of its own, so that a checkpoint cannot find what it remembers; {remedy}"
    return ""


def _attributes(value: Any) -> list[str]:
    """The names of what an object has for itself, in its dictionary or in slots."""
    slots = [
        name for kind in type(value).__mro__ for name in _slots_of(kind) if name not in ("__dict__", "__weakref__")
    ]
    return [*getattr(value, "__dict__", {}), *slots]


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_stateless(kind: type) -> bool:
    """Whether a class of ours or a user's has nothing that its objects could change: no mutable
    value of the class.
    """
    return not any(
        isinstance(inner, (list, dict, set, Resumable)) and not name.startswith("__")
        for base in kind.__mro__
        for name, inner in vars(base).items()
    )


def _hidden_in_module(model: nn.Module) -> str:
    """A module's weights are saved as a network's; a stateful object among its attributes would not
    be.
    """
    for module in model.modules():
        for name, inner in vars(module).items():
            if isinstance(inner, Resumable):
                return (
                    f"holds a {type(inner).__name__} ('{name}'), which a checkpoint cannot find in a network; "
                    "give it to the objective or to the states."
                )
    return ""


def _named(value: Any) -> str:
    return (
        f"the function '{value.__qualname__}'" if isinstance(value, types.FunctionType) else f"a {type(value).__name__}"
    )
