"""The axes of a distillation: teacher, student, target, states, thresholds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from fewstep.networks import GeneratorNetwork
from fewstep.networks.kinds.registry import Kind, kinds
from fewstep.recipes.config.models import DenoisingChoice, NetworkSection, section_of
from fewstep.recipes.config.section import Choice, Kinds, Section, Seed, WeightsPath, fields_of, kind_of_section
from fewstep.recipes.config.shared_choices import OptimizerChoice
from fewstep.targets import Recording, Switching
from fewstep.training import Adam
from fewstep.values import Costly, Count, Few, Fraction, Later, Positive


class CopyStudent(Section):
    """A copy of the teacher.

    ``first_sigma``: the noise level sigma / alpha at which its samples start.
    """

    kind: Literal["copy"]
    first_sigma: Positive = 2.5


class LowRankStudent(Section):
    """The teacher with a low-rank adapter (LoRA), which alone is trained."""

    kind: Literal["lora"]
    rank: Few = 8
    scale: Positive = 1.0
    first_sigma: Positive = 2.5
    seed: Seed = 0


class NetworkStudent(Section):
    """A denoiser around another network than the teacher's, fed as the teacher is.

    ``start``: a file of such a denoiser, null for random weights of ``seed``.
    """

    kind: Literal["network"]
    network: DenoisingChoice
    start: WeightsPath | None = None
    first_sigma: Positive = 2.5
    seed: Seed = 0


class GeneratorStudent(NetworkSection):
    """A generator on latents, which knows no noise levels (App.

    A.2 and E.2): any registered ``GeneratorNetwork``.

    ``seed``: of its weights. ``start``: a file of such a generator, null for random weights; the
    model of a pretraining by GAN is such a file.
    """

    if TYPE_CHECKING:
        # Fields that ``_generator_student`` adds last, after those of the network.
        seed: int
        start: str | None


@functools.cache
def _generator_student(kind: Kind) -> type[GeneratorStudent]:
    more: dict[str, Any] = {"seed": (Seed, 0), "start": (WeightsPath | None, None)}
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


class FixedTarget(Section):
    kind: Literal["fixed"]


class BacktrackedTarget(Section):
    """``nodes`` counts the teacher. ``optimizer`` degrades the teacher."""

    kind: Literal["backtracked"]
    nodes: Few
    record: Annotated[Recording, Kinds()]
    switch: Annotated[Switching, Kinds()]
    optimizer: OptimizerChoice = Adam()


TargetChoice = Annotated[FixedTarget | BacktrackedTarget, Field(discriminator="kind")]


class UsualStates(Section):
    """What the method is trained on in its paper."""

    kind: Literal["usual"]


class PriorStates(Section):
    """Pure noise: one-step students."""

    kind: Literal["prior"]


class ForwardStates(Section):
    """Forward diffusion of data, at the student's times."""

    kind: Literal["forward"]


Stops = (
    Literal["all", "any"] | Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1, max_length=100)]
)
"""Where trajectories stop, and a student is trained on them: at all of its times; at any time
(DDIL, Alg. 1), and then data are noised to any time as well; or after these shares of its steps (0
for pure noise, 0.5 for half of the way).
"""


class RolloutStates(Section):
    """The student's own backward trajectory (DMD2's backward simulation)."""

    kind: Literal["rollout"]
    stops: Annotated[Stops, Later()] = "all"


class DDILStates(Section):
    """DDIL's aggregated data set (Alg. 2 and 3): ``collected`` of the states come from a bounded
    collection of trajectories in which a transition is the student's with probability ``student``
    (methods whose trajectories are the student's alone do not use it); the rest is forward
    diffusion of data. From the share ``first_part`` of a stage on, the ``later`` values hold (App.
    A: 25 % and 15 %, then 50 % and 80 %). At every step that is a multiple of ``every``,
    ``collect`` fresh trajectories give the collection ``of_each`` one state or all of theirs; with
    a ``capacity`` equal to what is added at each step there is no collection, and states are always
    today's student's (DMD2).
    """

    kind: Literal["ddil"]
    collected: Fraction = 0.25
    student: Fraction = 0.15
    later_collected: Fraction = 0.5
    later_student: Fraction = 0.8
    first_part: float = Field(0.6, gt=0, lt=1)
    capacity: Annotated[Count, Costly(16)] = 4096
    collect: Annotated[int, Field(ge=1, le=65_536), Costly(4)] = 16
    keep: Literal["reservoir", "ring"] = "ring"
    every: Annotated[Count, Later()] = 1
    of_each: Annotated[Literal["one", "all"], Later()] = "one"
    stops: Annotated[Stops, Later()] = "all"

    @model_validator(mode="after")
    def _holds_what_it_collects(self) -> DDILStates:
        if self.collect > self.capacity:
            raise ValueError(
                f"'capacity' ({self.capacity}) must be at least 'collect' ({self.collect}), the "
                "trajectories that are added at once"
            )
        return self


class PerBatchStates(Section):
    """DDIL's Algorithm 1 as printed: one source for a whole batch, of data, the teacher's
    trajectory and the student's, with these weights.
    """

    kind: Literal["per-batch"]
    data: float = Field(0.5, ge=0)
    teacher: float = Field(0.0, ge=0)
    student: float = Field(0.5, ge=0)
    stops: Annotated[Stops, Later()] = "all"

    @model_validator(mode="after")
    def _has_a_source(self) -> PerBatchStates:
        if self.data + self.teacher + self.student == 0:
            raise ValueError(
                "one of 'data', 'teacher' and 'student' must be positive: with all at 0 there is no source "
                "to draw states from"
            )
        return self


StatesChoice = Annotated[
    UsualStates | PriorStates | ForwardStates | RolloutStates | DDILStates | PerBatchStates, Field(discriminator="kind")
]

Role = Literal["teacher", "target", "fake", "student"]


class NotReflected(Section):
    kind: Literal["none"]


class StaticReflected(Section):
    """Estimates clamped to [-bound, bound] (the data's range unless given).

    ``on``: whose, those that DDIL thresholds for the method unless given.
    """

    kind: Literal["static"]
    bound: Positive | None = None
    on: list[Role] | None = None


class DynamicReflected(Section):
    """Clamped at each sample's own percentile of absolute values where that is beyond the bound,
    and scaled back (Saharia et al. 2022).
    """

    kind: Literal["dynamic"]
    bound: Positive | None = None
    percentile: float = Field(0.995, gt=0, le=1)
    on: list[Role] | None = None


ReflectedChoice = Annotated[NotReflected | StaticReflected | DynamicReflected, Field(discriminator="kind")]
