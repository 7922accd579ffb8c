"""Diversity-preserved DMD (DP-DMD, Wu et al. 2026): the first of several steps follows the
teacher's trajectory, and the later ones are trained by distribution matching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.objectives import AnchoredJump, DistributionMatching, DMDWeight
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.followed_scores import Followed, FollowsScores, LearnedFake, TrainedFakeChoice
from fewstep.recipes.methods.method import Example, Traits
from fewstep.solvers import Solver
from fewstep.solvers.sampling import Sampling
from fewstep.states import Rollout, States
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.values import Few, NotNegative


class AnchoredMethod(FollowsScores):
    """``anchor``: the weight of the first jump's regression on the teacher's solution at the
    student's second time, which the teacher reaches in ``anchor_steps`` Euler steps.

    ``matched_from``: the first of the student's steps, counted from 0, that is matched. ``jump``:
    how the student goes from step to step.
    """

    kind: Literal["dp-dmd"]
    anchor: NotNegative = 1.0
    anchor_steps: Few = 8
    matched_from: int = Field(1, ge=0)
    jump: Literal["ddim", "renoise"] = "ddim"
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    steps: Few = 4

    traits: ClassVar[Traits] = Traits(
        frozenset(),
        True,
        roles=("teacher", "fake", "student"),
        because=dict.fromkeys(
            ("prior", "forward", "rollout", "ddil", "per-batch"),
            "its first step is trained at pure noise and its later steps on its own trajectory",
        )
        | {"generator": "a student of several steps must be a denoiser"},
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"steps": 2, "anchor_steps": 2}),
        "low rank": Example({"steps": 2, "anchor_steps": 2, "fake": {"kind": "lora", "rank": 2}}),
        "3 steps, renoised": Example({"steps": 3, "anchor_steps": 2, "jump": "renoise", "matched_from": 0}),
        "images": Example({"steps": 2, "anchor_steps": 2}, on_digits=True),
    }

    @model_validator(mode="after")
    def _has_later_steps(self) -> AnchoredMethod:
        if self.steps < 2:
            raise ValueError("'steps' is 1, and the method divides a student's steps between two losses; use 2 or more")
        if self.matched_from >= self.steps:
            raise ValueError(
                f"'matched_from' is {self.matched_from}, and the last of {self.steps} steps is number "
                f"{self.steps - 1}; use a number below 'steps'"
            )
        return self

    @property
    def sampling(self) -> Sampling:
        return Sampling(jump=self.jump, grid=self.grid, steps=self.steps)

    @property
    def own_score(self) -> TrainedFakeChoice:
        return self.fake

    def states(self, context: Context) -> States:
        times = context.student_times()[:-1]
        return Rollout(context.student_map, context.prior, times, tuple(range(self.matched_from, self.steps)))

    def terms(self, followed: Followed) -> Sequence[Term]:
        matching = DistributionMatching(
            followed.student, followed.fake, followed.target, self.times, self.weighting, followed.passes
        )
        terms = [Term(matching, followed.states, name="matching")]
        if self.anchor > 0:
            context = followed.context
            solver = Solver(context.teacher, self.anchor_steps, grid=context.sampling.grid)
            jump = AnchoredJump(context.denoising_student, solver, context.student_times()[1])
            terms.append(Term(jump, context.prior, self.anchor, "anchor"))
        return terms
