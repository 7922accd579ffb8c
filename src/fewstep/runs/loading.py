"""Runs as samplers: their students and their teachers, also with adapters added: a style on a
few-step student, a distilled adapter on another fine-tune of the same family, or both at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep.condition import Classes
from fewstep.data import Dataset
from fewstep.denoisers import Denoiser, Generator, NetworkDenoiser, TrajectoryDenoiser, freeze, load_model
from fewstep.denoisers.denoiser import Model
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.networks.precision import long_copy
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.device import DeviceName, resolve_device
from fewstep.recipes.building.frozen_teachers import codec_beside, open_around, open_teacher, with_prompts
from fewstep.recipes.building.parts import data_of
from fewstep.recipes.building.prompting import asked_of
from fewstep.runs.sampler import Sampler, StudentSampler, TeacherSampler
from fewstep.schedule import KarrasVE, Schedule
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior
from fewstep.system.ledger import print_sentence
from fewstep.zoo.adapter_files import AddedAdapter, add_adapters

Say = Callable[[str], None]
LARGEST = 1e6
"""Of the numbers in a student's file: levels of noise and bounds of samples."""


def load(
    run: Path | str,
    guidance: float | None = None,
    device: DeviceName = "auto",
    *,
    prompts: Sequence[str] | None = None,
    which: Which = "last",
) -> StudentSampler:
    """The student of a run (or of a ``student.safetensors``) as a sampler; ``guidance``: the scale
    for a student that was conditioned on one, its usual one unless given. ``which``: of the run,
    the last student or the best that it kept.

    ``prompts``: what the classes of a text-to-image student are, by number; those that the run was
    trained on unless given. It works on ``device``, a GPU where there is one unless told otherwise,
    wherever it was trained.
    """
    student = load_alone(run, device, which)
    if guidance is not None:
        student = student.guided(guidance)
    if not asked_of(student.model):
        if prompts is not None:
            raise UserError(f"{run}: this student is told no prompts; leave the prompts out.")
        return _of_classes(Path(run), student, device)
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(
            f"{run}: this student draws what prompts say, and the text encoder is its teacher's; give the folder of "
            "the run."
        )
    assert isinstance(student.model, Denoiser)
    recipe = RunFolder(folder).read_distill_recipe()
    around = open_around(recipe, prompts, resolve_device(device))
    return student.told(around.conditions(student.model), around.codec, recipe.evaluation.batch)


def load_beside(
    run: Path | str, teacher: TeacherSampler, device: DeviceName = "auto", which: Which = "last"
) -> StudentSampler:
    """The student of a run beside its teacher, as ``load_teacher`` or ``teacher_of`` gave it:
    prompts and codec are the teacher's, and nothing is opened anew. ``which`` as in ``load``.
    """
    student = load_alone(run, device, which)
    if asked_of(student.model) or teacher.codec is not None:
        return student.told(teacher.conditions, teacher.codec, teacher.batch)
    return student


def _of_classes(run: Path, student: StudentSampler, device: DeviceName) -> StudentSampler:
    """The same with the codec of its teacher, where its samples are latents and the run says where
    that is.
    """
    if not run.is_dir() or math.isfinite(student.low):
        return student
    recipe = RunFolder(run).read_distill_recipe()
    codec = codec_beside(recipe, resolve_device(device))
    return student if codec is None else student.told(student.prior.conditions, codec, recipe.evaluation.batch)


def load_alone(run: Path | str, device: DeviceName = "auto", which: Which = "last") -> StudentSampler:
    """The student of a run (or of a ``student.safetensors``) by what its file holds: a
    text-to-image student has neither prompts nor a codec, and draws nothing. ``which`` as in
    ``load``.
    """
    path = Path(run)
    if which == "best":
        if not path.is_dir():
            raise UserError(f"{run}: is no folder of a run, whose best student could be meant; leave --best out.")
        RunFolder(path).read_best()
    path = RunFolder(path).student_of(which) if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"{run}: has no student.safetensors; the run may not have ended, or is a pretraining: go on "
            "with 'fewstep distill ... --resume'."
        )
    model, extra = load_model(path)
    return sampled_as(path, freeze(model).to(resolve_device(device)), extra)


def sampled_as(path: Path, model: Denoiser | Generator, extra: Mapping[str, Any]) -> StudentSampler:
    """A few-step model, sampled as its file says at ``path``, whose values beside the weights are
    ``extra``.

    Raises ``UserError`` naming the file where it does not say so.
    """
    try:
        time, scale = (_number(extra["prior"][name], 0) for name in ("time", "scale"))
        low, high = _range(extra["range"])
        # A generator has no schedule; any serves for a prior of given scale.
        schedule: Schedule = KarrasVE() if isinstance(model, Generator) else model.schedule
        shape = model.latent_shape if isinstance(model, Generator) else model.shape
        start = Prior(schedule, shape, time, scale, Classes(model.classes))
        sampling = Sampling.from_description(extra["sampling"])
        if sampling.held and sampling.held[0] != time:
            raise ValueError(f"times from {sampling.held[0]}, and samples that start at {time}")
        if isinstance(model, Denoiser) and not schedule.t_min * (1 - 1e-9) <= time <= schedule.t_max * (1 + 1e-9):
            raise ValueError(f"a first time of {time}")
        if isinstance(model, Denoiser) and sampling.held and sampling.held[-1] < schedule.t_min * (1 - 1e-9):
            raise ValueError(f"a last time of {sampling.held[-1]}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: holds a model but not how to sample it ({error}); it is not a student's file."
        ) from error
    return StudentSampler(low, high, model, start, sampling)


def _range(said: Any) -> tuple[float, float]:
    """The range that a file says, None for samples that have no range, such as latents; raises
    ``ValueError`` for another.
    """
    if said is None:
        return -math.inf, math.inf
    low, high = map(_number, said)
    if not low < high:
        raise ValueError(f"a range from {low} to {high}")
    return low, high


def _number(value: Any, least: float = -LARGEST) -> float:
    """A value of a file that is a number; raises ``ValueError`` for another."""
    if type(value) not in (int, float) or not least <= value <= LARGEST:
        raise ValueError(f"{value!r:.80} where a number should be")
    return float(value)


def load_teacher(
    run: Path | str,
    guidance: float = 1.0,
    device: DeviceName = "auto",
    *,
    prompts: Sequence[str] | None = None,
) -> TeacherSampler:
    """The teacher of a run as a sampler, with classifier-free guidance for a scale other than 1;
    ``device`` and ``prompts`` as in ``load``.
    """
    recipe = with_prompts(RunFolder(Path(run)).read_distill_recipe(), prompts)
    return teacher_of(recipe, data_of(recipe.data), device).guided(guidance)


def teacher_of(recipe: DistillRecipe, data: Dataset | None, device: DeviceName = "auto") -> TeacherSampler:
    """A recipe's teacher as its evaluation samples it, not guided; ``data``: the recipe's."""
    opened = open_teacher(recipe, data, resolve_device(device))
    solver, space, batch = recipe.evaluation.solver, opened.space, recipe.evaluation.batch
    return TeacherSampler(
        space.low,
        space.high,
        opened.denoiser,
        solver.rule,
        solver.grid,
        opened.conditions,
        solver.churn,
        opened.codec,
        batch,
    )


def guided_samplers(
    teacher: TeacherSampler, student: StudentSampler, scales: Sequence[float]
) -> dict[str, dict[str, Sampler]]:
    """``{str(scale): {"teacher": ..., "student": ...}}`` of a teacher that is not guided, the
    student where it was conditioned on a scale; raises ``UserError`` for a negative scale, or a
    teacher without classes and prompts.
    """
    found: dict[str, dict[str, Sampler]] = {}
    for scale in scales:
        if not scale >= 0:
            raise UserError(f"--guidance: a guidance scale must be at least 0, got {scale}.")
        found[str(float(scale))] = {
            "teacher": teacher.guided(scale),
            **({} if student.sampling.guidance is None else {"student": student.guided(scale)}),
        }
    return found


def load_guided(
    run: Path | str, guidance: float | None = None, prompts: Sequence[str] | None = None, which: Which = "last"
) -> StudentSampler:
    """A run's student at a guidance scale; raises ``UserError`` where it was not conditioned on
    one, unless the scale is 1, which asks for nothing. ``prompts`` and ``which`` as in ``load``.
    """
    student = load(run, prompts=prompts, which=which)
    if guidance is None or (guidance == 1.0 and student.sampling.guidance is None):
        return student
    if student.sampling.guidance is None:
        raise UserError(
            "--guidance: only the teacher can be guided, since this student was not conditioned on a "
            "scale; add --teacher or leave it out."
        )
    return student.guided(guidance)


def adapters_said(texts: Sequence[str]) -> list[AddedAdapter]:
    """The adapters of a command line, each ``FILE`` or ``FILE:WEIGHT``.

    Raises ``UserError`` for a weight that is not finite, and for one file said twice.
    """
    found: list[AddedAdapter] = []
    for text in texts:
        name, colon, end = text.rpartition(":")
        weight = _weight(end) if colon else None
        if weight is not None and not math.isfinite(weight):
            raise UserError(f"--lora: '{text}' has the weight {weight}; give a finite number.")
        each = AddedAdapter(Path(text)) if weight is None else AddedAdapter(Path(name), weight)
        if any(each.path == other.path for other in found):
            raise UserError(f"--lora: {each.path} is said twice; give it once, with the sum of the weights.")
        found.append(each)
    return found


def model_with(
    model: Model, adapters: Sequence[AddedAdapter], say: Say = print_sentence
) -> tuple[Model, list[Mapping[str, Any]]]:
    """A copy of a denoiser with the adapters added to its network's weights, and what each file
    says besides its weights, nothing of another program's. ``say`` is told how files were read.

    Raises ``UserError`` naming the file for one that does not fit.
    """
    copied = long_copy(model)
    inner = next((each for each in copied.modules() if isinstance(each, (NetworkDenoiser, TrajectoryDenoiser))), None)
    if inner is None:
        raise UserError("--lora: adapters are added to a denoiser's network, and this model is none; leave them out.")
    files = add_adapters(inner.network, adapters)
    for note in (note for file in files for note in file.notes):
        say(note)
    return copied, [file.extra for file in files]


def adapted_student(
    student: StudentSampler, adapters: Sequence[AddedAdapter], say: Say = print_sentence
) -> StudentSampler:
    """A student with adapters added; it is sampled as before."""
    return replace(student, model=model_with(student.model, adapters, say)[0])


def adapted_teacher(
    teacher: TeacherSampler, adapters: Sequence[AddedAdapter], say: Say = print_sentence
) -> TeacherSampler | StudentSampler:
    """A teacher, not guided, with adapters added: sampled as the first adapter says that was
    distilled, so that it is a few-step student; as before where none was.

    Raises ``UserError`` for two adapters that were distilled for other steps.
    """
    model, said = model_with(teacher.denoiser, adapters, say)
    distilled = [(each.path, extra) for each, extra in zip(adapters, said, strict=True) if "sampling" in extra]
    if not distilled:
        return replace(teacher, denoiser=model)
    first, extra = distilled[0]
    other = next((path for path, each in distilled if each["sampling"] != extra["sampling"]), None)
    if other is not None:
        raise UserError(f"--lora: {first} and {other} were distilled for other steps; give one of them.")
    student = sampled_as(first, model, extra)
    return student.told(teacher.conditions, teacher.codec, teacher.batch)


def _weight(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
