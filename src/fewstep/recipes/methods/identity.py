"""Score identity distillation (SiD, Zhou et al. 2024): distribution matching by the Fisher divergence, its gradient taken through both networks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DMDWeight, ScoreIdentity, ScoreMatching
from fewstep.recipes import config
from fewstep.recipes.axes import trajectory_states
from fewstep.recipes.backtracking import build_target
from fewstep.recipes.context import Context
from fewstep.recipes.methods.base import Built, Method, Traits, student_phase, trained
from fewstep.recipes.methods.matching import LearnedFake, recorded, several_steps, started
from fewstep.times import LogNormalTimes
from fewstep.training import Stage, Term
from fewstep.values import Few


class IdentityMethod(Method):
    """``alpha``: of Eq. 23; the paper uses 1 and 1.2. ``steps``: the student's."""

    kind: Literal["sid"]
    alpha: float = Field(1.2, ge=0)
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: LearnedFake = LearnedFake(kind="learned")
    steps: Few = 1

    traits: ClassVar[Traits] = Traits(frozenset({"prior"}), True, frozenset({"copy", "lora", "generator"}), ("teacher", "fake", "student"))

    @property
    def in_force(self) -> Traits:
        return self.traits if self.steps == 1 else several_steps(self.traits)

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def learns_fake(self) -> bool:
        return True

    @property
    def student_every(self) -> int:
        return self.fake.updates

    def build(self, context: Context) -> Built:
        student, fake = context.student.model, started(self.fake, context)
        states = trajectory_states(context, self.steps)
        learning = ScoreMatching(fake, student, self.fake.times, self.fake.weighting)
        degraded, recorded_by, start = recorded(self.fake, learning, context)
        target = build_target(context, degraded, recorded_by, states, start, learned=True)
        objective = ScoreIdentity(student, context.reflected(fake, "fake"), target.target, self.times, self.alpha, self.weighting)
        phases = [
            student_phase(context, [Term(objective, states, name="identity")], self.student_every, target.hook),
            trained("fake", fake, [Term(learning, states, name="fake score")], self.fake.optimizer),
        ]
        return Built([*target.record, Stage("distill", target.until, phases, target.begin)], target.path, learning, states)
