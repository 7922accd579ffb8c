"""Distribution matching: SDS, the unbiased estimate, VSD, Diff-Instruct, DMD and DMD2 are one
method, told apart by the fake score and by what is added to it.

- SDS: ``fake`` ``delta``; ``steps`` 1.
- unbiased estimate: ``fake`` ``field``; ``steps`` 1.
- VSD: ``fake`` ``lora``; ``steps`` 1.
- Diff-Instruct: ``fake`` ``learned``; ``steps`` 1.
- DMD: ``fake`` ``learned``; ``steps`` 1; added ``regression`` on pairs, weighting ``dmd``.
- DMD2: ``fake`` ``learned``; ``steps`` 1 to 4, own rollouts; added ``adversarial``, several updates
  of the fake score.

With ``target.kind: backtracked`` each is DisBack's version of it; with ``fixed`` it is the method
itself. One node equals the fixed target bit for bit, two nodes are the warm ablation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fewstep.objectives import DistributionMatching, DMDWeight, EndpointRegression, SquaredL2
from fewstep.recipes import config
from fewstep.recipes.building.parts import fitting_grid
from fewstep.recipes.kit.adversaries import AdversarialChoice
from fewstep.recipes.kit.followed_scores import FakeChoice, Followed, FollowsScores, LearnedFake, several_steps
from fewstep.recipes.kit.shares import drawn, planned
from fewstep.recipes.methods.method import Example, Traits
from fewstep.solvers import HEUN, Solver
from fewstep.states import Pairs
from fewstep.times import LogNormalTimes
from fewstep.training import Term
from fewstep.training.actions import Action, MakePairs
from fewstep.values import Costly, Few, Positive


class Regression(config.Section):
    """DMD's regression term: ``weight`` times a distance to the teacher's solution, on ``pairs``
    (no more than the run draws) made once by ``steps`` steps of the solver.
    """

    weight: Positive = 0.25
    pairs: Annotated[int, Field(ge=1, le=10_000_000), Costly(8)] = 5000
    steps: Few = 18
    solver: config.SolverChoice = config.SolverChoice(rule=HEUN)
    distance: config.DistanceChoice = SquaredL2()


class DistributionMatchingMethod(FollowsScores):
    """See the module's docstring."""

    kind: Literal["distribution-matching"]
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: FakeChoice = LearnedFake(kind="learned")
    steps: Few = 1
    regression: Regression | None = None
    adversarial: AdversarialChoice | None = None

    traits: ClassVar[Traits] = Traits(
        frozenset({"prior"}), True, frozenset({"copy", "lora", "generator"}), ("teacher", "fake", "student")
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "random start": Example({"fake": {"kind": "learned", "start": "random"}}),
        "low rank": Example({"fake": {"kind": "lora", "rank": 2}}),
        "delta": Example({"fake": {"kind": "delta"}, "weighting": {"kind": "sds"}}),
        "field": Example({"fake": {"kind": "field", "samples": 4}}),
        "2 steps": Example({"steps": 2, "fake": {"kind": "learned", "updates": 2}}),
        "field, 2 steps": Example({"fake": {"kind": "field", "samples": 4}, "steps": 2}),
        "regression": Example({"regression": {"pairs": 8, "steps": 2}}),
        "fake trunk": Example({"adversarial": {"kind": "fake-trunk"}}),
        "low rank, fake trunk": Example({"fake": {"kind": "lora", "rank": 2}, "adversarial": {"kind": "fake-trunk"}}),
        "fake trunk, 2 steps": Example({"adversarial": {"kind": "fake-trunk", "r1": 0.1}, "steps": 2}),
        "teacher trunk": Example({"adversarial": {"kind": "teacher-trunk"}}),
        "teacher trunk, delta": Example({"fake": {"kind": "delta"}, "adversarial": {"kind": "teacher-trunk"}}),
        "classifier features": Example({"adversarial": {"kind": "classifier-features"}}, on_digits=True),
        "images": Example({}, on_digits=True),
    }

    @property
    def effective_traits(self) -> Traits:
        traits = self.traits if self.steps == 1 else several_steps(self.traits)
        if not self.fake.learned:
            traits = replace(traits, roles=("teacher", "student"))
        if self.regression is not None or self.adversarial is not None:
            because = {
                **traits.because,
                "generator": "pairs of noise and sample, and data at the student's times, need a student that is a "
                "denoiser",
            }
            traits = replace(traits, students=traits.students - {"generator"}, because=because)
        return traits

    @property
    def own_score(self) -> FakeChoice:
        return self.fake

    @property
    def critic(self) -> AdversarialChoice | None:
        return self.adversarial

    def terms(self, followed: Followed) -> Sequence[Term]:
        matching = DistributionMatching(
            followed.student, followed.fake, followed.target, self.times, self.weighting, followed.passes
        )
        terms = [Term(matching, followed.states, name="matching")]
        if self.regression is not None:
            context, choice = followed.context, self.regression
            distance = choice.distance.within(context.features)
            terms.append(
                Term(
                    EndpointRegression(context.denoising_student, distance, None),
                    self._pairs(followed),
                    choice.weight,
                    "regression",
                )
            )
        return terms

    def begin(self, followed: Followed) -> Sequence[Action]:
        if self.regression is None:
            return ()
        context, choice = followed.context, self.regression
        grid = fitting_grid(
            choice.solver, context.schedule, "method.regression.solver", (choice.steps,), context.prior.time
        )
        solver = Solver(context.teacher, choice.steps, choice.solver.rule, grid)
        count = drawn(choice.pairs, planned(context.training), context.training)
        return [
            MakePairs(
                solver, context.prior, count, self._pairs(followed).path, context.training.seed, device=context.device
            )
        ]

    def _pairs(self, followed: Followed) -> Pairs:
        context = followed.context
        return Pairs(context.folder / "pairs.safetensors", context.schedule, context.prior.time, context.conditions)
