"""Objects that remember, and how a run finds them.

Objectives and wrappers are frozen values; what changes while a run goes on (a position on a path, a switch rule's window) lives in ``Stateful`` objects. The trainer finds
them by walking the dataclass fields of the stages it was given, so that a checkpoint misses none, whoever built the stages.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class Stateful(abc.ABC):
    """Has a state of plain JSON values, and of named tensors where those are many (a buffer of samples)."""

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
        """The networks that it runs, made now if they are not there yet, so that they can be laid out over processes with all others; none unless a class has some."""
        return ()

    def figures(self) -> dict[str, float]:
        """Named numbers worth a line in the log whenever they change; none unless a class has some."""
        return {}


@contextlib.contextmanager
def untouched(root: Any) -> Iterator[None]:
    """Whatever the stateful objects in ``root`` come to remember inside is forgotten again."""
    kept = [(each, copy.deepcopy(each.state_dict()), {name: value.clone() for name, value in each.tensors().items()}) for each in find_stateful(root).values()]
    try:
        yield
    finally:
        for each, state, tensors in kept:
            each.load_state_dict(state)
            each.load_tensors(tensors)


def find_stateful(root: Any) -> dict[str, Stateful]:
    """Every stateful object reachable from ``root`` through dataclass fields, lists, tuples and mappings, by the first place it was found."""
    return {place: value for place, value in _walk(root, "", set()) if isinstance(value, Stateful)}


def walk(root: Any) -> Iterator[Any]:
    """Every value reachable from ``root`` in the same way, once each; what is inside a module, a text or a number is not walked."""
    for _, value in _walk(root, "", set()):
        yield value


def _walk(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (str, bytes, int, float)) or value is None or id(value) in seen:
        return
    seen.add(id(value))
    yield place, value
    if isinstance(value, nn.Module):
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from _walk(getattr(value, item.name), f"{place}.{item.name}", seen)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{place}.{key}", seen)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{place}.{index}", seen)
