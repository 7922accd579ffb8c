"""Samplers: a number of samples in, a tensor of samples out."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import Classes, Conditions
from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import Denoiser, Generator, Guided, device_of, freeze, load_model
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.networks import Codec
from fewstep.random import Key
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.device import DeviceName, resolve_device
from fewstep.recipes.building.frozen_teachers import open_around, open_teacher, pictures_of, with_prompts
from fewstep.recipes.building.parts import data_of
from fewstep.recipes.building.prompting import asked_of
from fewstep.recipes.config import TEACHER_STEPS
from fewstep.schedule import KarrasVE, Schedule
from fewstep.solvers import NO_CHURN, Churn, Rule, solve_with_churn
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior
from fewstep.times import Grid
from fewstep.training.dealing import deal

BATCH = 500
LARGEST = 1e6
"""Of the numbers in a student's file: levels of noise and bounds of samples."""


@dataclass(frozen=True, eq=False)
class Sampler(abc.ABC):
    """Called as ``sampler(n, seed=0, classes=None, steps=None) -> (n, *shape)`` in the data's range
    [``low``, ``high``]. Several processes share the work, and each gets all samples.

    ``classes``: an int for all, ids (n,), or None for classes in turn (0, 1, 2, ...). ``steps``:
    ``usual_steps`` unless given. Sample i of a seed is the same whatever n is.
    """

    low: float
    high: float

    def __call__(self, n: int, seed: int = 0, classes: int | Tensor | None = None, steps: int | None = None) -> Tensor:
        labels = labels_for(n, classes, self.classes)
        return self.draw(Key(seed, "sample"), n, labels, self.usual_steps if steps is None else steps).clamp(
            self.low, self.high
        )

    @property
    def pictured(self) -> Sampler:
        """What makes samples that can be looked at: the sampler, unless its samples are latents."""
        return self

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    @property
    def space(self) -> SampleSpace:
        """What its samples look like."""
        return SampleSpace(self.shape, self.low, self.high, self.classes)

    @property
    @abc.abstractmethod
    def owner(self) -> Conditions:
        """The conditions that it knows, by number."""

    @property
    def classes(self) -> int:
        """How many conditions it knows, classes or prompts; 0 for none."""
        return self.owner.count

    @property
    def together(self) -> int:
        """How many samples are made at a time."""
        return BATCH

    @property
    @abc.abstractmethod
    def usual_steps(self) -> int:
        """The steps taken unless told otherwise."""

    @abc.abstractmethod
    def draw(self, key: Key, n: int, labels: Tensor | None, steps: int, start: int = 0) -> Tensor:
        """Samples (n, *shape) of a place, made where the model is and given on the CPU, without
        gradient, not clamped; labels (n,) or None.

        They are the samples [start, start + n) of that place, whatever else is drawn: to rounding,
        and bit for bit where all parts begin at multiples of ``BATCH``.
        """


@dataclass(frozen=True, eq=False)
class StudentSampler(Sampler):
    """As many steps as it was trained for unless told otherwise, by the jump it was trained for
    (see ``Sampling``).
    """

    model: Denoiser | Generator
    prior: Prior
    sampling: Sampling = field(default_factory=Sampling)
    codec: Codec | None = None
    batch: int = BATCH

    @property
    def pictured(self) -> Sampler:
        return self if self.codec is None else Decoded(-1.0, 1.0, self, self.codec)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.model.shape

    @property
    def owner(self) -> Conditions:
        return self.prior.conditions

    @property
    def together(self) -> int:
        return self.batch

    @property
    def usual_steps(self) -> int:
        return self.sampling.steps

    @property
    def schedule(self) -> Schedule:
        """The student's forward process; any serves for a generator, which has none."""
        return self.model.schedule if isinstance(self.model, Denoiser) else self.prior.schedule

    @torch.no_grad()
    def draw(self, key: Key, n: int, labels: Tensor | None, steps: int, start: int = 0) -> Tensor:
        times = self._times(steps)

        def block(first: int) -> Tensor:
            rows = min(self.batch, n - first)
            part = None if labels is None else labels[first : first + rows]
            state = self.prior.at(key, "prior", rows, part, start + first).to(device_of(self.model))
            begin = state.x, self.sampling.condition(state.condition, state.x)
            return self.sampling.sample(self.model, key, start + first, begin, self.schedule, times).cpu()

        return torch.cat(deal(range(0, n, self.batch), block))

    def _times(self, steps: int) -> Tensor:
        if steps < 1:
            raise UserError(f"the number of steps must be at least 1, got {steps}.")
        if steps > 1 and isinstance(self.model, Generator):
            raise UserError("this student is a generator on latents, which makes samples in 1 step only.")
        return self.sampling.times(self.schedule, self.prior.time, steps)


@dataclass(frozen=True, eq=False)
class TeacherSampler(Sampler):
    """``steps`` steps (35 unless told otherwise) of the solver rule on the grid, from t_max, with
    the noise that ``churn`` adds at so many steps.
    """

    denoiser: Denoiser
    rule: Rule
    grid: Grid
    conditions: Conditions
    churn: Churn = NO_CHURN
    codec: Codec | None = None
    batch: int = BATCH

    @property
    def pictured(self) -> Sampler:
        return self if self.codec is None else Decoded(-1.0, 1.0, self, self.codec)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    @property
    def owner(self) -> Conditions:
        return self.conditions

    @property
    def together(self) -> int:
        return self.batch

    @property
    def usual_steps(self) -> int:
        return TEACHER_STEPS

    def guided(self, scale: float | None) -> TeacherSampler:
        """The same with classifier-free guidance, away from the unconditional condition of its
        owner; None and 1 guide nothing.

        Raises ``UserError`` where there are no conditions.
        """
        if scale is None or scale == 1.0:
            return self
        if not self.conditions.count:
            raise UserError("guidance needs a teacher with classes or prompts; this one has none.")
        return replace(self, denoiser=Guided(self.denoiser, scale, self.conditions))

    @torch.no_grad()
    def draw(self, key: Key, n: int, labels: Tensor | None, steps: int, start: int = 0) -> Tensor:
        schedule, device = self.denoiser.schedule, device_of(self.denoiser)
        times, churn = self.grid.times(schedule, steps), self.churn.at(steps)

        def block(first: int) -> Tensor:
            rows = min(self.batch, n - first)
            noise = key.normal("prior", (rows, *self.denoiser.shape), start + first).to(device)
            part = None if labels is None else labels[first : first + rows]
            condition = self.conditions.of(part).to(device)
            return solve_with_churn(
                self.rule, churn, self.denoiser, schedule.prior_scale * noise, times, key, start + first, condition
            ).cpu()

        return torch.cat(deal(range(0, n, self.batch), block))


@dataclass(frozen=True, eq=False)
class Decoded(Sampler):
    """The pictures that a ``codec`` makes of another sampler's latents."""

    latents: Sampler
    codec: Codec

    @property
    def shape(self) -> tuple[int, ...]:
        return pictures_of(self.codec, self.latents.space).shape

    @property
    def owner(self) -> Conditions:
        return self.latents.owner

    @property
    def together(self) -> int:
        return self.latents.together

    @property
    def usual_steps(self) -> int:
        return self.latents.usual_steps

    @torch.no_grad()
    def draw(self, key: Key, n: int, labels: Tensor | None, steps: int, start: int = 0) -> Tensor:
        device = next(self.codec.parameters()).device
        # A row at a time comes to the device: pictures are many times as large as latents.
        latents = self.latents.draw(key, n, labels, steps, start).split(self.codec.rows)
        return torch.cat([self.codec.decode(part.to(device)).cpu() for part in latents])


def labels_for(n: int, classes: int | Tensor | None, known: int) -> Tensor | None:
    """Labels (n,) from what a sampler takes."""
    if n < 1:
        raise UserError(f"the number of samples must be at least 1, got {n}.")
    if known == 0:
        if classes is not None:
            raise UserError("this model knows no classes; leave the class out.")
        return None
    if classes is None:
        return torch.arange(n) % known
    if not isinstance(classes, int) and bool((classes != classes.long()).any()):
        raise UserError("classes must be whole numbers; a fraction names no class.")
    labels = torch.full((n,), classes) if isinstance(classes, int) else classes.long()
    if labels.shape != (n,) or int(labels.min()) < 0 or int(labels.max()) >= known:
        raise UserError(f"classes must be in [0, {known - 1}], one or {n} of them.")
    return labels


def load(
    run: Path | str,
    guidance: float | None = None,
    device: DeviceName = "auto",
    *,
    prompts: Sequence[str] | None = None,
) -> StudentSampler:
    """The student of a run (or of a ``student.safetensors``) as a sampler; ``guidance``: the scale
    for a student that was conditioned on one, its usual one unless given.

    ``prompts``: what the classes of a text-to-image student are, by number; those that the run was
    trained on unless given. It works on ``device``, a GPU where there is one unless told otherwise,
    wherever it was trained.
    """
    folder, path = Path(run), Path(run)
    path = RunFolder(path).student if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"{run}: has no student.safetensors; the run may not have ended, or is a pretraining: go on "
            "with 'fewstep distill ... --resume'."
        )
    model, extra = load_model(path)
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
    if guidance is not None:
        if sampling.guidance is None:
            raise UserError(f"{path}: this student was not conditioned on a guidance scale; leave the guidance out.")
        sampling = replace(sampling, guidance=guidance)
    student = StudentSampler(low, high, freeze(model).to(resolve_device(device)), start, sampling)
    if not asked_of(model):
        if prompts is not None:
            raise UserError(f"{run}: this student is told no prompts; leave the prompts out.")
        return student
    if not folder.is_dir():
        raise UserError(
            f"{path}: this student draws what prompts say, and the text encoder is its teacher's; give the folder of "
            "the run."
        )
    assert isinstance(model, Denoiser)
    around = open_around(RunFolder(folder).read_distill_recipe(), model, prompts, resolve_device(device))
    return replace(student, prior=replace(start, conditions=around.conditions), codec=around.codec, batch=around.batch)


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


def guided_samplers(run: Path, student: StudentSampler, scales: Sequence[float]) -> dict[str, dict[str, Sampler]]:
    """``{str(scale): {"teacher": ..., "student": ...}}``, the student where it was conditioned on a
    scale; raises ``UserError`` for a negative scale, or a teacher without classes.
    """
    found: dict[str, dict[str, Sampler]] = {}
    for scale in scales:
        if not scale >= 0:
            raise UserError(f"--guidance: a guidance scale must be at least 0, got {scale}.")
        found[str(float(scale))] = {
            "teacher": load_teacher(run, scale),
            **({} if student.sampling.guidance is None else {"student": load(run, scale)}),
        }
    return found


def load_guided(run: Path | str, guidance: float | None = None, prompts: Sequence[str] | None = None) -> StudentSampler:
    """A run's student at a guidance scale; raises ``UserError`` where it was not conditioned on
    one, unless the scale is 1, which asks for nothing. ``prompts`` as in ``load``.
    """
    student = load(run, prompts=prompts)
    if guidance is None or (guidance == 1.0 and student.sampling.guidance is None):
        return student
    if student.sampling.guidance is None:
        raise UserError(
            "--guidance: only the teacher can be guided, since this student was not conditioned on a "
            "scale; add --teacher or leave it out."
        )
    return load(run, guidance, prompts=prompts)
