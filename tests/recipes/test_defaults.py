"""What a recipe leaves out is what the code leaves out: a default that a recipe's section and the
object that is made of it both have is the same.

Which section makes which object is read from the builders' own code, so that a pair that is added
is compared as well: wherever a call in ``fewstep.recipes`` passes ``section.key``, the parameter
that takes it and the key are a pair. Values and networks need no comparison: they are the sections.
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
from fewstep.recipes.config import Section

MODULES = [
    importlib.import_module(found.name) for found in pkgutil.walk_packages(fewstep.recipes.__path__, "fewstep.recipes.")
]


def below(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from below(each)


NEUTRAL = {
    ("Sampling", "steps"),
    ("Sampling", "jump"),
    ("ForwardDiffusion", "label_dropout"),
    ("Term", "weight"),
    ("HalfLife", "steps"),
    ("Solver", "rule"),
    ("Solver", "grid"),
    ("ConsistencyDistillation", "rule"),
    ("MakePairs", "device"),
}
"""Parts that many makers share, whose parameter left out means that the thing is not done: what a
method's own key usually is belongs to the method.
"""


SECTIONS: list[type[Section]] = sorted(
    set(below(Section)), key=lambda section: f"{section.__module__}.{section.__qualname__}"
)


def default_of(section: type[Section], key: str) -> Any:
    """None of the sections' defaults is an ellipsis, which here stands for none."""
    value = section.model_fields[key].get_default(call_default_factory=True)
    return ... if value is PydanticUndefined else tuple(value) if isinstance(value, list) else value


def defaults_of(made: Any) -> dict[str, Any]:
    parameters = inspect.signature(made).parameters.values()
    return {
        each.name: tuple(each.default) if isinstance(each.default, list) else each.default
        for each in parameters
        if each.default is not inspect.Parameter.empty and repr(each.default) != "<factory>"
    }


def passed(call: ast.Call, made: Any) -> dict[str, dict[str, str]]:
    """By the section in the code, the parameters that take one of its keys."""
    names = list(inspect.signature(made).parameters)
    given = [
        *zip(names, call.args, strict=False),
        *((keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg is not None),
    ]
    found: dict[str, dict[str, str]] = {}
    for parameter, value in given:
        if isinstance(value, ast.Attribute):
            found.setdefault(ast.unparse(value.value), {})[parameter] = value.attr
    return found


def pairs() -> Iterator[Any]:
    """(what is made, the parameters by key, the sections with all of these keys): one of them is
    the call's.
    """
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            made = getattr(module, node.func.id, None)
            if (
                not callable(made)
                or not getattr(made, "__module__", "").startswith("fewstep.")
                or (inspect.isclass(made) and issubclass(made, (Section, Exception)))
            ):
                continue
            for where, keys in passed(node, made).items():
                if where.rpartition(".")[2] == "data":
                    # A data set, which is no section.
                    continue
                known = defaults_of(made)
                keys = {
                    parameter: key
                    for parameter, key in keys.items()
                    if parameter in known and (made.__name__, parameter) not in NEUTRAL
                }
                sections = [section for section in SECTIONS if keys and set(keys.values()) <= set(section.model_fields)]
                if sections:
                    yield pytest.param(
                        made, keys, sections, id=f"{module.__name__.rpartition('.')[2]}: {node.func.id} of {where}"
                    )


PAIRS = list(pairs())


def differing(made: Any, keys: dict[str, str], section: type[Section]) -> dict[str, tuple[Any, Any]]:
    own = defaults_of(made)
    both = {parameter: (own[parameter], default_of(section, key)) for parameter, key in keys.items()}
    return {parameter: values for parameter, values in both.items() if values[1] is not ... and values[0] != values[1]}


def test_the_code_is_read():
    """The pairs that are known to be there: a walk that finds nothing would compare nothing."""
    made = {param.values[0].__name__ for param in PAIRS}
    assert made >= {"SoftConsistency", "Evaluator", "Settings"}


@pytest.mark.parametrize(("made", "keys", "sections"), PAIRS)
def test_a_section_and_what_is_made_of_it_have_the_same_defaults(made, keys, sections):
    found = {section.__name__: differing(made, keys, section) for section in sections}
    assert not all(found.values()), found
