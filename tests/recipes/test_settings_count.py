"""Every number among a method's settings makes another run: none is read and then left behind."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import ON_DIGITS, VARIANTS, fitted, methods, tiny, without_syncing

from fewstep.errors import UserError
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.config.section import fields_of

# A fixture.
__all__ = ["without_syncing"]

OF_JUMPS = (
    "consistency",
    "trajectory",
    "trajectory-consistency",
    "easy-consistency",
    "truncated-consistency",
    "continuous-consistency",
    "mean-flow",
    "align-your-flow",
    "knowledge",
    "rectified-flow",
)
SAMPLING_ALONE = {
    ("trajectory", "gamma"),
    ("trajectory-consistency", "gamma"),
    ("align-your-flow", "gamma"),
    *((kind, "steps") for kind in OF_JUMPS),
}
"""What says how samples are made and nothing of training."""
TIED = {("phased-consistency", "steps"): "phases", ("phased-consistency", "phases"): "steps"}
"""What must be said alike."""
BESIDE: dict[tuple[str, str], dict[str, Any]] = {("progressive", "growth"): {"start": 8}}
"""What a setting needs to count: several rounds."""


SETTINGS = [
    (kind, setting)
    for kind, method in methods().items()
    for setting, field in fields_of(method).items()
    if type(field.default) in (int, float) and (kind, setting) not in SAMPLING_ALONE
]


def _others(value: float) -> list[float]:
    tried = (value + 1, 2 * value, value - 1, 2) if isinstance(value, int) else (value / 2, value + 0.25, value + 0.5)
    return [other for other in tried if other != value]


def _trained(values: dict[str, Any], digits: bool, folder: Path) -> list[torch.Tensor] | None:
    """The student's weights; None where the settings are refused."""
    try:
        recipe = tiny(values, digits=digits, steps=12)
        parts = build_distillation(recipe, folder)
    except UserError:
        return None
    fitted(recipe, parts, folder)
    return [*parts.student.state_dict().values()]


@pytest.mark.parametrize(("kind", "setting"), SETTINGS)
def test_a_number_that_a_method_is_told_makes_another_run(kind: str, setting: str, tmp_path: Path) -> None:
    """In one variant of the method at least: some numbers count only beside others."""
    numbered, default = count(), fields_of(methods()[kind])[setting].default
    variants = [(values, digits) for digits, each in ((False, VARIANTS), (True, ON_DIGITS)) for values in each.values()]
    for variant, digits in variants:
        if variant["kind"] != kind:
            continue
        values = {**variant, **BESIDE.get((kind, setting), {})}
        before = _trained(values, digits, tmp_path / str(next(numbered)))
        for other in _others(values.get(setting, default)):
            changed = {**values, setting: other, TIED.get((kind, setting), setting): other}
            after = _trained(changed, digits, tmp_path / str(next(numbered)))
            if before is None or after is None:
                continue
            if len(after) != len(before) or any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
                return
    pytest.fail(f"'method.{setting}' changes no run of the kind '{kind}'")
