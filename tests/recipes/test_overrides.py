"""``--set section.key=value`` of a section that a recipe leaves out or null keeps all else that the
section's default says: looked for in every section of every recipe that ships.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from fewstep.denoisers import HalfLife, PowerFunction
from fewstep.errors import UserError
from fewstep.recipes import load_recipe, shipped_names, shipped_text


def left_out(section: BaseModel, written: Any, before: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Each section below that the recipe's text does not write, by its dotted key; those inside
    such sections too.
    """
    for name in type(section).model_fields:
        value, text = getattr(section, name), written.get(name) if isinstance(written, dict) else None
        if isinstance(value, BaseModel):
            if text is None:
                yield f"{before}{name}", value
            yield from left_out(value, text, f"{before}{name}.")


@pytest.mark.parametrize("name", shipped_names())
def test_one_key_of_a_section_that_is_left_out_keeps_the_others(name):
    """Each key in turn is given the value that it has: nothing may change, and nothing be
    refused.
    """
    recipe = load_recipe(name)
    tried = 0
    for key, section in left_out(recipe, yaml.safe_load(shipped_text(name))):
        for inner, value in section.model_dump(mode="json").items():
            text = yaml.safe_dump(value, default_flow_style=True).removesuffix("..." + chr(10)).strip()
            assert load_recipe(name, [f"{key}.{inner}={text}"]) == recipe, f"{key}.{inner}"
            tried += 1
    assert tried > 0


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A recipe that says of its average nothing, and of its time distribution null."""
    values = yaml.safe_load(shipped_text("digits-diff-instruct"))
    del values["training"]["average"]
    values["method"]["times"] = None
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_union_keeps_its_kind(bare):
    recipe = load_recipe(bare, ["training.average.ramp=0", "method.times.mean=-1.0"])
    assert recipe.training.average == HalfLife(ramp=0)
    assert recipe.method.times.kind == "log-normal"
    assert recipe.method.times.mean == -1.0


def test_a_key_of_another_kind_is_unknown_there():
    with pytest.raises(UserError, match=r"unknown key 'states.collected'"):
        load_recipe("digits-diff-instruct", ["states.collected=0.5"])


@pytest.mark.parametrize(
    "settings",
    [
        ["training.average.std=0.05", "training.average.kind=power"],
        ["training.average.kind=power", "training.average.std=0.05"],
    ],
)
def test_a_kind_that_is_given_too_begins_from_its_own_defaults(settings, bare):
    assert load_recipe(bare, [*settings, "method.times.mean=0"]).training.average == PowerFunction(0.05)
