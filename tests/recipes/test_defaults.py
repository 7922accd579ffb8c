"""What a recipe leaves out is what the code leaves out: a default that a recipe's section and the object that is made of it both have is the same.

Which section makes which object is read from the builders' own code, so that a pair that is added is compared as well: wherever a call in ``fewstep.recipes`` passes ``section.key``, the
parameter that takes it and the key are a pair. Networks, schedules and predictions are made of whole sections, by their kind.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

import fewstep.recipes
from fewstep.networks.build import KINDS
from fewstep.recipes.config import Section
from fewstep.schedule import KarrasVE, Schedule, schedule_from

MODULES = [importlib.import_module(found.name) for found in pkgutil.walk_packages(fewstep.recipes.__path__, "fewstep.recipes.")]


def below(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from below(each)


NEUTRAL = {("Sampling", "steps"), ("ForwardDiffusion", "label_dropout"), ("Term", "weight")}
"""Parts that many makers share, whose parameter left out means that the thing is not done: what a method's own key usually is belongs to the method."""


SECTIONS: list[type[Section]] = sorted(set(below(Section)), key=lambda section: f"{section.__module__}.{section.__qualname__}")


def default_of(section: type[Section], key: str) -> Any:
    """None of the sections' defaults is an ellipsis, which here stands for none."""
    value = section.model_fields[key].get_default(call_default_factory=True)
    return ... if value is PydanticUndefined else tuple(value) if isinstance(value, list) else value


def defaults_of(made: Any) -> dict[str, Any]:
    parameters = inspect.signature(made).parameters.values()
    return {each.name: tuple(each.default) if isinstance(each.default, list) else each.default for each in parameters if each.default is not inspect.Parameter.empty}


def passed(call: ast.Call, made: Any) -> dict[str, dict[str, str]]:
    """By the section in the code, the parameters that take one of its keys."""
    names = list(inspect.signature(made).parameters)
    given = [*zip(names, call.args, strict=False), *((keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg is not None)]
    found: dict[str, dict[str, str]] = {}
    for parameter, value in given:
        if isinstance(value, ast.Attribute):
            found.setdefault(ast.unparse(value.value), {})[parameter] = value.attr
    return found


def pairs() -> Iterator[Any]:
    """(what is made, the parameters by key, the sections with all of these keys): one of them is the call's."""
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            made = getattr(module, node.func.id, None)
            if not callable(made) or not getattr(made, "__module__", "").startswith("fewstep.") or (inspect.isclass(made) and issubclass(made, (Section, Exception))):
                continue
            for where, keys in passed(node, made).items():
                if where.rpartition(".")[2] == "data":
                    # A data set, which is no section.
                    continue
                known = defaults_of(made)
                keys = {parameter: key for parameter, key in keys.items() if parameter in known and (made.__name__, parameter) not in NEUTRAL}
                sections = [section for section in SECTIONS if keys and set(keys.values()) <= set(section.model_fields)]
                if sections:
                    yield pytest.param(made, keys, sections, id=f"{module.__name__.rpartition('.')[2]}: {node.func.id} of {where}")


PAIRS = list(pairs())


def differing(made: Any, keys: dict[str, str], section: type[Section]) -> dict[str, tuple[Any, Any]]:
    own = defaults_of(made)
    both = {parameter: (own[parameter], default_of(section, key)) for parameter, key in keys.items()}
    return {parameter: values for parameter, values in both.items() if values[1] is not ... and values[0] != values[1]}


def test_the_code_is_read():
    """The pairs that are known to be there: a walk that finds nothing would compare nothing."""
    made = {param.values[0].__name__ for param in PAIRS}
    assert made >= {"ByDistance", "Plateau", "Adam", "HalfLife", "LogNormalTimes", "RhoTimes", "Phase", "SoftConsistency", "Evaluator", "Settings"}


@pytest.mark.parametrize(("made", "keys", "sections"), PAIRS)
def test_a_section_and_what_is_made_of_it_have_the_same_defaults(made, keys, sections):
    found = {section.__name__: differing(made, keys, section) for section in sections}
    assert not all(found.values()), found


def kinds() -> Iterator[Any]:
    for section in SECTIONS:
        field = section.model_fields.get("kind")
        options = getattr(field.annotation, "__args__", ()) if field is not None else ()
        for kind in options:
            if kind in KINDS:
                yield pytest.param(section, KINDS[kind], id=f"{section.__name__}: {kind}")
            elif section.__module__.endswith("config.models") and "Schedule" in section.__name__:
                yield pytest.param(section, type(schedule_from({"kind": kind})), id=f"{section.__name__}: {kind}")


def test_networks_and_schedules_are_found():
    made = {param.values[1] for param in kinds()}
    assert {KarrasVE, KINDS["small-unet"], KINDS["residual-mlp"], KINDS["fastgan"], KINDS["song-unet"], KINDS["image-critic"]} <= made
    assert sum(issubclass(each, Schedule) for each in made) == 3


@pytest.mark.parametrize(("section", "made"), kinds())
def test_a_section_and_the_object_of_its_kind_have_the_same_defaults(section, made):
    own = defaults_of(made)
    both = {key: (own[key], default_of(section, key)) for key in section.model_fields if key in own}
    assert not {key: values for key, values in both.items() if values[1] is not ... and values[0] != values[1]}
