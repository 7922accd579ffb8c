"""MeanFlow (Geng et al. 2025): the average velocity between any two times, by its own derivative
along a trajectory; the teacher's trajectory, or the data's.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fewstep.denoisers import Denoiser, NetworkDenoiser, TrajectoryDenoiser, trajectory_of
from fewstep.objectives import AverageVelocity, MeanFlow
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import Transitions, build_states, teacher_transition
from fewstep.recipes.methods.along_trajectories.continuous_consistency import check_told_a_time
from fewstep.recipes.methods.method import Built, Example, Method, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.states import ForwardDiffusion
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes, RhoGrid
from fewstep.training import Stage, Term
from fewstep.values import Few, Positive


class LearnsAverages(Method, abc.ABC):
    """A method whose student learns the average velocity between any two times."""

    if TYPE_CHECKING:
        # Declared by each method, whose fields have an order that its runs are known by.
        times: config.TimesChoice
        same: float
        end: float
        grid: config.GridName
        steps: int

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}), False, frozenset({"copy"})
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.same + self.end > 1:
            raise ValueError(f"'same' ({self.same:g}) and 'end' ({self.end:g}) must be at most 1 in sum")
        return self

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling("gamma", self.grid, self.steps)

    def grown(self, copy: NetworkDenoiser) -> Denoiser:
        return trajectory_of(copy)

    @abc.abstractmethod
    def objective(self, student: TrajectoryDenoiser, context: Context) -> AverageVelocity:
        """What trains the student."""

    def build(self, context: Context) -> Built:
        check_told_a_time(context)
        student = context.student.model
        assert isinstance(student, TrajectoryDenoiser)
        diffused = ForwardDiffusion(context.data, context.schedule, self.times, conditions=context.conditions)
        teacher = teacher_transition(context.teacher, 2, context)
        transitions = Transitions(
            context.student_times(), context.student_map, teacher, lambda: diffused, whole=True, anywhere=True
        )
        states = build_states(context, diffused, transitions)
        term = Term(self.objective(student, context), states, name=self.kind.replace("-", " "))
        return Built([Stage("distill", context.training.steps, [student_phase(context, [term])])])


class MeanFlowMethod(LearnsAverages):
    """``velocity``: whose trajectories are followed. ``times``: of training, log-normal in sigma /
    alpha, which is logit-normal on the paper's line.

    ``same``: the share of states that are trained at equal times, ``end``: that of jumps to clean
    samples. ``power`` and ``constant``: p and c of the weight. ``grid``: of the student's
    ``steps``.
    """

    kind: Literal["mean-flow"]
    velocity: Literal["teacher", "data"] = "teacher"
    times: config.TimesChoice = LogNormalTimes(-0.4, 1.0)
    same: float = Field(0.5, ge=0, le=1)
    end: float = Field(0.25, ge=0, le=1)
    power: float = Field(1.0, ge=0)
    constant: Positive = 1e-3
    grid: config.GridName = RhoGrid()
    steps: Few = 1

    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "of data, 2 steps": Example({"velocity": "data", "steps": 2}),
        "images": Example({"power": 0.0}, on_digits=True),
    }

    @property
    def effective_traits(self) -> Traits:
        if self.velocity == "teacher":
            return self.traits
        because = dict.fromkeys(
            ("rollout", "ddil", "per-batch"),
            "following the data's own velocity needs states that know the clean sample they are made of",
        )
        return replace(self.traits, states=frozenset({"forward"}), roles=(), because=because)

    def objective(self, student: TrajectoryDenoiser, context: Context) -> MeanFlow:
        target = Fixed(context.teacher) if self.velocity == "teacher" else None
        return MeanFlow(student, target, self.same, self.end, self.power, self.constant)
