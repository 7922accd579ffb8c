"""Score identity distillation with long and short guidance (SiD-LSG, Zhou et al. 2024): SiD whose
fake score is guided where it is trained and where the student follows it.

The target's own scale is the recipe's ``target.guidance``, as in every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DMDWeight
from fewstep.objectives.scores.fakes import Learned
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.followed_scores import (
    FakeParts,
    LearnedFake,
    TrainedFakeChoice,
)
from fewstep.recipes.methods.following_scores.sid import FollowsIdentity
from fewstep.recipes.methods.method import Example, Traits
from fewstep.states import States
from fewstep.targets import ConstantGuidance
from fewstep.times import LogNormalTimes
from fewstep.values import Few, NotNegative


class GuidedIdentityMethod(FollowsIdentity):
    """``training_guidance``: the fake score's scale in its own training (kappa_1);
    ``fake_guidance``: its scale in the student's loss (kappa_2 = kappa_3); 1 is no guidance.
    """

    kind: Literal["sid-lsg"]
    alpha: float = Field(1.0, ge=0)
    training_guidance: NotNegative = 1.5
    fake_guidance: NotNegative = 1.5
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: TrainedFakeChoice = LearnedFake(kind="learned")
    steps: Few = 1

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}), True, frozenset({"copy", "lora", "generator"}), ("teacher", "fake", "student")
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"training_guidance": 1.0, "fake_guidance": 1.0}),
        "guided": Example({}, on_digits=True),
        "guided, low rank": Example({"fake": {"kind": "lora", "rank": 2}}, on_digits=True),
        "guided, 2 steps": Example({"steps": 2, "training_guidance": 2.0}, on_digits=True),
    }

    @property
    def guiding(self) -> tuple[str, ...]:
        scales = {"training_guidance": self.training_guidance, "fake_guidance": self.fake_guidance}
        return tuple(name for name, scale in scales.items() if scale != 1)

    def fake_parts(self, context: Context, states: States) -> FakeParts:
        parts = super().fake_parts(context, states)
        assert parts.learning is not None
        assert parts.phase is not None
        learning = replace(parts.learning, guidance=self.training_guidance, conditions=context.conditions)
        terms = [replace(term, objective=learning) for term in parts.phase.terms]
        network = ConstantGuidance(scale=self.fake_guidance).guided(learning.fake, context.conditions, 0.0)
        # The guided estimate is what leaves the data's range, so the threshold comes after it.
        score = Learned(context.reflected(network, "fake"))
        return replace(parts, score=score, learning=learning, phase=replace(parts.phase, terms=terms))
