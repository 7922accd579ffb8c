"""The records of ``torch.nn.Module`` that a pickle leaves: their tensors by the names of a state
dict, their arguments, and their attributes, each checked before it is believed.

A number from a file decides how large a network is built, how long a table is, what an exponential
overflows at; so each is asked for with its type and its range.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import ForeignObject, shown_foreign

_LEVELS = 16
_LONGEST = 16


def tensors_of(module: ForeignObject) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters, persistent buffers) of a module and the modules in it, by their names in its
    state dict.

    Raises ``UserError`` for what is no module, a module that occurs twice or in itself, and modules
    nested deeper than 16.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", module, 0)]
    while waiting:
        prefix, record, level = waiting.pop()
        if id(record) in seen or level > _LEVELS:
            raise UserError(
                f"has modules that contain one another, or that nest deeper than {_LEVELS}, at {shown_foreign(prefix)}."
            )
        seen.add(id(record))
        temporary = record.state.get("_non_persistent_buffers_set") if type(record.state) is dict else None
        for kind, found in (("_parameters", parameters), ("_buffers", buffers)):
            for name, value in _entries(record, kind, prefix).items():
                if value is None or (kind == "_buffers" and type(temporary) is set and name in temporary):
                    continue
                if not isinstance(value, Tensor):
                    raise UserError(f"has a {type(value).__name__} for the tensor {shown_foreign(prefix + name)}.")
                found[prefix + name] = value
        for name, value in _entries(record, "_modules", prefix).items():
            if isinstance(value, ForeignObject):
                waiting.append((f"{prefix}{name}.", value, level + 1))
            elif value is not None:
                raise UserError(f"has a {type(value).__name__} for the module {shown_foreign(prefix + name)}.")
    return parameters, buffers


def child(module: ForeignObject, name: str) -> ForeignObject:
    """A module's module by name. Raises ``UserError`` when there is none."""
    found = _entries(module, "_modules", "").get(name)
    if not isinstance(found, ForeignObject):
        raise UserError(f"has a {shown_foreign(module.name)} without a module '{name}'.")
    return found


def keywords_of(module: ForeignObject) -> dict[str, Any]:
    """The keyword arguments that a persistent module was made from; there must be no others."""
    state = module.state if type(module.state) is dict else {}
    if state.get("_init_args") not in ((), []) or type(state.get("_init_kwargs")) is not dict:
        raise UserError(f"does not say which keyword arguments {shown_foreign(module.name)} was made from.")
    return state["_init_kwargs"]


def whole_number(values: dict[str, Any], name: str, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    value: Any = values.get(name)
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"has {_said(value)} for {name}, which must be a whole number from {low} to {high}.")
    return value


def whole_numbers(values: dict[str, Any], name: str, low: int, high: int) -> list[int]:
    """At most 16 whole numbers in [low, high]."""
    value: Any = values.get(name)
    if type(value) not in (list, tuple) or len(value) > _LONGEST:
        raise UserError(f"has {_said(value)} for {name}, which must be a list of at most {_LONGEST} whole numbers.")
    return [whole_number({name: item}, name, low, high) for item in value]


def real(values: dict[str, Any], name: str, low: float, high: float) -> float:
    """A number in [low, high]; infinity is one."""
    value: Any = values.get(name)
    # False for a number that is none.
    if type(value) not in (int, float) or not low <= value <= high:
        raise UserError(f"has {_said(value)} for {name}, which must be a number from {low} to {high}.")
    return float(value)


def word(values: dict[str, Any], name: str) -> str:
    """A text."""
    value: Any = values.get(name)
    if type(value) is not str:
        raise UserError(f"has {_said(value)} for {name}, which must be a text.")
    return value


def flag(values: dict[str, Any], name: str, usual: bool) -> bool:
    """True or False; ``usual`` where it is left out."""
    value: Any = values.get(name, usual)
    if type(value) is not bool:
        raise UserError(f"has {_said(value)} for {name}, which must be true or false.")
    return value


def words(values: dict[str, Any], name: str) -> list[str]:
    """At most 16 texts."""
    value: Any = values.get(name)
    if type(value) not in (list, tuple) or len(value) > _LONGEST:
        raise UserError(f"has {_said(value)} for {name}, which must be a list of at most {_LONGEST} texts.")
    return [word({name: item}, name) for item in value]


def _entries(record: ForeignObject, kind: str, prefix: str) -> dict[str, Any]:
    found = record.state.get(kind) if type(record.state) is dict else None
    if type(found) is not dict:
        raise UserError(f"has a {shown_foreign(record.name)} at {shown_foreign(prefix)} without its {kind}.")
    return found


def _said(value: object) -> str:
    return "nothing" if value is None else shown_foreign(value)
