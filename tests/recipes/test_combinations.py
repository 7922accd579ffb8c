"""What the matrix says goes together, runs; what it refuses, is refused in its words.

For every variant of every method the legal combinations of states, target, its guidance, student
and thresholds are covered in pairs: each two values of two axes that go together are in some run.
The runs are generated from the rule itself (``legality.check``), so that a 'yes' that does not run
and a '-' that would are both found. The helpers serve the other tests of recipes.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.denoisers import Denoiser, EDMInputs, Generator, NetworkDenoiser, save_model
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork, build
from fewstep.prediction import EDM
from fewstep.random import Key
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.config import Section
from fewstep.recipes.config.section import fields_of, is_section, saved
from fewstep.recipes.legality import (
    GUIDED,
    ROLES,
    STATES,
    check,
    columns,
    families,
    guidance_refusal,
    matrix_row,
    role_refusal,
    states_refusal,
    student_refusal,
    target_refusal,
)
from fewstep.recipes.methods import Method, _Methods
from fewstep.recipes.reading.overrides import chosen_section
from fewstep.recipes.reading.source import validate
from fewstep.runs.sampler import StudentSampler, labels_for
from fewstep.schedule import KarrasVE
from fewstep.training import Silent, Trainer
from fewstep.values import Costly

# Deleted when the process ends.
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []

OPTIMIZER = {"lr": 1e-3, "betas": [0.0, 0.99]}
LEARNED = {"kind": "learned", "optimizer": OPTIMIZER}
MATCHING = {"kind": "distribution-matching", "fake": LEARNED, "optimizer": OPTIMIZER}


def methods() -> dict[str, type[Method]]:
    """The methods by kind."""
    return dict(_Methods().options(Method))


def made(values: dict[str, Any], section: type[Any]) -> dict[str, Any]:
    """A method's settings at a test's size: counts as small as their marks say, one optimizer for
    all.
    """
    small: dict[str, Any] = {}
    for name, field in fields_of(section).items():
        costly = next((mark for mark in field.marks if isinstance(mark, Costly)), None)
        if name == "optimizer":
            small[name] = OPTIMIZER
        elif costly is not None and isinstance(field.default, int):
            small[name] = costly.most
        elif isinstance(values.get(name), dict) and (chosen := chosen_section(field, values[name])) is not None:
            small[name] = made(values[name], chosen)
        elif name not in values and is_section(field.default) and isinstance(field.default, Section):
            small[name] = {**saved(field.default), **made({}, type(field.default))}
    given = {name: value for name, value in values.items() if not (isinstance(value, dict) and name in small)}
    return {**small, **given}


def variants(on_digits: bool) -> dict[str, dict[str, Any]]:
    """The examples of all methods, by the kind and the example's name."""
    found = {}
    for kind, method in methods().items():
        for name, example in method.examples.items():
            if example.on_digits == on_digits:
                found[", ".join(filter(None, (kind, name)))] = made({"kind": kind, **example.settings}, method)
    return found


VARIANTS = variants(on_digits=False)
# Guidance needs classes, and classifier features need digits.
ON_DIGITS = variants(on_digits=True)

STATES_SETTINGS: dict[str, dict[str, Any]] = {
    "ddil": {"capacity": 16, "collect": 4},
    "per-batch": {"data": 0.4, "teacher": 0.2, "student": 0.4},
}
STUDENT_SETTINGS: dict[str, dict[str, Any]] = {
    "copy": {},
    "network": {"network": {"kind": "residual-mlp", "width": 8, "depth": 2}},
    "lora": {"rank": 2},
    "latent-mlp": {"width": 8, "depth": 1},
    "fastgan": {"latent": 4, "width": 4},
}
IMAGE_NETWORK = {"network": {"kind": "small-unet", "width": 8, "depth": 2, "embedding": 8}}
BACKTRACKED = {
    "kind": "backtracked",
    "nodes": 3,
    "record": {"kind": "every", "steps": 1},
    "switch": {"kind": "every", "steps": 1},
    "optimizer": OPTIMIZER,
}


@pytest.fixture(autouse=True)
def without_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs need not survive a power cut, which is most of what a short run costs."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@functools.cache
def teacher_file(digits: bool = False) -> Path:
    """A teacher with random weights, of two layers: what goes together does not depend on how good
    a teacher is, and the shipped ones take half a minute more.
    """
    torch.manual_seed(0)
    network = build(
        {"kind": "small-unet", "width": 8, "depth": 1, "embedding": 8, "classes": 10}
        if digits
        else {"kind": "residual-mlp", "width": 8, "depth": 1, "classes": 0}
    )
    assert isinstance(network, DenoisingNetwork)
    # Networks begin with zeros where they would depend on the time and the class.
    for weight in network.parameters():
        if weight.dim() > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    sigma_data = 0.75 if digits else 2.3
    teacher = NetworkDenoiser(
        network,
        KarrasVE(0.01, 40.0),
        EDM(sigma_data),
        EDMInputs(sigma_data),
        (1, 8, 8) if digits else (2,),
        10 if digits else 0,
    )
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    save_model(Path(folder.name) / "teacher.safetensors", teacher)
    return Path(folder.name) / "teacher.safetensors"


def tiny(
    method: dict[str, Any],
    states: Any = "usual",
    target: Any = "fixed",
    student: Any = "copy",
    role: str | None = None,
    guidance: str = "none",
    steps: int = 4,
    digits: bool = False,
    **others: Any,
) -> DistillRecipe:
    """A recipe small enough for a test; each axis by its kind, or by a whole section; ``role``:
    whose estimates are clamped to half the data's range; ``guidance``: of the target, at scale 2;
    ``others``: of the training.
    """
    data: dict[str, Any] = {"kind": "digits"} if digits else {"kind": "random-mixture", "samples": 16}
    students = {**STUDENT_SETTINGS, "network": IMAGE_NETWORK} if digits else STUDENT_SETTINGS
    section = (BACKTRACKED if target == "backtracked" else {"kind": target}) if isinstance(target, str) else target
    values = {
        "task": "distill",
        "teacher": {"kind": "file", "path": str(teacher_file(digits))},
        "student": {"kind": student, **students[student]} if isinstance(student, str) else student,
        "method": {"optimizer": OPTIMIZER, **method},
        "target": section if guidance == "none" else {**section, "guidance": {"kind": guidance, "scale": 2.0}},
        "states": {"kind": states, **STATES_SETTINGS.get(states, {})} if isinstance(states, str) else states,
        "reflected": {"kind": "none"}
        if role is None
        else {"kind": "static", "bound": 0.5 if digits else 2.0, "on": [role]},
        "data": data,
        "training": {
            "steps": steps,
            "batch": 4,
            "log_every": 1,
            "checkpoint_every": 1000,
            "health_every": 1000,
            **others,
        },
        "evaluation": {
            "features": {"kind": "digits-features"} if digits else {"kind": "fourier"},
            "samples": 20,
            "draws": 1,
        },
    }
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    return recipe


def fitted(recipe: DistillRecipe, parts: Distillation, folder: Path) -> Trainer:
    """The recipe's run, without measurements."""
    trainer = Trainer(folder, parts.stages, parts.average, build_settings(recipe.training), listeners=[Silent()])
    trainer.fit()
    return trainer


def sampler_of(parts: Distillation) -> StudentSampler:
    student = parts.average.average
    assert isinstance(student, (Denoiser, Generator))
    return StudentSampler(parts.data.low, parts.data.high, student, parts.prior, parts.sampling)


Combination = tuple[str, str, str, str | None, str]
"""(states, target, student, role, guidance)"""
AXES: tuple[tuple[str | None, ...], ...] = (
    ("usual", *STATES),
    ("fixed", "backtracked"),
    tuple(families()),
    (None, *ROLES),
    ("none", GUIDED),
)


PLACES = {"target guided": ("guidance", GUIDED)}
"""The axis and value of a column whose name does not say them."""


def method_of(values: dict[str, Any]) -> Method:
    """The method, by the way of a recipe."""
    return tiny(values).method


def refusal(method: Method, combination: Combination) -> str | None:
    """What the rule says to a combination."""
    states, target, student, role, guidance = combination
    try:
        check(method, student, target, states, () if role is None else (role,), guidance)
    except UserError as error:
        return str(error)
    return None


def covering(method: Method, size: int, classes: bool = True) -> list[Combination]:
    """Legal combinations, chosen greedily, in which every ``size`` values of as many axes occur
    that are in some legal combination; without ``classes`` nothing is guided.
    """

    def parts(combination: Combination) -> set[Any]:
        return set(combinations(enumerate(combination), size))

    legal = [
        combination
        for combination in product(*AXES)
        if refusal(method, combination) is None and (classes or combination[4] == "none")
    ]
    left = {part for combination in legal for part in parts(combination)}
    chosen = []
    while left:
        best = max(legal, key=lambda combination: len(left & parts(combination)))
        chosen.append(best)
        left -= parts(best)
    return chosen


def _cases(variants: dict[str, dict[str, Any]], seen: list[Any] | None = None) -> Iterator[Any]:
    """In pairs for the first variant of its kind and traits, each value at least once for the
    others; with ``seen`` none is the first.
    """
    for name, values in variants.items():
        method = method_of(values)
        traits = (values["kind"], method.effective_traits)
        pairs = seen is not None and traits not in seen
        if seen is not None:
            seen.append(traits)
        for combination in covering(method, 2 if pairs else 1, classes=variants is not VARIANTS):
            # A generator makes points, or it makes images.
            if combination[2] != ("fastgan" if variants is VARIANTS else "latent-mlp"):
                yield pytest.param(values, combination, id=f"{name}: {', '.join(str(value) for value in combination)}")


def runs(values: dict[str, Any], combination: Combination, folder: Path, digits: bool = False) -> None:
    """At least three steps move the student, which stays finite and can be sampled; nothing frozen
    moves.
    """
    states, target, student, role, guidance = combination
    recipe = tiny(values, states, target, student, role, guidance, digits=digits)
    parts = build_distillation(recipe, folder)
    untrained, teacher = copy.deepcopy(parts.student.state_dict()), copy.deepcopy(parts.teacher.state_dict())
    assert fitted(recipe, parts, folder).progress.step >= 3
    moved = {name for name, value in parts.student.state_dict().items() if not torch.equal(value, untrained[name])}
    assert moved
    assert all((".lora_" in name) == (student == "lora") for name in moved)
    assert all(
        torch.isfinite(value).all()
        for network in (parts.student, parts.average)
        for value in network.state_dict().values()
    )
    assert all(torch.equal(value, teacher[name]) for name, value in parts.teacher.state_dict().items())
    sampler = sampler_of(parts)
    labels = labels_for(3, None, sampler.classes)
    samples = sampler.draw(Key(0, "test"), 3, labels, sampler.usual_steps)
    assert samples.shape == (3, *parts.data.shape)
    assert torch.isfinite(samples).all()


@pytest.mark.parametrize(("values", "combination"), _cases(VARIANTS, []))
def test_what_goes_together_runs(values, combination, tmp_path):
    runs(values, combination, tmp_path)


@pytest.mark.parametrize(("values", "combination"), _cases(ON_DIGITS))
def test_what_goes_together_on_digits_runs(values, combination, tmp_path):
    runs(values, combination, tmp_path, digits=True)


@pytest.mark.parametrize("name", [*VARIANTS, *ON_DIGITS])
def test_what_does_not_go_together_is_refused_in_the_rules_words_before_anything_is_written(name, tmp_path):
    """All combinations of all axes.

    The sentence is that of one of the axes' own rules, and the first in their order.
    """
    values = {**VARIANTS, **ON_DIGITS}[name]
    method, refused = method_of(values), 0
    for combination in product(*AXES):
        states, target, student, role, guidance = combination
        rules = [
            target_refusal(method, target),
            guidance_refusal(method, guidance),
            states_refusal(method, states),
            student_refusal(method, student, states, [role] if role else []),
        ]
        rules += [role_refusal(method, role)] if role else []
        sentences = [sentence for sentence in rules if sentence is not None]
        assert (refusal(method, combination) is None) == (not sentences)
        if sentences:
            refused += 1
            with pytest.raises(UserError) as caught:
                build_distillation(tiny(values, states, target, student, role, guidance), tmp_path)
            assert str(caught.value) == sentences[0]
    assert refused
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*VARIANTS, *ON_DIGITS])
def test_a_cell_of_the_matrix_is_what_the_choice_alone_is_told(name):
    """So that 'yes' is what the runs above cover: a cell is the refusal of a recipe that is usual
    but for its column.
    """
    method = method_of({**VARIANTS, **ON_DIGITS}[name])
    cells = matrix_row("any", method).cells
    assert tuple(cells) == columns()
    for column, cell in cells.items():
        axis, value = PLACES.get(column, tuple(column.split()))
        key = ("states", "target", "student", "reflected", "guidance").index(axis)
        usual: list[Any] = ["usual", "fixed", "copy", None, "none"]
        usual[key] = value
        assert cell == refusal(method, (usual[0], usual[1], usual[2], usual[3], usual[4]))
        assert (cell is None) == any(combination[key] == value for combination in covering(method, 1))
