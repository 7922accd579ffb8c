"""Samplers with adapters added: a style on a few-step student, a distilled adapter on another
fine-tune of the same family, or both at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.denoisers import NetworkDenoiser, TrajectoryDenoiser
from fewstep.denoisers.denoiser import Model
from fewstep.denoisers.stored_adapter import adapter_in
from fewstep.errors import UserError
from fewstep.networks.precision import long_copy
from fewstep.runs.loading import sampled_as
from fewstep.runs.sampler import StudentSampler, TeacherSampler
from fewstep.zoo.adapters import read_adapter
from fewstep.zoo.lora import fused


@dataclass(frozen=True)
class AddedAdapter:
    """An adapter's file, or the folder of a run whose student is one, and how much of it is
    added: 1 for as much as it was trained with.
    """

    path: Path
    weight: float = 1.0


def adapters_said(texts: Sequence[str]) -> list[AddedAdapter]:
    """The adapters of a command line, each ``FILE`` or ``FILE:WEIGHT``.

    Raises ``UserError`` for a weight that is not finite, and for one file said twice.
    """
    found: list[AddedAdapter] = []
    for text in texts:
        name, colon, end = text.rpartition(":")
        weight = _number(end) if colon else None
        if weight is not None and not math.isfinite(weight):
            raise UserError(f"--lora: '{text}' has the weight {weight}; give a finite number.")
        each = AddedAdapter(Path(text)) if weight is None else AddedAdapter(Path(name), weight)
        if any(each.path == other.path for other in found):
            raise UserError(f"--lora: {each.path} is said twice; give it once, with the sum of the weights.")
        found.append(each)
    return found


def with_adapters(model: Model, adapters: Sequence[AddedAdapter]) -> tuple[Model, list[str], list[Mapping[str, Any]]]:
    """A copy of a denoiser with the adapters added to its network's weights; sentences on how their
    files were read; and what each file says besides its weights, nothing of another program's.

    Raises ``UserError`` naming the file for one that does not fit.
    """
    copied = long_copy(model)
    inner = next((each for each in copied.modules() if isinstance(each, (NetworkDenoiser, TrajectoryDenoiser))), None)
    if inner is None:
        raise UserError("--lora: adapters are added to a denoiser's network, and this model is none; leave them out.")
    notes: list[str] = []
    said: list[Mapping[str, Any]] = []
    for each in adapters:
        file = read_adapter(adapter_in(each.path), inner.network)
        notes += file.notes
        said.append(file.extra)
        inner.network = fused(inner.network, file.pairs, each.weight)
    return copied, notes, said


def adapted_student(
    student: StudentSampler, adapters: Sequence[AddedAdapter], notes: list[str] | None = None
) -> StudentSampler:
    """A student with adapters added; it is sampled as before."""
    model, said, _ = with_adapters(student.model, adapters)
    if notes is not None:
        notes += said
    return replace(student, model=model)


def adapted_teacher(
    teacher: TeacherSampler, adapters: Sequence[AddedAdapter], notes: list[str] | None = None
) -> TeacherSampler | StudentSampler:
    """A teacher, not guided, with adapters added: sampled as the first adapter says that was
    distilled, so that it is a few-step student; as before where none was.

    Raises ``UserError`` for two adapters that were distilled for other steps.
    """
    model, remarks, said = with_adapters(teacher.denoiser, adapters)
    if notes is not None:
        notes += remarks
    distilled = [(each.path, extra) for each, extra in zip(adapters, said, strict=True) if "sampling" in extra]
    if not distilled:
        return replace(teacher, denoiser=model)
    first, extra = distilled[0]
    other = next((path for path, each in distilled if each["sampling"] != extra["sampling"]), None)
    if other is not None:
        raise UserError(f"--lora: {first} and {other} were distilled for other steps; give one of them.")
    student = sampled_as(first, model, extra)
    return student.told(teacher.conditions, teacher.codec, teacher.batch)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
