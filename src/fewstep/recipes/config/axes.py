"""The axes of a distillation beside teacher and student: target, states, thresholds."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from fewstep.denoisers.threshold import DynamicThreshold, StaticThreshold, Threshold
from fewstep.errors import UserError
from fewstep.recipes.config.section import Kinds, Section
from fewstep.recipes.config.shared_choices import OptimizerChoice
from fewstep.states import States
from fewstep.targets import Guidance, NoGuidance, Recording, Switching
from fewstep.training import Adam
from fewstep.values import Costly, Count, Few, Fraction, Later, Positive, name_of

GuidanceChoice = Annotated[Guidance, Kinds(), Later()]
DROPOUT = 0.1
"""The share of conditions that recording drops for a guided target, as guided teachers are trained
(Ho and Salimans 2022: 0.1 and 0.2).
"""


class FixedTarget(Section):
    """``guidance``: of the teacher's estimates."""

    kind: Literal["fixed"]
    guidance: GuidanceChoice = NoGuidance()

    @model_validator(mode="after")
    def _has_no_path(self) -> FixedTarget:
        if self.guidance.follows_path:
            raise ValueError(
                f"'guidance.kind: {name_of(self.guidance)}' goes from node to node of a recorded path, which a fixed "
                "target has not; use 'constant', or 'target.kind: backtracked'"
            )
        return self

    @property
    def backtracked(self) -> BacktrackedTarget | None:
        """The section of a target that walks back a path; None, since this one stays."""
        return None


class BacktrackedTarget(Section):
    """``nodes`` counts the teacher. ``optimizer`` degrades the teacher.

    ``guidance``: of the estimates of the node in force. ``dropout``: the share of samples whose
    condition the degrading teacher is not told, so that nodes keep an unconditional estimate that
    is theirs; null for ``DROPOUT`` where the target is guided, or the method guides what it asks,
    and for none elsewhere.
    ``recorded_as``: what a node is: a ``copy`` of the teacher, or an adapter on it (``lora``) of
    the fake score's rank, alpha and layers.
    """

    kind: Literal["backtracked"]
    nodes: Few
    record: Annotated[Recording, Kinds()]
    switch: Annotated[Switching, Kinds()]
    optimizer: OptimizerChoice = Adam()
    guidance: GuidanceChoice = NoGuidance()
    dropout: Annotated[Fraction | None, Later()] = None
    recorded_as: Annotated[Literal["copy", "lora"], Later()] = "copy"

    def dropped(self, method_guides: bool) -> float:
        """The share of conditions that recording drops; ``method_guides``: whether the method needs
        unconditional estimates, too.
        """
        if self.dropout is not None:
            return self.dropout
        return DROPOUT if self.guidance.guides or method_guides else 0.0

    @property
    def backtracked(self) -> BacktrackedTarget | None:
        """The section of a target that walks back a path: this one."""
        return self


TargetChoice = Annotated[FixedTarget | BacktrackedTarget, Field(discriminator="kind")]


class StateSources(Protocol):
    """The states that a method can be trained on in one run, one call a choice."""

    def usual(self) -> States: ...

    def prior(self) -> States: ...

    def forward(self) -> States: ...

    def rollout(self, choice: RolloutStates, /) -> States: ...

    def aggregated(self, choice: DDILStates, /) -> States: ...

    def per_batch(self, choice: PerBatchStates, /) -> States: ...


class _States(Section, abc.ABC):
    @abc.abstractmethod
    def chosen(self, sources: StateSources) -> States:
        """Those of the ``sources`` that this section names."""


class _Undivided(_States, abc.ABC):
    first_part: ClassVar[float] = 0.6
    """The share of the first of two parts of a stage; see ``DDILStates``, whose default it is."""


class UsualStates(_Undivided):
    """What the method is trained on in its paper."""

    kind: Literal["usual"]

    def chosen(self, sources: StateSources) -> States:
        return sources.usual()


class PriorStates(_Undivided):
    """Pure noise: one-step students."""

    kind: Literal["prior"]

    def chosen(self, sources: StateSources) -> States:
        return sources.prior()


class ForwardStates(_Undivided):
    """Forward diffusion of data, at the student's times."""

    kind: Literal["forward"]

    def chosen(self, sources: StateSources) -> States:
        return sources.forward()


Stops = (
    Literal["all", "any"] | Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1, max_length=100)]
)
"""Where trajectories stop, and a student is trained on them: at all of its times; at any time
(DDIL, Alg. 1), and then data are noised to any time as well; or after these shares of its steps (0
for pure noise, 0.5 for half of the way).
"""


class RolloutStates(_Undivided):
    """The student's own backward trajectory (DMD2's backward simulation)."""

    kind: Literal["rollout"]
    stops: Annotated[Stops, Later()] = "all"

    def chosen(self, sources: StateSources) -> States:
        return sources.rollout(self)


class DDILStates(_States):
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
    first_part: float = Field(_Undivided.first_part, gt=0, lt=1)
    capacity: Annotated[Count, Costly(16)] = 4096
    collect: Annotated[int, Field(ge=1, le=65_536), Costly(4)] = 16
    keep: Literal["reservoir", "ring"] = "ring"
    every: Annotated[Count, Later()] = 1
    of_each: Annotated[Literal["one", "all"], Later()] = "one"
    stops: Annotated[Stops, Later()] = "all"

    def chosen(self, sources: StateSources) -> States:
        return sources.aggregated(self)

    @model_validator(mode="after")
    def _holds_what_it_collects(self) -> DDILStates:
        if self.collect > self.capacity:
            raise ValueError(
                f"'capacity' ({self.capacity}) must be at least 'collect' ({self.collect}), the "
                "trajectories that are added at once"
            )
        return self


class PerBatchStates(_Undivided):
    """DDIL's Algorithm 1 as printed: one source for a whole batch, of data, the teacher's
    trajectory and the student's, with these weights.
    """

    kind: Literal["per-batch"]
    data: float = Field(0.5, ge=0)
    teacher: float = Field(0.0, ge=0)
    student: float = Field(0.5, ge=0)
    stops: Annotated[Stops, Later()] = "all"

    def chosen(self, sources: StateSources) -> States:
        return sources.per_batch(self)

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


class _Reflected(Section, abc.ABC):
    @abc.abstractmethod
    def threshold(self, bound: Callable[[], float]) -> Threshold | None:
        """The threshold, at ``bound`` unless the section names one; None for none."""

    @abc.abstractmethod
    def roles(self, usual: Sequence[Role]) -> Sequence[Role]:
        """Whose estimates are thresholded, the ``usual`` ones unless the section names them."""


class NotReflected(_Reflected):
    kind: Literal["none"]

    def threshold(self, bound: Callable[[], float]) -> None:
        return None

    def roles(self, usual: Sequence[Role]) -> Sequence[Role]:
        return ()


class StaticReflected(_Reflected):
    """Estimates clamped to [-bound, bound] (the data's range unless given).

    ``on``: whose, those that DDIL thresholds for the method unless given.
    """

    kind: Literal["static"]
    bound: Positive | None = None
    on: list[Role] | None = None

    def threshold(self, bound: Callable[[], float]) -> Threshold:
        return StaticThreshold(_bound(self.bound, bound))

    def roles(self, usual: Sequence[Role]) -> Sequence[Role]:
        return self.on or usual


class DynamicReflected(_Reflected):
    """Clamped at each sample's own percentile of absolute values where that is beyond the bound,
    and scaled back (Saharia et al. 2022).
    """

    kind: Literal["dynamic"]
    bound: Positive | None = None
    percentile: float = Field(0.995, gt=0, le=1)
    on: list[Role] | None = None

    def threshold(self, bound: Callable[[], float]) -> Threshold:
        return DynamicThreshold(_bound(self.bound, bound), self.percentile)

    def roles(self, usual: Sequence[Role]) -> Sequence[Role]:
        return self.on or usual


def _bound(said: float | None, of_samples: Callable[[], float]) -> float:
    """The bound that is said, or that of the samples.

    Raises ``UserError`` where neither is there.
    """
    if said is not None:
        return said
    found = of_samples()
    if math.isinf(found):
        raise UserError(
            "'reflected' takes its bound from the range of samples, and latents have none where there is no data; set "
            "'reflected.bound'."
        )
    return found


ReflectedChoice = Annotated[NotReflected | StaticReflected | DynamicReflected, Field(discriminator="kind")]
