"""MeanFlow (Geng et al. 2025): the average velocity between any two times, by its own derivative
along a trajectory; the teacher's trajectory, or the data's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.denoisers import Denoiser, NetworkDenoiser, TrajectoryDenoiser, trajectory_of
from fewstep.objectives import MeanFlow
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


class MeanFlowMethod(Method):
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

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}), False, frozenset({"copy"})
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "of data, 2 steps": Example({"velocity": "data", "steps": 2}),
        "images": Example({"power": 0.0}, on_digits=True),
    }

    @model_validator(mode="after")
    def _shares_fit(self) -> MeanFlowMethod:
        if self.same + self.end > 1:
            raise ValueError(f"'same' ({self.same:g}) and 'end' ({self.end:g}) must be at most 1 in sum")
        return self

    @property
    def effective_traits(self) -> Traits:
        if self.velocity == "teacher":
            return self.traits
        because = dict.fromkeys(
            ("rollout", "ddil", "per-batch"),
            "following the data's own velocity needs states that know the clean sample they are made of",
        )
        return replace(self.traits, states=frozenset({"forward"}), roles=(), because=because)

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling("gamma", self.grid, self.steps)

    def grown(self, copy: NetworkDenoiser) -> Denoiser:
        return trajectory_of(copy)

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
        target = Fixed(context.teacher) if self.velocity == "teacher" else None
        objective = MeanFlow(student, target, self.same, self.end, self.power, self.constant)
        phase = student_phase(context, [Term(objective, states, name="mean flow")])
        return Built([Stage("distill", context.training.steps, [phase])])
