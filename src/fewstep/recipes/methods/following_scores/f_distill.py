"""f-distill (Xu, Nie and Vahdat 2025): distribution matching of an f-divergence, by the density
ratio that the critic sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DistributionMatching, Divergence, DMDWeight, JensenShannon, RatioWeight
from fewstep.recipes import config
from fewstep.recipes.kit.adversaries import FakeTrunk, TeacherTrunk
from fewstep.recipes.kit.followed_scores import Followed, FollowsLearned, LearnedFake, TrainedFakeChoice
from fewstep.recipes.methods.method import Example, Traits
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.values import Few


class FDistillMethod(FollowsLearned):
    """``divergence``: which; 'reverse-kl' is distribution matching with a critic.

    ``adversarial``: the critic, on noised samples.
    """

    kind: Literal["f-distill"]
    divergence: Annotated[Divergence, config.Kinds()] = JensenShannon()
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    adversarial: Annotated[FakeTrunk | TeacherTrunk, Field(discriminator="kind")] = FakeTrunk(kind="fake-trunk")
    steps: Few = 1

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}), True, frozenset({"copy", "lora"}), ("teacher", "fake", "student")
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "low rank": Example({"fake": {"kind": "lora", "rank": 2}}),
        "2 steps, teacher trunk": Example(
            {"steps": 2, "adversarial": {"kind": "teacher-trunk"}, "divergence": {"kind": "forward-kl"}}
        ),
        "images": Example({}, on_digits=True),
    }

    @property
    def critic(self) -> FakeTrunk | TeacherTrunk:
        return self.adversarial

    def terms(self, followed: Followed) -> Sequence[Term]:
        assert followed.adversary is not None
        weight = RatioWeight(self.weighting, self.divergence, followed.adversary.critic)
        matching = DistributionMatching(
            followed.student, followed.fake, followed.target, self.times, weight, followed.passes
        )
        return [Term(matching, followed.states, name="matching")]
