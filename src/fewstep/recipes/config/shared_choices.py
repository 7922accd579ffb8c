"""Choices among values from below that several sections make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from fewstep.metrics.features import Features
from fewstep.objectives import DenoisingWeight, Distance, MatchingWeight, Perceptual
from fewstep.recipes.config.section import ByName, Choice, Kinds, Section
from fewstep.solvers import DPM2M, RULES, Churn, Rule
from fewstep.solvers.sampling import grid_said, grids_by_name
from fewstep.times import Grid, RhoGrid, TimeDistribution
from fewstep.training import Optimizer

TimesChoice = Annotated[TimeDistribution, Kinds()]
DenoisingWeighting = Annotated[DenoisingWeight, Kinds()]
MatchingWeighting = Annotated[MatchingWeight, Kinds()]


class _Optimizers(Kinds):
    def read(self, base: Any, given: Any) -> Any:
        # Recipes of earlier versions spell out Adam's betas for gradient descent, which has none.
        spelled = isinstance(given, Mapping) and given.get("kind") == "sgd" and given.get("betas") == [0.0, 0.999]
        return super().read(base, {key: value for key, value in given.items() if key != "betas"} if spelled else given)


OptimizerChoice = Annotated[Optimizer, _Optimizers("adam")]
RuleName = Annotated[Rule, ByName(RULES)]


class _Grids(Kinds):
    """A grid by its name alone, where it needs no more, or with its ``kind`` and what it needs."""

    def said(self, section: Any) -> Any:
        return grid_said(section)

    def read(self, base: Any, given: Any) -> Any:
        if isinstance(given, (Grid, Mapping)):
            return super().read(base, given)
        known = grids_by_name()
        if not isinstance(given, str) or given not in known:
            names = " or ".join(
                [*(f"'{name}'" for name in known), "a mapping such as {kind: timesteps, at: [999, 499]}"]
            )
            raise PydanticCustomError("literal_error", "Input should be {names}", {"names": names})
        return known[given]


GridName = Annotated[Grid, _Grids()]


class PerceptualDistance(Section):
    """In the feature space of the evaluation."""

    kind: Literal["perceptual"] = "perceptual"

    def within(self, features: Features) -> Distance:
        """The distance in a feature space."""
        return Perceptual(features)


class _Distances(Choice):
    def options(self, base: Any) -> Mapping[str, type[Any]]:
        return {**Distance.family(), "perceptual": PerceptualDistance}


DistanceChoice = Annotated[Distance | PerceptualDistance, _Distances()]


class SolverChoice(Section):
    rule: RuleName = DPM2M
    grid: GridName = RhoGrid()


class SamplerChoice(SolverChoice):
    """How a teacher's samples are made: a solver, and the noise added at its steps."""

    churn: Churn = Churn()

    @model_validator(mode="after")
    def _has_no_memory(self) -> Self:
        if self.churn.amount and self.rule.memory:
            raise ValueError(
                "'churn' goes with the rules euler and heun only, since dpm2m extrapolates from its last "
                "step; set 'rule: heun' or leave 'churn' out"
            )
        return self
