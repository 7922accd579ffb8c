"""What a command is told to draw, and the picture of it: prompts below samples, a student below its
teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.data.prompts import read_prompts
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.random import Key
from fewstep.runs.loading import adapted_student, adapted_teacher, load_beside, load_guided, load_teacher
from fewstep.runs.pictures.sample_files import write_captioned, write_samples
from fewstep.runs.sampler import Sampler, TeacherSampler
from fewstep.zoo.adapter_files import AddedAdapter

USUAL = 80
"""Samples of a command that is given neither their number nor prompts."""


def prompts_said(prompts: Sequence[str], file: Path | None) -> list[str] | None:
    """The prompts of a command line, None for none.

    Raises ``UserError`` for both a prompt and a file, and for what ``read_prompts`` refuses.
    """
    if prompts and file is not None:
        raise UserError("--prompt and --prompts: give prompts themselves or a file of them, not both.")
    if not prompts and file is None:
        return None
    return list(read_prompts(list(prompts) if file is None else file).texts)


def pictured_by(
    run: Path,
    teacher: bool,
    compare: bool,
    guidance: float | None,
    prompts: Sequence[str] | None,
    adapters: Sequence[AddedAdapter] = (),
    which: Which = "last",
) -> Sampler:
    """What a command line asks to draw with: a run's student, ``which`` of its two, its
    ``teacher``, or (``compare``) the student below the teacher. The scale ``guidance`` guides the
    teacher (1 unless given), and is told to a student that was conditioned on scales. ``adapters``
    are added to the student, or to the teacher where that is asked for.

    Raises ``UserError`` for both ``teacher`` and ``compare``, for the best student beside
    ``teacher``, and for what loading refuses.
    """
    if which == "best" and teacher:
        raise UserError("--best and --teacher: the teacher has no best student; leave one of them out.")
    if compare and teacher:
        raise UserError("--compare and --teacher: --compare shows both; leave one of them out.")
    if compare and adapters:
        raise UserError("--compare and --lora: adapters are added to the student or to the teacher; leave one out.")
    scale = 1.0 if guidance is None else guidance
    if compare:
        return beside_teacher(run, scale, prompts, which)
    if not teacher:
        student = load_guided(run, guidance, prompts, which)
        return (adapted_student(student, adapters) if adapters else student).pictured
    if not adapters:
        return load_teacher(run, scale, prompts=prompts).pictured
    made = adapted_teacher(load_teacher(run, prompts=prompts), adapters)
    return (made.guided(guidance) if isinstance(made, TeacherSampler) else made).pictured


def drawn_for(
    sampler: Sampler, prompts: Sequence[str] | None, n: int | None, seed: int, class_id: int | None, steps: int | None
) -> tuple[Tensor, Tensor | None]:
    """Samples, and the number of each one's condition: ``n`` of each prompt that was given (one
    unless said), else ``n`` in all, of the classes in turn or all of ``class_id``.

    Raises ``UserError`` for a class beside prompts.
    """
    if prompts is not None:
        if class_id is not None:
            raise UserError("--class: this model draws what prompts say; leave the class out.")
        numbers = torch.arange(len(prompts)).repeat_interleave(1 if n is None else n)
        return sampler(len(numbers), seed, numbers, steps), numbers
    count = USUAL if n is None else n
    in_turn = torch.arange(count) % sampler.classes if sampler.classes and class_id is None else None
    return sampler(count, seed, class_id, steps), in_turn


@dataclass(frozen=True, eq=False)
class BesideTeacher(Sampler):
    """Pictures (C, 2 H + 1, W): the ``teacher``'s in ``teacher_steps`` above the ``student``'s from
    the same seed and condition, and a line between them.
    """

    student: Sampler
    teacher: Sampler
    teacher_steps: int

    @property
    def shape(self) -> tuple[int, ...]:
        channels, height, width = self.student.shape
        return channels, 2 * height + 1, width

    @property
    def owner(self) -> Conditions:
        return self.student.owner

    @property
    def usual_steps(self) -> int:
        return self.student.usual_steps

    def draw(self, key: Key, n: int, labels: Tensor | None, steps: int, start: int = 0) -> Tensor:
        above = self.teacher.draw(key, n, labels, self.teacher_steps, start)
        below = self.student.draw(key, n, labels, steps, start)
        return torch.cat([above, torch.full_like(above[:, :, :1], self.high), below], dim=2)


def beside_teacher(run: Path, guidance: float, prompts: Sequence[str] | None, which: Which = "last") -> Sampler:
    """A run's student below its teacher, guided by a scale, in the first of the steps at which the
    recipe measures it.

    Raises ``UserError`` for samples that are no pictures.
    """
    opened = load_teacher(run, guidance, prompts=prompts)
    student, teacher = load_beside(run, opened, which=which).pictured, opened.pictured
    if len(student.shape) != 3:
        raise UserError("--compare: sets pictures side by side, and these samples are points; leave it out.")
    measured = RunFolder(run).read_distill_recipe().evaluation.teacher_steps
    return BesideTeacher(student.low, student.high, student, teacher, measured[0] if measured else teacher.usual_steps)


def write_drawn(path: Path, samples: Tensor, numbers: Tensor | None, sampler: Sampler) -> None:
    """Writes samples as ``write_samples`` does, each with its prompt below it where its condition
    has one.
    """
    texts = sampler.owner.texts
    if not texts or numbers is None:
        write_samples(path, samples, sampler.low, sampler.high)
        return
    captions = [texts[number] for number in numbers.tolist()]
    write_captioned(path, samples, captions, sampler.low, sampler.high)
