"""What the matrix says goes together, runs; what it refuses, is refused in its words.

For every variant of every method the legal combinations of states, target, student and thresholds are covered in pairs: each two values of two axes that go together are in some run.
The runs are generated from the rule itself (``legality.check``), so that a 'yes' that does not run and a '-' that would are both found. The helpers serve the other tests of recipes.
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
from fewstep.random import Place
from fewstep.recipes import DistillRecipe
from fewstep.recipes.distillation import Distillation, build_distillation
from fewstep.recipes.legality import ROLES, STATES, check, columns, families, role_refusal, row, states_refusal, student_refusal, target_refusal
from fewstep.recipes.methods import Method
from fewstep.recipes.parts import build_settings
from fewstep.recipes.source import validate
from fewstep.runs.sampler import StudentSampler, labels_for
from fewstep.schedule import KarrasVE
from fewstep.training import Silent, Trainer

# Deleted when the process ends.
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []

OPTIMIZER = {"lr": 1e-3, "betas": [0.0, 0.99]}
LEARNED = {"kind": "learned", "optimizer": OPTIMIZER}
TEACHER_TRUNK = {"kind": "teacher-trunk", "optimizer": OPTIMIZER}
MATCHING = {"kind": "distribution-matching", "fake": LEARNED, "optimizer": OPTIMIZER}

VARIANTS: dict[str, dict[str, Any]] = {
    "knowledge": {"kind": "knowledge", "pairs": {"kind": "stored", "count": 8}, "solver_steps": 2},
    "knowledge on the fly": {"kind": "knowledge", "pairs": {"kind": "on-the-fly"}, "solver_steps": 2},
    "knowledge on the fly, 2 steps": {"kind": "knowledge", "pairs": {"kind": "on-the-fly"}, "solver_steps": 2, "steps": 2},
    "progressive": {"kind": "progressive", "start": 4, "steps": 2},
    "progressive, 2 parts": {"kind": "progressive", "start": 4, "steps": 2, "parts": 2},
    "progressive, converted": {"kind": "progressive", "start": 4, "steps": 2, "convert": "eps"},
    "rectified flow": {"kind": "rectified-flow", "pairs": 8, "solver_steps": 2, "flow_steps": 2},
    "rectified flow, no distillation": {"kind": "rectified-flow", "pairs": 8, "solver_steps": 2, "flow_steps": 2, "distil": 0.0, "reflows": 2, "steps": 3},
    "consistency": {"kind": "consistency", "points": 8, "rollout_steps": [2, 3]},
    "consistency, 2 intervals": {"kind": "consistency", "points": 8, "intervals": 2, "rollout_steps": [2]},
    "trajectory": {"kind": "trajectory", "points": 6},
    "trajectory, critic": {"kind": "trajectory", "points": 6, "adversarial": TEACHER_TRUNK, "adversarial_after": 1},
    "matching": MATCHING,
    "matching, random start": {**MATCHING, "fake": {**LEARNED, "start": "random"}},
    "matching, low rank": {**MATCHING, "fake": {"kind": "lora", "rank": 2, "optimizer": OPTIMIZER}},
    "matching, delta": {**MATCHING, "fake": {"kind": "delta"}, "weighting": {"kind": "sds"}},
    "matching, field": {**MATCHING, "fake": {"kind": "field", "samples": 4}},
    "matching, 2 steps": {**MATCHING, "steps": 2, "fake": {**LEARNED, "updates": 2}},
    "matching, field, 2 steps": {**MATCHING, "fake": {"kind": "field", "samples": 4}, "steps": 2},
    "matching, regression": {**MATCHING, "regression": {"pairs": 8, "steps": 2}},
    "matching, fake trunk": {**MATCHING, "adversarial": {"kind": "fake-trunk"}},
    "matching, fake trunk, 2 steps": {**MATCHING, "adversarial": {"kind": "fake-trunk", "r1": 0.1}, "steps": 2},
    "matching, teacher trunk": {**MATCHING, "adversarial": TEACHER_TRUNK},
    "matching, teacher trunk, delta": {**MATCHING, "fake": {"kind": "delta"}, "adversarial": TEACHER_TRUNK},
    "sid": {"kind": "sid", "fake": LEARNED},
    "sid, 2 steps": {"kind": "sid", "fake": LEARNED, "steps": 2},
    "adversarial diffusion": {"kind": "adversarial-diffusion", "steps": 2},
    "adversarial diffusion, 1 step": {"kind": "adversarial-diffusion", "steps": 1, "weighting": "sds"},
}
# Guidance needs classes, and classifier features need digits.
ON_DIGITS: dict[str, dict[str, Any]] = {
    "progressive, guided": {"kind": "progressive", "start": 4, "steps": 2, "guidance": {"low": 1.0, "high": 3.0}},
    "consistency, guided": {"kind": "consistency", "points": 4, "rollout_steps": [2], "guidance": {"low": 1.0, "high": 3.0}},
    "matching, classifier features": {**MATCHING, "adversarial": {"kind": "classifier-features", "optimizer": OPTIMIZER}},
    "trajectory, classifier features": {"kind": "trajectory", "points": 4, "adversarial": {"kind": "classifier-features", "optimizer": OPTIMIZER}},
    "matching, images": MATCHING,
    "sid, images": {"kind": "sid", "fake": LEARNED},
    "adversarial diffusion, classifier features": {"kind": "adversarial-diffusion", "steps": 2, "adversarial": {"kind": "classifier-features", "optimizer": OPTIMIZER}},
}

STATES_SETTINGS: dict[str, dict[str, Any]] = {"ddil": {"capacity": 16, "collect": 4}, "per-batch": {"data": 0.4, "teacher": 0.2, "student": 0.4}}
STUDENT_SETTINGS: dict[str, dict[str, Any]] = {
    "copy": {},
    "network": {"network": {"kind": "residual-mlp", "width": 8, "depth": 2}},
    "lora": {"rank": 2},
    "latent-mlp": {"width": 8, "depth": 1},
    "fastgan": {"latent": 4, "width": 4},
}
IMAGE_NETWORK = {"network": {"kind": "small-unet", "width": 8, "depth": 2, "embedding": 8}}
BACKTRACKED = {"kind": "backtracked", "nodes": 3, "record": {"kind": "every", "steps": 1}, "switch": {"kind": "every", "steps": 1}, "optimizer": OPTIMIZER}


@pytest.fixture(autouse=True)
def without_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs need not survive a power cut, which is most of what a short run costs."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@functools.cache
def teacher_file(digits: bool = False) -> Path:
    """A teacher with random weights, of two layers: what goes together does not depend on how good a teacher is, and the shipped ones take half a minute more."""
    torch.manual_seed(0)
    network = build({"kind": "small-unet", "width": 8, "depth": 1, "embedding": 8, "classes": 10} if digits else {"kind": "residual-mlp", "width": 8, "depth": 1, "classes": 0})
    assert isinstance(network, DenoisingNetwork)
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    sigma_data = 0.75 if digits else 2.3
    teacher = NetworkDenoiser(network, KarrasVE(0.01, 40.0), EDM(sigma_data), EDMInputs(sigma_data), (1, 8, 8) if digits else (2,), 10 if digits else 0)
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    save_model(Path(folder.name) / "teacher.safetensors", teacher)
    return Path(folder.name) / "teacher.safetensors"


def tiny(
    method: dict[str, Any], states: Any = "usual", target: Any = "fixed", student: Any = "copy", role: str | None = None, steps: int = 4, digits: bool = False, **others: Any
) -> DistillRecipe:
    """A recipe small enough for a test; each axis by its kind, or by a whole section; ``role``: whose estimates are clamped to half the data's range; ``others``: of the training."""
    data: dict[str, Any] = {"kind": "digits"} if digits else {"kind": "random-mixture", "samples": 16}
    students = {**STUDENT_SETTINGS, "network": IMAGE_NETWORK} if digits else STUDENT_SETTINGS
    values = {
        "task": "distill",
        "teacher": {"kind": "file", "path": str(teacher_file(digits))},
        "student": {"kind": student, **students[student]} if isinstance(student, str) else student,
        "method": {"optimizer": OPTIMIZER, **method},
        "target": (BACKTRACKED if target == "backtracked" else {"kind": target}) if isinstance(target, str) else target,
        "states": {"kind": states, **STATES_SETTINGS.get(states, {})} if isinstance(states, str) else states,
        "reflected": {"kind": "none"} if role is None else {"kind": "static", "bound": 0.5 if digits else 2.0, "on": [role]},
        "data": data,
        "training": {"steps": steps, "batch": 4, "log_every": 1, "checkpoint_every": 1000, "health_every": 1000, **others},
        "evaluation": {"features": {"kind": "digits-features"} if digits else {"kind": "fourier"}, "samples": 20, "draws": 1},
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


Combination = tuple[str, str, str, str | None]
"""(states, target, student, role)"""
AXES: tuple[tuple[str | None, ...], ...] = (("usual", *STATES), ("fixed", "backtracked"), tuple(families()), (None, *ROLES))


def method_of(values: dict[str, Any]) -> Method:
    """The method, by the way of a recipe."""
    return tiny(values).method


def refusal(method: Method, combination: Combination) -> str | None:
    """What the rule says to a combination."""
    states, target, student, role = combination
    try:
        check(method, student, target, states, () if role is None else (role,))
    except UserError as error:
        return str(error)
    return None


def covering(method: Method, size: int) -> list[Combination]:
    """Legal combinations, chosen greedily, in which every ``size`` values of as many axes occur that are in some legal combination."""

    def parts(combination: Combination) -> set[Any]:
        return set(combinations(enumerate(combination), size))

    legal = [combination for combination in product(*AXES) if refusal(method, combination) is None]
    left = {part for combination in legal for part in parts(combination)}
    chosen = []
    while left:
        best = max(legal, key=lambda combination: len(left & parts(combination)))
        chosen.append(best)
        left -= parts(best)
    return chosen


def _cases(variants: dict[str, dict[str, Any]], seen: list[Any] | None = None) -> Iterator[Any]:
    """In pairs for the first variant of its kind and traits, each value at least once for the others; with ``seen`` none is the first."""
    for name, values in variants.items():
        method = method_of(values)
        traits = (values["kind"], method.in_force)
        pairs = seen is not None and traits not in seen
        if seen is not None:
            seen.append(traits)
        for combination in covering(method, 2 if pairs else 1):
            # A generator makes points, or it makes images.
            if combination[2] != ("fastgan" if variants is VARIANTS else "latent-mlp"):
                yield pytest.param(values, combination, id=f"{name}: {', '.join(str(value) for value in combination)}")


def runs(values: dict[str, Any], combination: Combination, folder: Path, digits: bool = False) -> None:
    """At least three steps move the student, which stays finite and can be sampled; nothing frozen moves."""
    states, target, student, role = combination
    recipe = tiny(values, states, target, student, role, digits=digits)
    parts = build_distillation(recipe, folder)
    untrained, teacher = copy.deepcopy(parts.student.state_dict()), copy.deepcopy(parts.teacher.state_dict())
    assert fitted(recipe, parts, folder).progress.step >= 3
    moved = {name for name, value in parts.student.state_dict().items() if not torch.equal(value, untrained[name])}
    assert moved
    assert all((".low_rank." in name) == (student == "lora") for name in moved)
    assert all(torch.isfinite(value).all() for network in (parts.student, parts.average) for value in network.state_dict().values())
    assert all(torch.equal(value, teacher[name]) for name, value in parts.teacher.state_dict().items())
    sampler = sampler_of(parts)
    labels = labels_for(3, None, sampler.classes)
    samples = sampler.draw(Place(0, "test"), 3, labels, sampler.usual_steps)
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
    """All combinations of all axes. The sentence is that of one of the axes' own rules, and the first in their order."""
    values = {**VARIANTS, **ON_DIGITS}[name]
    method, refused = method_of(values), 0
    for combination in product(*AXES):
        states, target, student, role = combination
        rules = [target_refusal(method, target), states_refusal(method, states), student_refusal(method, student, states, [role] if role else [])]
        rules += [role_refusal(method, role)] if role else []
        sentences = [sentence for sentence in rules if sentence is not None]
        assert (refusal(method, combination) is None) == (not sentences)
        if sentences:
            refused += 1
            with pytest.raises(UserError) as caught:
                build_distillation(tiny(values, states, target, student, role), tmp_path)
            assert str(caught.value) == sentences[0]
    assert refused
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*VARIANTS, *ON_DIGITS])
def test_a_cell_of_the_matrix_is_what_the_choice_alone_is_told(name):
    """So that 'yes' is what the runs above cover: a cell is the refusal of a recipe that is usual but for its column."""
    method = method_of({**VARIANTS, **ON_DIGITS}[name])
    cells = row("any", method).cells
    assert tuple(cells) == columns()
    for column, cell in cells.items():
        axis, value = column.split()
        place = ("states", "target", "student", "reflected").index(axis)
        usual: list[Any] = ["usual", "fixed", "copy", None]
        usual[place] = value
        assert cell == refusal(method, (usual[0], usual[1], usual[2], usual[3]))
        assert (cell is None) == any(combination[place] == value for combination in covering(method, 1))
