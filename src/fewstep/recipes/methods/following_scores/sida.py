"""Adversarial score identity distillation (SiDA, Zhou et al. 2024): SiD, and a critic on the trunk
of its fake score, which sees data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DMDWeight
from fewstep.recipes import config
from fewstep.recipes.kit.adversaries import FakeTrunk
from fewstep.recipes.kit.followed_scores import LearnedFake, TrainedFakeChoice
from fewstep.recipes.methods.following_scores.sid import FollowsIdentity
from fewstep.recipes.methods.method import Example, Traits
from fewstep.times import LogNormalTimes
from fewstep.values import Few


class IdentityTrunk(FakeTrunk):
    """A fake score's trunk whose weights may be 0: with both at 0 the method is SiD."""

    weight: float = Field(0.01, ge=0)
    critic_weight: float = Field(0.03, ge=0)


class AdversarialIdentityMethod(FollowsIdentity):
    """``alpha``: of SiD's Eq. 23. ``adversarial``: the critic. ``steps``: the student's."""

    kind: Literal["sida"]
    alpha: float = Field(1.0, ge=0)
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    adversarial: IdentityTrunk = IdentityTrunk(kind="fake-trunk")
    steps: Few = 1

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}), True, frozenset({"copy", "lora"}), ("teacher", "fake", "student")
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "low rank": Example({"fake": {"kind": "lora", "rank": 2}}),
        "2 steps": Example({"steps": 2}),
        "images": Example({}, on_digits=True),
    }

    @property
    def critic(self) -> IdentityTrunk:
        return self.adversarial
