"""A value has one text: what Python refuses to make, a file's description and a recipe refuse
alike, and what one writes the others read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import annotated_types as at
import pytest
from pydantic import TypeAdapter, ValidationError

from fewstep.denoisers.average import Decay
from fewstep.denoisers.inputs import Inputs
from fewstep.denoisers.threshold import StaticThreshold, StraightThrough, Threshold
from fewstep.errors import UserError
from fewstep.objectives import DenoisingWeight, Distance, Divergence, MatchingWeight
from fewstep.prediction import Prediction
from fewstep.recipes.config.section import Kinds, saved
from fewstep.schedule import DiscreteVP, KarrasVE, Schedule
from fewstep.targets import Recording, SwitchEvery, Switching
from fewstep.times import Grid, LogNormalTimes, TimeDistribution
from fewstep.training import SGD, Adam, Optimizer
from fewstep.values import Value, hints_of, kind_of

FAMILIES: list[type[Value]] = [
    *(Schedule, Prediction, Inputs, Threshold, Grid, TimeDistribution, DenoisingWeight, MatchingWeight, Divergence),
    *(Distance, Decay, Optimizer, Recording, Switching),
]
NEEDED: dict[str, dict[str, Any]] = {
    "RecordEvery": {"steps": 3},
    "SwitchEvery": {"steps": (3, 4)},
    "TimestepsGrid": {"at": (999, 499)},
    "StraightThrough": {"of": StaticThreshold(2.0)},
}
"""What a class has no default for."""
CLASSES = [(family, cls) for family in FAMILIES for cls in family.family().values()]
every_class = pytest.mark.parametrize(("family", "cls"), CLASSES, ids=[cls.__name__ for _, cls in CLASSES])


def read_by_a_recipe(family: type[Value], values: dict[str, Any]) -> Value:
    made: Value = TypeAdapter(Annotated[family, Kinds()]).validate_python(json.loads(json.dumps(values)))
    return made


def bounds(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Annotated:
        for mark in get_args(hint)[1:]:
            yield from mark if isinstance(mark, at.GroupedMetadata) else (mark,)
        yield from bounds(get_args(hint)[0])
    elif get_origin(hint) is not None and type(None) in get_args(hint):
        for part in get_args(hint):
            yield from bounds(part)


def beyond(hint: Any) -> Iterator[Any]:
    """Values that are just outside each bound of a field, and what no number is."""
    for bound in bounds(hint):
        if isinstance(bound, at.Gt):
            yield bound.gt
        elif isinstance(bound, at.Ge):
            yield bound.ge - 1
        elif isinstance(bound, at.Lt):
            yield bound.lt
        elif isinstance(bound, at.Le):
            yield bound.le + 1
    if any(isinstance(bound, (at.Gt, at.Ge, at.Lt, at.Le)) for bound in bounds(hint)):
        yield from (math.nan, "1", True)


@every_class
def test_what_is_described_is_rebuilt_by_a_file_and_by_a_recipe(family: type[Value], cls: type[Value]) -> None:
    value = cls(**NEEDED.get(cls.__name__, {}))
    described = json.loads(json.dumps(value.describe()))
    assert next(iter(described)) in ("kind", "lr")
    assert described["kind"] == kind_of(cls)
    assert family.from_description(described) == value
    # No recipe names the one that is around another.
    if cls is not StraightThrough:
        assert read_by_a_recipe(family, json.loads(json.dumps(saved(value)))) == value


@every_class
def test_a_field_out_of_bounds_is_refused_by_python_by_a_file_and_by_a_recipe(
    family: type[Value], cls: type[Value]
) -> None:
    needed = NEEDED.get(cls.__name__, {})
    described = {name: value for name, value in cls(**needed).describe().items() if value is not None}
    for name, hint in hints_of(cls).items():
        for wrong in beyond(hint):
            with pytest.raises(UserError, match=f"'{name}' is"):
                cls(**{**needed, name: wrong})
            with pytest.raises(UserError, match=f"'{name}' is"):
                family.from_description({**described, name: wrong})
            with pytest.raises(ValidationError):
                read_by_a_recipe(family, {**described, name: wrong})


@every_class
def test_an_unknown_field_or_kind_is_refused(family: type[Value], cls: type[Value]) -> None:
    described = cls(**NEEDED.get(cls.__name__, {})).describe()
    with pytest.raises(UserError, match="unknown field 'no_such'"):
        family.from_description({**described, "no_such": 1})
    with pytest.raises(UserError, match=r"unknown kind 'no-such'; it must be one of "):
        family.from_description({"kind": "no-such"})
    with pytest.raises(ValidationError):
        read_by_a_recipe(family, {**described, "no_such": 1})


def test_the_law_has_cases() -> None:
    """A walk that finds no bound would refuse nothing."""
    fields = [(cls, name) for _, cls in CLASSES for name, hint in hints_of(cls).items() if list(beyond(hint))]
    assert len(CLASSES) >= 40
    assert len(fields) >= 30
    assert {(KarrasVE, "sigma_max"), (DiscreteVP, "steps"), (Adam, "lr"), (SGD, "clip")} <= set(fields)


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="'sigma_min' must be below 'sigma_max'"):
        KarrasVE(2.0, 1.0)
    with pytest.raises(ValidationError, match="'sigma_min' must be below 'sigma_max'"):
        read_by_a_recipe(Schedule, {"kind": "karras-ve", "sigma_min": 2.0, "sigma_max": 1.0})


def test_a_list_is_a_tuple_wherever_it_came_from() -> None:
    made = SwitchEvery([3, 4])  # type: ignore[arg-type]
    assert made == Switching.from_description({"kind": "every", "steps": [3, 4]})
    assert made == read_by_a_recipe(Switching, {"kind": "every", "steps": [3, 4]})
    assert made.steps == (3, 4)
    with pytest.raises(UserError, match="'steps' is"):
        SwitchEvery(())


def test_a_class_that_is_defined_anywhere_joins_its_family() -> None:
    @dataclasses.dataclass(frozen=True)
    class Always(TimeDistribution):
        kind: str = dataclasses.field(default="tests-always", kw_only=True)

        def quantile(self, schedule: Schedule, u: Any) -> Any:
            return u * 0 + schedule.t_max

    assert isinstance(read_by_a_recipe(TimeDistribution, {"kind": "tests-always"}), Always)
    assert LogNormalTimes in TimeDistribution.family().values()
