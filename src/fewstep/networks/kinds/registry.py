"""The kinds of networks: one registry, open to everybody.

    @register("my-network")
    class MyNetwork(DenoisingNetwork):
        def __init__(self, width: Annotated[int, Interval(ge=8, le=4096)] = 64, classes: int = 0):
        ...

A registered network knows by which arguments it was made, however it was made, so that a file can
rebuild it and a recipe can name it. Names, types and bounds of the arguments are read from the
constructor (``annotated_types``); no other text says them. ``classes``, ``attributes``,
``guidance`` and ``end``, where the constructor has them, are given by who builds it, as is what is
marked ``Given``.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from fewstep.errors import UserError
from fewstep.values import Given, checked, marks_in

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)

GIVEN = ("classes", "attributes", "guidance", "end")
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Argument:
    """An argument of a network's constructor: its annotation, with bounds, and its default
    (``inspect.Parameter.empty`` for none).
    """

    name: str
    annotation: Any
    default: Any

    @property
    def given(self) -> bool:
        """Whether whoever builds the network gives it, so that a recipe does not say it."""
        return self.name in GIVEN or any(isinstance(mark, Given) for mark in marks_in(self.annotation))


@dataclass(frozen=True, eq=False)
class Kind:
    """A registered class."""

    name: str
    cls: type[nn.Module]
    arguments: dict[str, Argument]

    @property
    def module(self) -> str:
        """The module that registers it."""
        return self.cls.__module__

    @property
    def settings(self) -> dict[str, Argument]:
        """The arguments that a recipe says."""
        return {name: argument for name, argument in self.arguments.items() if not argument.given}

    @property
    def in_recipes(self) -> bool:
        """Whether a recipe can name it: nothing that is given for one network alone is needed to
        make it.
        """
        return all(
            each.default is not inspect.Parameter.empty or name in GIVEN
            for name, each in self.arguments.items()
            if each.given
        )


_KINDS: dict[str, Kind] = {}


def register(name: str) -> Callable[[type[AnyNetwork]], type[AnyNetwork]]:
    """Enters a network class under a name; see the module's docstring.

    Raises ``UserError`` for a name that another class has, and for a constructor whose arguments
    have no names of their own (``*args``, ``**kwargs``). A module that is imported anew replaces
    its own classes.
    """

    def enter(cls: type[AnyNetwork]) -> type[AnyNetwork]:
        other = _KINDS.get(name)
        if other is not None and (other.module, other.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"network '{name}': is the name of {other.module}.{other.cls.__qualname__} already; "
                "register yours under another name."
            )
        _KINDS[name] = Kind(name, cls, dict(_arguments(name, cls)))
        _remember_arguments(name, cls)
        return cls

    return enter


def kinds(of: type[nn.Module] = nn.Module) -> dict[str, Kind]:
    """The registered kinds of networks that are an ``of``, by name, in the order of
    registration.
    """
    return {name: kind for name, kind in _KINDS.items() if issubclass(kind.cls, of)}


def kind_named(name: Any, module: str | None = None) -> Kind:
    """The kind of a name; raises ``UserError`` for an unknown one.

    ``module``: the one that registered it, where that is known.
    """
    if isinstance(name, str) and name in _KINDS:
        return _KINDS[name]
    hint = f"'{module}'" if module else "its module"
    raise UserError(
        f"network: unknown kind '{name}'; it must be one of {', '.join(_KINDS)}, or your own: import {hint} "
        "first, by --import or in Python."
    )


def find_kind(network: nn.Module) -> str | None:
    """The name under which the network's class was registered, None for another."""
    # Not by its class, of which sharding makes another.
    made_by: tuple[str, dict[str, Any]] | None = vars(network).get("_made_by")
    return None if made_by is None else made_by[0]


def arguments_of(network: nn.Module) -> dict[str, Any]:
    """The arguments by which a network of a registered class was made, with those that were left
    out.

    Raises ``UserError`` for one of another class, and for an argument that no file can hold.
    """
    made_by: tuple[str, dict[str, Any]] | None = vars(network).get("_made_by")
    if made_by is None:
        name = type(network).__name__
        raise UserError(
            f"{name} is not registered, so that a file could not rebuild it: decorate its class with "
            "fewstep.networks.register('a-name')."
        )
    found = made_by[1]
    wrong = next((name for name, value in found.items() if not _is_plain(value)), None)
    if wrong is not None:
        raise UserError(
            f"{type(network).__name__} was made with '{wrong}', which is no number, text or list of such: "
            "no file could hold it; give it plain arguments."
        )
    return dict(found)


def _arguments(kind: str, cls: type[nn.Module]) -> Iterator[tuple[str, Argument]]:
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            stars = {
                inspect.Parameter.VAR_POSITIONAL: "*",
                inspect.Parameter.VAR_KEYWORD: "**",
                inspect.Parameter.POSITIONAL_ONLY: "",
            }[parameter.kind]
            raise UserError(
                f"network '{kind}': its constructor takes '{stars}{parameter.name}', which a recipe cannot "
                "name; give each argument a name of its own."
            )
        default = parameter.default
        guessed = Any if default is None or default is inspect.Parameter.empty else type(default)
        yield parameter.name, Argument(parameter.name, hints.get(parameter.name, guessed), default)


def _remember_arguments(name: str, cls: type[nn.Module]) -> None:
    original = cls.__init__
    signature = inspect.signature(original)
    hints = {argument.name: argument.annotation for argument in _KINDS[name].arguments.values()}

    @functools.wraps(original)
    def made(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        # Of a class below, whose constructor calls this one, the arguments are not known.
        if type(self) is not cls:
            original(self, *args, **kwargs)
            return
        bound = signature.bind(self, *args, **kwargs)
        given = checked(hints, dict(list(bound.arguments.items())[1:]), f"network '{name}'")
        original(self, **given)
        bound.apply_defaults()
        vars(self)["_made_by"] = name, {**dict(list(bound.arguments.items())[1:]), **given}

    cls.__init__ = made  # type: ignore[method-assign]


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else isinstance(value, _PLAIN)
