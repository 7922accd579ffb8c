"""Students a recipe may name: copies of the teacher, adapters on it, denoisers around other
networks, and generators on latents.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import create_model, model_validator

from fewstep.denoisers import NetworkDenoiser, copy_of, device_of, in_network
from fewstep.errors import UserError
from fewstep.networks import GeneratorNetwork
from fewstep.networks.adapters import AdaptedBase
from fewstep.networks.kinds.registry import Kind, kinds
from fewstep.recipes.config.adapter_sections import LowRankSection
from fewstep.recipes.config.models import DenoisingChoice, NetworkSection, build_network, check_takes, section_of
from fewstep.recipes.config.section import (
    Choice,
    Section,
    Seed,
    check_one,
    fields_of,
    kind_of_section,
    null_beside,
)
from fewstep.recipes.config.starts import ModelPath, started
from fewstep.schedule import Schedule
from fewstep.timesteps import Timestep
from fewstep.values import Few, Later, Positive


class _DenoisingStudent(Section, abc.ABC):
    """Of both levels at which samples may start, exactly one is said: ``first_sigma``, the noise
    level sigma / alpha, or ``first_timestep``, of the teacher's discrete schedule.
    """

    if TYPE_CHECKING:
        # Declared by each kind, whose fields have an order that runs are known by.
        first_sigma: float | None

    leaves_adapter: ClassVar[bool] = False
    """Whether a run leaves its adapter in a file of its own."""
    first_timestep: Annotated[Timestep | None, Later()] = None

    @model_validator(mode="before")
    @classmethod
    def _timestep_for_sigma(cls, values: Any) -> Any:
        return null_beside(values, "first_timestep", "first_sigma")

    @model_validator(mode="after")
    def _says_one_level(self) -> Self:
        check_one(self, "first_sigma", "first_timestep")
        return self

    def first_time(self, schedule: Schedule) -> float:
        """The time at which samples start, of the teacher's schedule.

        Raises ``UserError`` for a timestep that the schedule has not, and for a noise level that
        the teacher was not trained for.
        """
        if self.first_timestep is not None:
            try:
                return schedule.time_at_timestep(self.first_timestep)
            except UserError as error:
                raise UserError(f"'student.first_timestep' does not fit the teacher: {error}") from error
        assert self.first_sigma is not None
        time = float(schedule.time_at_sigma(self.first_sigma))
        # The way from a noise level to its time and back is exact up to rounding.
        if not schedule.t_min * (1 - 1e-9) <= time <= schedule.t_max * (1 + 1e-9):
            raise UserError(
                f"'student.first_sigma' is {self.first_sigma}, outside the noise levels that the teacher was trained "
                "for."
            )
        return time

    @abc.abstractmethod
    def denoiser(self, teacher: NetworkDenoiser, base: AdaptedBase) -> NetworkDenoiser:
        """The student as it is before training, on the teacher's device; ``base``: the teacher's
        network, for adapters to stand on.

        Raises ``UserError`` where it does not fit the teacher, or a file does not fit it.
        """


class CopyStudent(_DenoisingStudent):
    """A copy of the teacher.

    ``start``: a file of a model that was made from the same teacher, or a run's folder, from whose
    weights it begins; null for the teacher's.
    """

    kind: Literal["copy"]
    first_sigma: Positive | None = 2.5
    start: Annotated[ModelPath | None, Later()] = None

    def denoiser(self, teacher: NetworkDenoiser, base: AdaptedBase) -> NetworkDenoiser:
        remedy = "use one that was made from this teacher, or set 'student.start' to null"
        return started(copy_of(teacher), self.start, remedy)


class LowRankStudent(_DenoisingStudent, LowRankSection):
    """The teacher's own network with a low-rank adapter (LoRA), which alone is trained."""

    leaves_adapter: ClassVar[bool] = True

    kind: Literal["lora"]
    rank: Few = 8
    scale: Positive | None = 1.0
    first_sigma: Positive | None = 2.5
    seed: Seed = 0

    def denoiser(self, teacher: NetworkDenoiser, base: AdaptedBase) -> NetworkDenoiser:
        return self.role(base, teacher, self.seed)


class NetworkStudent(_DenoisingStudent):
    """A denoiser around another network than the teacher's, fed as the teacher is.

    ``start``: a file of such a denoiser, or the folder of a run that made one; null for random
    weights of ``seed``.
    """

    kind: Literal["network"]
    network: DenoisingChoice
    start: ModelPath | None = None
    first_sigma: Positive | None = 2.5
    seed: Seed = 0

    def denoiser(self, teacher: NetworkDenoiser, base: AdaptedBase) -> NetworkDenoiser:
        check_takes(self.network, "student.network.kind", teacher.shape, teacher.classes)
        network = build_network(self.network, self.seed, classes=teacher.classes)
        return started(in_network(teacher, network), self.start).to(device_of(teacher))


class GeneratorStudent(NetworkSection):
    """A generator on latents, which knows no noise levels (App.

    A.2 and E.2): any registered ``GeneratorNetwork``.

    ``seed``: of its weights. ``start``: a file of such a generator, or the folder of a run that
    made one, null for random weights; a pretraining by GAN makes one.
    """

    leaves_adapter: ClassVar[bool] = False

    if TYPE_CHECKING:
        # Fields that ``_generator_student`` adds last, after those of the network.
        seed: int
        start: str | None


@functools.cache
def _generator_student(kind: Kind) -> type[GeneratorStudent]:
    more: dict[str, Any] = {"seed": (Seed, 0), "start": (ModelPath | None, None)}
    network = section_of(kind)
    fields = {
        name: (field.annotation, ... if field.default is dataclasses.MISSING else field.default)
        for name, field in fields_of(network).items()
    }
    made: type[GeneratorStudent] = create_model(
        f"{kind.cls.__name__}Student", __base__=GeneratorStudent, **fields, **more
    )  # type: ignore[call-overload]
    return made


class StudentKinds(Choice):
    """The kinds of students: denoisers, and any registered generator."""

    def options(self, base: Any) -> Mapping[str, type[Any]]:
        denoisers = {
            str(kind_of_section(section)): section for section in (CopyStudent, LowRankStudent, NetworkStudent)
        }
        return {
            **denoisers,
            **{name: _generator_student(kind) for name, kind in kinds(GeneratorNetwork).items() if kind.in_recipes},
        }


StudentChoice = Annotated[CopyStudent | LowRankStudent | NetworkStudent | GeneratorStudent, StudentKinds()]
