"""Moment matching (Salimans et al. 2024), alternating: the conditional means of the student's
samples along its own sampler are the teacher's estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from fewstep.objectives import AuxiliaryMoment, Descent, DiffInstructWeight, MomentMatching
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.followed_scores import FakeParts, Followed, FollowsLearned, LearnedFake, TrainedFakeChoice
from fewstep.recipes.kit.state_sources import states_of_data
from fewstep.recipes.methods.method import Example, Traits
from fewstep.solvers.sampling import Sampling
from fewstep.states import States
from fewstep.targets import Fixed
from fewstep.training import Term
from fewstep.values import Few, NotNegative


class MomentMethod(FollowsLearned):
    """``towards``: rho, how strongly the auxiliary denoiser ``fake`` is held near the teacher.

    ``levels``: at how many times between two of the student's own a transition may land, the next
    own time among them. ``weighting``: of the student's loss.
    """

    kind: Literal["moment-matching"]
    towards: NotNegative = 1.0
    levels: Few = 8
    weighting: config.MatchingWeighting = DiffInstructWeight()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    steps: Few = 8

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}),
        True,
        roles=("teacher", "fake", "student"),
        because={
            "generator": "its transitions are made of the student's forward process",
            "backtracked": "its auxiliary denoiser is held near the teacher unless 'method.towards' is 0",
        },
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"steps": 2, "levels": 2}),
        "free": Example({"steps": 2, "levels": 2, "towards": 0.0}),
        "1 step": Example({"steps": 1, "levels": 4}),
        "low rank": Example({"steps": 2, "fake": {"kind": "lora", "rank": 2}}),
        "images": Example({"steps": 2, "levels": 2}, on_digits=True),
    }

    @property
    def effective_traits(self) -> Traits:
        # The auxiliary denoiser must be held near what the student is compared with.
        return replace(super().effective_traits, scores=self.towards == 0)

    @property
    def sampling(self) -> Sampling:
        return Sampling("ancestral", self.grid, self.steps)

    def states(self, context: Context) -> States:
        return context.prior if self.steps == 1 else states_of_data(context)

    def descent(self, context: Context) -> Descent:
        """Where transitions land: a grid that is finer than the student's."""
        times = context.student_times(self.steps * self.levels)
        return Descent((*times[:-1], context.schedule.t_min), self.levels)

    def fake_parts(self, context: Context, states: States) -> FakeParts:
        parts = self.fake.parts(context, states, self.fake.times)
        assert parts.learning is not None
        assert parts.phase is not None
        learning = AuxiliaryMoment(
            parts.learning.fake,
            parts.learning.student,
            parts.learning.times,
            parts.learning.weight,
            teacher=Fixed(context.teacher),
            descent=self.descent(context),
            towards=self.towards,
        )
        terms = [replace(term, objective=learning, name="auxiliary") for term in parts.phase.terms]
        return replace(parts, learning=learning, phase=replace(parts.phase, terms=terms))

    def terms(self, followed: Followed) -> Sequence[Term]:
        objective = MomentMatching(
            followed.student,
            followed.fake,
            followed.target,
            self.descent(followed.context),
            self.weighting,
            followed.passes,
        )
        return [Term(objective, followed.states, name="moments")]
