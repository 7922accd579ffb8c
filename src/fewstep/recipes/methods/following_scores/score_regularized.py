"""Score-regularised consistency (rCM, Zheng et al. 2025): consistency along the teacher's
trajectories, and distribution matching of the student's own samples, in one phase.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import annotated_types as at
from pydantic import Field, model_validator

from fewstep.denoisers import Boundary, Denoiser
from fewstep.objectives import (
    ConsistencyDistillation,
    ContinuousConsistency,
    DistributionMatching,
    DMDWeight,
    Ladder,
    LogWeight,
    SquaredL2,
)
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.followed_scores import Followed, FollowsLearned, LearnedFake, TrainedFakeChoice
from fewstep.recipes.kit.state_sources import diffused
from fewstep.recipes.methods.along_trajectories.continuous_consistency import check_differentiable
from fewstep.recipes.methods.method import Example, Traits
from fewstep.solvers import EULER, HEUN, Rule
from fewstep.states import ForwardDiffusion
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.values import MOST, Few, NotNegative, Positive, Share


class ConsistencyTerm(config.Section, abc.ABC):
    """The consistency of rCM on diffused data; ``weight``: of its loss, 0 leaves it out."""

    weight: NotNegative = 1.0

    @abc.abstractmethod
    def term(self, context: Context) -> Term:
        """The term that trains the student."""

    def wrapped(self, student: Denoiser) -> Denoiser:
        """What it puts around the student's network."""
        return student


class ContinuousTerm(ConsistencyTerm):
    """sCM's tangent. ``times``: of training; ``sigma_data``: the data's standard deviation;
    ``log_weight``: whether the logarithm of a weight is learned beside it, as sCM's is.

    ``tangent_warmup``: the steps over which the tangent becomes whole; ``tangent_constant``: c of
    its normalisation.
    """

    kind: Literal["continuous"]
    times: config.TimesChoice = LogNormalTimes(-1.0, 1.4)
    sigma_data: Positive = 0.5
    tangent_warmup: Annotated[int, at.Interval(ge=0, le=MOST), Share()] = 0
    tangent_constant: Positive = 0.1
    log_weight: Literal["none", "learned"] = "none"

    def term(self, context: Context) -> Term:
        check_differentiable(context)
        states = ForwardDiffusion(context.data, context.schedule, self.times, conditions=context.conditions)
        objective = ContinuousConsistency(
            context.denoising_student,
            Fixed(context.teacher),
            context.devices.placed("student", LogWeight()) if self.log_weight == "learned" else None,
            self.sigma_data,
            self.tangent_warmup,
            self.tangent_constant,
        )
        return Term(objective, states, self.weight, "continuous consistency")


class DiscreteTerm(ConsistencyTerm):
    """Neighbouring points of the student's grid of ``points`` steps, ``skip`` of them apart; the
    student itself, without gradient, is the target. ``rule``: of the teacher's step.
    """

    kind: Literal["discrete"]
    points: int = Field(48, ge=2, le=10_000)
    skip: Few = 1
    rule: Annotated[Rule, config.ByName({rule.name: rule for rule in (EULER, HEUN)})] = EULER
    distance: config.DistanceChoice = SquaredL2()

    def term(self, context: Context) -> Term:
        student = context.denoising_student
        ladder = Ladder((*context.student_times(self.points)[:-1], context.schedule.t_min), self.skip)
        distance = self.distance.within(context.features)
        objective = ConsistencyDistillation(student, student, Fixed(context.teacher), ladder, self.rule, distance)
        return Term(objective, diffused(context, ladder.starts), self.weight, "consistency")

    def wrapped(self, student: Denoiser) -> Denoiser:
        return Boundary(student)


class ScoreRegularizedMethod(FollowsLearned):
    """``consistency``: along the teacher's trajectories. ``matching``: the weight of distribution
    matching, 0 leaves it out; ``weighting`` and ``times`` are its own.
    """

    kind: Literal["rcm"]
    consistency: Annotated[ContinuousTerm | DiscreteTerm, Field(discriminator="kind")] = ContinuousTerm(
        kind="continuous"
    )
    matching: NotNegative = 0.01
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    steps: Few = 4

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}),
        True,
        frozenset({"copy", "lora"}),
        ("teacher", "fake", "student"),
        ("teacher", "fake"),
        because={
            "generator": "consistency needs a student that is a denoiser",
            "backtracked": "without 'method.matching' it follows no scores",
        },
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"consistency": {"kind": "continuous", "sigma_data": 2.3}, "steps": 2}),
        "1 step, learned weight": Example(
            {"consistency": {"kind": "continuous", "sigma_data": 2.3, "log_weight": "learned"}, "steps": 1}
        ),
        "discrete": Example({"consistency": {"kind": "discrete", "points": 6, "skip": 2}, "steps": 2}),
        "images": Example({"consistency": {"kind": "continuous", "sigma_data": 0.75}, "steps": 2}, on_digits=True),
    }

    @model_validator(mode="after")
    def _trains_something(self) -> ScoreRegularizedMethod:
        if self.matching == 0 and self.consistency.weight == 0:
            raise ValueError("'matching' and 'consistency.weight' are both 0, so that nothing trains the student")
        return self

    @property
    def effective_traits(self) -> Traits:
        # A degraded target is followed by distribution matching alone.
        return replace(super().effective_traits, scores=self.matching > 0)

    def wrapped(self, student: Denoiser) -> Denoiser:
        return self.consistency.wrapped(student)

    def terms(self, followed: Followed) -> Sequence[Term]:
        terms = []
        if self.matching > 0:
            objective = DistributionMatching(
                followed.student, followed.fake, followed.target, self.times, self.weighting, followed.passes
            )
            terms.append(Term(objective, followed.states, self.matching, "matching"))
        if self.consistency.weight > 0:
            terms.append(self.consistency.term(followed.context))
        return terms
