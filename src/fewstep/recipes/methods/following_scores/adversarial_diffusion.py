"""Adversarial diffusion distillation (ADD, Sauer et al. 2023): a hinge GAN on frozen features, and
the teacher's estimate of the noised sample as a target (SDS in x0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, ClassVar, Literal

from fewstep.objectives import DistributionMatching, ExponentialWeight, MatchingWeight, SDSWeight
from fewstep.recipes import config
from fewstep.recipes.kit.adversaries import AdversarialChoice, TeacherTrunk
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.followed_scores import Followed, FollowsScores
from fewstep.recipes.kit.state_sources import states_of_data
from fewstep.recipes.methods.method import Example, Traits
from fewstep.states import States
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.values import Few, Positive


class AdversarialDiffusionMethod(FollowsScores):
    """``distillation``: the weight of the distillation's term, a mean over dimensions (the paper's
    lambda, 2.5, against an adversarial weight of 1); ``weighting``: the paper's two.
    """

    kind: Literal["adversarial-diffusion"]
    weighting: Annotated[MatchingWeight, config.ByName({"exponential": ExponentialWeight(), "sds": SDSWeight()})] = (
        ExponentialWeight()
    )
    distillation: Positive = 2.5
    times: config.TimesChoice = LogNormalTimes()
    adversarial: AdversarialChoice = TeacherTrunk(kind="teacher-trunk", weight=1.0, loss="hinge", r1=1e-5)
    steps: Few = 4

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}), True, roles=("teacher", "student")
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"steps": 2}),
        "1 step": Example({"steps": 1, "weighting": "sds"}),
        "classifier features": Example({"steps": 2, "adversarial": {"kind": "classifier-features"}}, on_digits=True),
    }

    @property
    def critic(self) -> AdversarialChoice:
        return self.adversarial

    def states(self, context: Context) -> States:
        return states_of_data(context)

    def terms(self, followed: Followed) -> Sequence[Term]:
        matching = DistributionMatching(
            followed.student, followed.fake, followed.target, self.times, self.weighting, followed.passes
        )
        # Distribution matching sums over dimensions; the paper's distance, which lambda weighs
        # against logits, is a mean.
        return [Term(matching, followed.states, self.distillation / prod(followed.context.space.shape), "distillation")]
