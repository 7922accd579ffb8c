"""Samplers: a number of samples in, a tensor of samples out."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.data import SampleSpace
from fewstep.denoisers import Denoiser, Generator, Guided, device_of
from fewstep.errors import UserError
from fewstep.networks import Codec
from fewstep.random import Key
from fewstep.recipes.building.frozen_teachers import pictures_of
from fewstep.recipes.config import TEACHER_STEPS
from fewstep.schedule import Schedule
from fewstep.solvers import NO_CHURN, Churn, Rule, solve_with_churn
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior
from fewstep.times import Grid
from fewstep.training.dealing import deal

BATCH = 500


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

    def in_parts(
        self, n: int, seed: int = 0, classes: int | Tensor | None = None, steps: int | None = None
    ) -> Iterator[Tensor]:
        """The samples of the call, bit for bit, ``together`` of them at a time."""
        labels, steps = labels_for(n, classes, self.classes), self.usual_steps if steps is None else steps
        for first in range(0, n, self.together):
            rows = min(self.together, n - first)
            part = None if labels is None else labels[first : first + rows]
            yield self.draw(Key(seed, "sample"), rows, part, steps, first).clamp(self.low, self.high)

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

    def guided(self, scale: float) -> StudentSampler:
        """The same at another guidance scale.

        Raises ``UserError`` where it was not conditioned on one.
        """
        if self.sampling.guidance is None:
            raise UserError("guidance: this student was not conditioned on a guidance scale; leave it out.")
        return replace(self, sampling=replace(self.sampling, guidance=scale))

    def told(self, conditions: Conditions, codec: Codec | None, batch: int) -> StudentSampler:
        """The same with what it draws, with what makes pictures of its samples, and with as many of
        them made at a time as ``batch``.
        """
        return replace(self, prior=replace(self.prior, conditions=conditions), codec=codec, batch=batch)

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
