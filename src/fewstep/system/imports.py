"""A user's own modules, which register networks and data: imported because the command line names
them, and never because a file does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from fewstep.errors import UserError

OPTION = "--import"

_named: list[str] = []


def import_named(name: str) -> None:
    """Imports a module that the user names, from the working directory or from where Python looks.

    Raises ``UserError`` for a module that is not there. What the module itself raises goes on.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{OPTION} {name}: is no module's name that can be found ({error}); give it as in Python's import."
        ) from error
    if found is None:
        raise UserError(
            f"{OPTION} {name}: there is no such module in {os.getcwd()} or where Python looks; give its "
            "name without '.py'."
        )
    importlib.import_module(name)
    _named.append(name)


def named() -> tuple[str, ...]:
    """What the user named so far, for processes that are started from this one."""
    return tuple(_named)


def foremost(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments with what is to be imported first, wherever the user put it."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for each in left:
        if each == "--":
            rest += [each, *left]
        elif each == OPTION:
            first += [each, *[value for value in [next(left, None)] if value is not None]]
        elif each.startswith(f"{OPTION}="):
            first.append(each)
        else:
            rest.append(each)
    return [*first, *rest]
