"""Decoupled DMD (Liu et al. 2025): distribution matching to the target without guidance, and the
augmentation by guidance, each with times and a weight of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DistributionMatching, DMDWeight, GuidanceAugmentation
from fewstep.recipes import config
from fewstep.recipes.kit.followed_scores import Followed, FollowsLearned, LearnedFake, TrainedFakeChoice
from fewstep.recipes.methods.method import Example, Traits
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.values import Few


class DecoupledMethod(FollowsLearned):
    """``guidance``: the scale of the augmentation, at least 1; at 1 there is none.

    ``weighting``, ``times``: of distribution matching; ``augmentation_weighting``,
    ``augmentation_times``: of the augmentation.
    """

    kind: Literal["decoupled-dmd"]
    guidance: float = Field(2.0, ge=1)
    weighting: config.MatchingWeighting = DMDWeight()
    augmentation_weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    augmentation_times: config.TimesChoice = LogNormalTimes()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    steps: Few = 1

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}),
        True,
        frozenset({"copy", "lora", "generator"}),
        ("teacher", "fake", "student"),
        guided=False,
        because={"guided": "it takes the guidance out of the target and gives it a term of its own, 'method.guidance'"},
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"guidance": 1.0}),
        "guided": Example({}, on_digits=True),
        "guided, low rank": Example({"fake": {"kind": "lora", "rank": 2}}, on_digits=True),
        "guided, 2 steps": Example({"steps": 2}, on_digits=True),
    }

    @property
    def guiding(self) -> tuple[str, ...]:
        return () if self.guidance == 1 else ("guidance",)

    def terms(self, followed: Followed) -> Sequence[Term]:
        matching = DistributionMatching(
            followed.student, followed.fake, followed.target, self.times, self.weighting, followed.passes
        )
        terms = [Term(matching, followed.states, name="matching")]
        if self.guidance != 1:
            augmentation = GuidanceAugmentation(
                followed.student,
                followed.target,
                self.augmentation_times,
                self.augmentation_weighting,
                followed.context.conditions,
                followed.passes,
            )
            terms.append(Term(augmentation, followed.states, self.guidance - 1, "augmentation"))
        return terms
