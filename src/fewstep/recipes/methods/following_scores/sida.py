"""Adversarial score identity distillation (SiDA, Zhou et al. 2024): SiD, and a critic on the trunk
of its fake score, which sees data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DMDWeight, ScoreIdentity
from fewstep.objectives.scores.fakes import Learned
from fewstep.recipes import config
from fewstep.recipes.kit.adversaries import FakeTrunk
from fewstep.recipes.kit.followed_scores import Followed, FollowsScores, LearnedFake, TrainedFakeChoice, several_steps
from fewstep.recipes.methods.method import Example, Traits
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.values import Few


class IdentityTrunk(FakeTrunk):
    """A fake score's trunk whose weights may be 0: with both at 0 the method is SiD."""

    weight: float = Field(0.01, ge=0)
    critic_weight: float = Field(0.03, ge=0)


class AdversarialIdentityMethod(FollowsScores):
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
    def effective_traits(self) -> Traits:
        return self.traits if self.steps == 1 else several_steps(self.traits)

    @property
    def own_score(self) -> TrainedFakeChoice:
        return self.fake

    @property
    def critic(self) -> IdentityTrunk:
        return self.adversarial

    def terms(self, followed: Followed) -> Sequence[Term]:
        assert isinstance(followed.fake, Learned)
        fake = followed.fake.denoiser
        identity = ScoreIdentity(
            followed.student, fake, followed.target, self.times, self.alpha, self.weighting, followed.passes
        )
        return [Term(identity, followed.states, name="identity")]
