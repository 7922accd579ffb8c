"""Score identity distillation (SiD, Zhou et al. 2024): distribution matching by the Fisher
divergence, its gradient taken through both networks.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DMDWeight, ScoreIdentity
from fewstep.objectives.scores.fakes import Learned
from fewstep.recipes import config
from fewstep.recipes.kit.followed_scores import Followed, FollowsLearned, LearnedFake, TrainedFakeChoice
from fewstep.recipes.methods.method import Example, Traits
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.values import Few


class FollowsIdentity(FollowsLearned, abc.ABC):
    """A method whose student is trained by the score identity; ``alpha``: of Eq. 23."""

    if TYPE_CHECKING:
        # Declared by each method, whose fields have an order that its runs are known by.
        alpha: float
        weighting: config.MatchingWeighting

    def terms(self, followed: Followed) -> Sequence[Term]:
        assert isinstance(followed.fake, Learned)
        fake = followed.fake.denoiser
        objective = ScoreIdentity(
            followed.student, fake, followed.target, self.times, self.alpha, self.weighting, followed.passes
        )
        return [Term(objective, followed.states, name="identity")]


class IdentityMethod(FollowsIdentity):
    """``alpha``: of Eq. 23; the paper uses 1 and 1.2. ``steps``: the student's."""

    kind: Literal["sid"]
    alpha: float = Field(1.2, ge=0)
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    steps: Few = 1

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}), True, frozenset({"copy", "lora", "generator"}), ("teacher", "fake", "student")
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "low rank": Example({"fake": {"kind": "lora", "rank": 2}}),
        "2 steps": Example({"steps": 2}),
        "images": Example({}, on_digits=True),
    }
