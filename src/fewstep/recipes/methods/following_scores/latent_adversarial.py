"""Latent adversarial diffusion distillation (LADD, Sauer et al. 2024): ADD without its distillation
term. A critic on the frozen teacher's features at noised samples is all that the student follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from fewstep.recipes import config
from fewstep.recipes.kit.adversaries import TeacherTrunk, build_adversary
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import states_of_data
from fewstep.recipes.methods.method import Built, Example, Method, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.times import LogNormalTimes, RhoGrid
from fewstep.training import Stage
from fewstep.values import Few, Later


class LatentAdversarialMethod(Method):
    """``adversarial``: the critic; its ``times`` are those to which samples are noised before it
    sees them, ``log-normal`` in sigma / alpha, which is logit-normal in the time of a flow.
    """

    kind: Literal["ladd"]
    adversarial: TeacherTrunk = TeacherTrunk(
        kind="teacher-trunk", weight=1.0, loss="hinge", times=LogNormalTimes(mean=0.0, std=1.0)
    )
    steps: Few = 4
    grid: Annotated[config.GridName, Later()] = RhoGrid()

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}),
        False,
        roles=("student",),
        guided=False,
        because={"guided": "its student follows a critic on the teacher's features, and no estimate of the teacher's"},
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"steps": 2}),
        "1 step": Example({"steps": 1}),
        "R1": Example({"steps": 2, "adversarial": {"kind": "teacher-trunk", "r1": 0.1}}),
        "images": Example({"steps": 2}, on_digits=True),
    }

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling(grid=self.grid, steps=self.steps)

    def build(self, context: Context) -> Built:
        adversary = build_adversary(self.adversarial, context, states_of_data(context), [])
        student = student_phase(context, [adversary.generator_term])
        return Built([Stage("distill", context.training.steps, [student, *adversary.phases])])
