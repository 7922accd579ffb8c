"""The axes of a distillation: teacher, student, target, states, thresholds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fewstep.recipes.config.base import MOST, Count, Few, Later, Optimizer, Positive, Section, Seed, Share, Steps, WeightsPath
from fewstep.recipes.config.models import DenoisingNetwork, FastGANChoice


class CopyStudent(Section):
    """A copy of the teacher. ``first_sigma``: the noise level sigma / alpha at which its samples start."""

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
    """A denoiser around another network than the teacher's, fed as the teacher is. ``start``: a file of such a denoiser, null for random weights of ``seed``."""

    kind: Literal["network"]
    network: DenoisingNetwork
    start: WeightsPath | None = None
    first_sigma: Positive = 2.5
    seed: Seed = 0


class LatentStudent(Section):
    """A multilayer perceptron on a latent, which knows no noise levels (App. E.2). ``start``: a file of such a generator, null for random weights of ``seed``."""

    kind: Literal["latent-mlp"]
    latent: Count = 2
    width: Count = 64
    depth: Count = 3
    seed: Seed = 0
    start: WeightsPath | None = None


class FastGANStudent(FastGANChoice):
    """FastGAN's generator, which knows no noise levels (App. A.2). ``start``: as of 'latent-mlp'; the model of a pretraining by GAN is one."""

    seed: Seed = 0
    start: WeightsPath | None = None


StudentChoice = Annotated[CopyStudent | LowRankStudent | NetworkStudent | LatentStudent | FastGANStudent, Field(discriminator="kind")]


class FixedTarget(Section):
    kind: Literal["fixed"]


class RecordEvery(Section):
    kind: Literal["every"]
    steps: Steps


class RecordByDistance(Section):
    """``distance`` and ``floor`` relative to the teacher's spread over the probes."""

    kind: Literal["distance"]
    distance: Positive = 0.1
    floor: float = Field(0.5, ge=0, lt=1)
    max_steps: Steps = 200


RecordChoice = Annotated[RecordEvery | RecordByDistance, Field(discriminator="kind")]


class SwitchEvery(Section):
    """``steps`` at each node, or a list in the order of use whose last entry serves all that remain."""

    kind: Literal["every"]
    steps: Steps | Annotated[list[Annotated[int, Field(ge=1, le=MOST)]], Field(min_length=1), Share()]


class SwitchAtPlateau(Section):
    kind: Literal["plateau"]
    window: Steps = 20
    improvement: float = Field(0.02, ge=0, lt=1)
    min_steps: Steps = 20
    max_steps: Steps = 200


SwitchChoice = Annotated[SwitchEvery | SwitchAtPlateau, Field(discriminator="kind")]


class BacktrackedTarget(Section):
    """``nodes`` counts the teacher. ``optimizer`` degrades the teacher."""

    kind: Literal["backtracked"]
    nodes: Few
    record: RecordChoice
    switch: SwitchChoice
    optimizer: Optimizer = Optimizer()


TargetChoice = Annotated[FixedTarget | BacktrackedTarget, Field(discriminator="kind")]


Probability = Annotated[float, Field(ge=0, le=1)]


class UsualStates(Section):
    """What the method is trained on in its paper."""

    kind: Literal["usual"]


class PriorStates(Section):
    """Pure noise: one-step students."""

    kind: Literal["prior"]


class ForwardStates(Section):
    """Forward diffusion of data, at the student's times."""

    kind: Literal["forward"]


Stops = Literal["all", "any"] | Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1, max_length=100)]
"""Where trajectories stop, and a student is trained on them: at all of its times; at any time (DDIL, Alg. 1), and then data are noised to any time as well; or after these shares of
its steps (0 for pure noise, 0.5 for half of the way)."""


class RolloutStates(Section):
    """The student's own backward trajectory (DMD2's backward simulation)."""

    kind: Literal["rollout"]
    stops: Annotated[Stops, Later()] = "all"


class DDILStates(Section):
    """DDIL's aggregated data set (Alg. 2 and 3): ``collected`` of the states come from a bounded collection of trajectories in which a transition is the student's with probability
    ``student`` (methods whose trajectories are the student's alone do not use it); the rest is forward diffusion of data. From the share ``first_part`` of a stage on, the ``later`` values
    hold (App. A: 25 % and 15 %, then 50 % and 80 %). At every step that is a multiple of ``every``, ``collect`` fresh trajectories give the collection ``of_each`` one state or all of
    theirs; with a ``capacity`` equal to what is added at each step there is no collection, and states are always today's student's (DMD2).
    """

    kind: Literal["ddil"]
    collected: Probability = 0.25
    student: Probability = 0.15
    later_collected: Probability = 0.5
    later_student: Probability = 0.8
    first_part: float = Field(0.6, gt=0, lt=1)
    capacity: Count = 4096
    collect: int = Field(16, ge=1, le=65_536)
    keep: Literal["reservoir", "ring"] = "ring"
    every: Annotated[Count, Later()] = 1
    of_each: Annotated[Literal["one", "all"], Later()] = "one"
    stops: Annotated[Stops, Later()] = "all"

    @model_validator(mode="after")
    def _holds_what_it_collects(self) -> DDILStates:
        if self.collect > self.capacity:
            raise ValueError(f"'capacity' ({self.capacity}) must be at least 'collect' ({self.collect}), the trajectories that are added at once")
        return self


class PerBatchStates(Section):
    """DDIL's Algorithm 1 as printed: one source for a whole batch, of data, the teacher's trajectory and the student's, with these weights."""

    kind: Literal["per-batch"]
    data: float = Field(0.5, ge=0)
    teacher: float = Field(0.0, ge=0)
    student: float = Field(0.5, ge=0)
    stops: Annotated[Stops, Later()] = "all"

    @model_validator(mode="after")
    def _has_a_source(self) -> PerBatchStates:
        if self.data + self.teacher + self.student == 0:
            raise ValueError("one of 'data', 'teacher' and 'student' must be positive: with all at 0 there is no source to draw states from")
        return self


StatesChoice = Annotated[UsualStates | PriorStates | ForwardStates | RolloutStates | DDILStates | PerBatchStates, Field(discriminator="kind")]

Role = Literal["teacher", "target", "fake", "student"]


class NotReflected(Section):
    kind: Literal["none"]


class StaticReflected(Section):
    """Estimates clamped to [-bound, bound] (the data's range unless given). ``on``: whose, those that DDIL thresholds for the method unless given."""

    kind: Literal["static"]
    bound: Positive | None = None
    on: list[Role] | None = None


class DynamicReflected(Section):
    """Clamped at each sample's own percentile of absolute values where that is beyond the bound, and scaled back (Saharia et al. 2022)."""

    kind: Literal["dynamic"]
    bound: Positive | None = None
    percentile: float = Field(0.995, gt=0, le=1)
    on: list[Role] | None = None


ReflectedChoice = Annotated[NotReflected | StaticReflected | DynamicReflected, Field(discriminator="kind")]
