"""What a method's builder is given: the parts that every distillation has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from fewstep.condition import Conditions
from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import Averaged, Denoiser, Generator, Guided, NetworkDenoiser, Reflected
from fewstep.denoisers.threshold import Threshold
from fewstep.errors import UserError
from fewstep.metrics.features import Features
from fewstep.networks.adapters import AdaptedBase
from fewstep.networks.elsewhere import placed_on
from fewstep.recipes import config
from fewstep.schedule import Schedule
from fewstep.solvers import FlowMap
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior

if TYPE_CHECKING:
    from fewstep.recipes.methods.method import Method

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class RoleDevices:
    """``usual``: where networks are unless their role is ``named``."""

    usual: torch.device
    named: Mapping[config.PlacedRole, torch.device] = field(default_factory=dict)

    def of(self, role: config.PlacedRole) -> torch.device:
        """The device of a role."""
        return self.named.get(role, self.usual)

    def placed(self, role: config.PlacedRole, model: Model) -> Model:
        """The model, in place, on the device of its role.

        Where any role is named, every network may be called from the others' devices.
        """
        return placed_on(model, self.of(role)) if self.named else model.to(self.usual)


@dataclass(frozen=True, eq=False)
class Student:
    """``model``: what objectives run, what is trained, averaged and saved."""

    model: Denoiser | Generator


@dataclass(frozen=True, eq=False)
class Context:
    """``original``: the teacher as it was loaded, of which copies are made; ``teacher``: the same,
    guided as the recipe's target is and thresholded where the recipe says so. Both frozen. ``base``
    is the network of ``original``, on which adapters stand.

    ``space``: what samples look like; ``found``: the recipe's data, None where it has none
    (``data`` is for what cannot do without). ``prior`` is where the student's samples start,
    ``sampling`` how they go on; ``average`` follows ``student.model`` and is the run's result.
    ``features``: the evaluation's feature space. The run works on ``device``; ``devices`` puts
    networks where those of their role are built.
    """

    method: Method
    target: config.TargetChoice
    states: config.StatesChoice
    training: config.Training
    folder: Path
    found: Dataset | None
    space: SampleSpace
    features: Features
    original: NetworkDenoiser
    base: AdaptedBase
    teacher: Denoiser
    student: Student
    prior: Prior
    sampling: Sampling
    average: Averaged
    threshold: Threshold | None
    roles: frozenset[str]
    device: torch.device
    devices: RoleDevices

    @property
    def data(self) -> Dataset:
        """The data; raises ``UserError`` where the recipe has none."""
        if self.found is None:
            raise UserError(
                f"'method.kind: {self.method.model_dump()['kind']}' with these states and terms is trained "
                "on data, and the recipe has no 'data' section; "
                "add one, or leave out what needs data: distribution matching without a critic, on "
                "'states.kind: usual', needs none."
            )
        if self.found.numbers is None and self.conditions.texts:
            raise UserError(
                f"'method.kind: {self.method.model_dump()['kind']}' with these states and terms is trained on data, "
                "and must know what each sample shows; set 'prompts.kind: captions', or leave out what needs data."
            )
        return self.found

    @property
    def conditions(self) -> Conditions:
        """What teacher and student are conditioned on, and what they are without it."""
        return self.prior.conditions

    @property
    def guided_teacher(self) -> Denoiser:
        """The teacher guided by the scale that a state's condition holds, for methods whose
        students take one; thresholded where the recipe says so.

        The guided estimate is what leaves the data's range, so the threshold comes after it.
        """
        return self.reflected(Guided(self.original, conditions=self.conditions), "teacher")

    @property
    def schedule(self) -> Schedule:
        """The student's forward process; for a generator, which has none, the teacher's."""
        return self.student.model.schedule if isinstance(self.student.model, Denoiser) else self.original.schedule

    @property
    def denoising_student(self) -> Denoiser:
        """The student of a method that cannot have a generator (which ``legality`` refuses)."""
        assert isinstance(self.student.model, Denoiser)
        return self.student.model

    @property
    def averaged(self) -> Denoiser:
        """The averaged student of such a method."""
        assert isinstance(self.average.average, Denoiser)
        return self.average.average

    @property
    def student_map(self) -> FlowMap:
        """The student as it generates."""
        return self.sampling.flow_map(self.student.model, self.schedule)

    def student_times(self, steps: int | None = None) -> tuple[float, ...]:
        """The student's times, from the prior's down to 0.

        Raises ``UserError`` where its grid has no such steps.
        """
        try:
            return tuple(self.sampling.times(self.schedule, self.prior.time, steps).tolist())
        except UserError as error:
            key = "method.grid" if "grid" in type(self.method).model_fields else "method"
            raise UserError(f"'{key}' does not fit the student's first level and steps: {error}") from error

    def reflected(self, denoiser: Denoiser, role: config.Role) -> Denoiser:
        """The denoiser, thresholded if the recipe says so of its role."""
        return denoiser if self.threshold is None or role not in self.roles else Reflected(denoiser, self.threshold)
