"""Data and feature spaces that Python gives: objects of the caller's own, which a recipe can only
name.

A recipe says ``data: {kind: given, name: NAME}``. The name is one under which ``register_data``
knows the set, or the content's identity of a set that was handed to a call such as
``fewstep.distill``. A process that does not have the object is told in one sentence how to give it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fewstep.data import Dataset
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace

Make = TypeVar("Make", bound=Callable[[], Dataset])

_DATA: dict[str, Callable[[], Dataset]] = {}
_SPACES: dict[str, FeatureSpace] = {}


def register_data(name: str) -> Callable[[Make], Make]:
    """Enters a function that makes a data set under a name that recipes can say; the function is
    called when the set is used.
    """

    def enter(make: Make) -> Make:
        _DATA[name] = make
        return make

    return enter


def give_data(data: Dataset) -> str:
    """Keeps a data set for this process; returns the name by which recipes know it, the content's
    identity.
    """
    name = data.identity
    _DATA[name] = lambda: data
    return name


def give_features(space: FeatureSpace) -> str:
    """Keeps a feature space for this process; returns its name.

    Raises ``UserError`` for another space of the same name, with which figures would be confused.
    """
    if _SPACES.setdefault(space.name, space) is not space:
        raise UserError(
            f"features: another feature space was given as '{space.name}' already; give this one a name of its own."
        )
    return space.name


def give(data: Dataset | None, features: FeatureSpace | None) -> None:
    """Keeps what there is of both."""
    if data is not None:
        give_data(data)
    if features is not None:
        give_features(features)


def given_data(name: str) -> Dataset:
    """The data set of a name; raises ``UserError`` where this process was not given it."""
    if name not in _DATA:
        known = f"of that name ({', '.join(sorted(_DATA))} are known)" if _DATA else "of that name"
        raise UserError(
            f"'data.name' is '{name}', and no data set {known} was given to this process: hand it over "
            "again (data=...), or import the module that registers it (--import MODULE)."
        )
    return _DATA[name]()


def given_features(name: str) -> FeatureSpace:
    """The feature space of a name; raises ``UserError`` where this process was not given it."""
    if name not in _SPACES:
        raise UserError(
            f"'evaluation.features.name' is '{name}', and no such feature space was given to this process: "
            "hand it over again (features=...)."
        )
    return _SPACES[name]
