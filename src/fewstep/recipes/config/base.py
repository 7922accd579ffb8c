"""What sections of a recipe are made of: strict models, counts that scale with the run, optimizers, times and weights.

A number of steps that is a share of the whole run is marked ``Share``: overriding ``training.steps`` scales it along.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.fields import FieldInfo

from fewstep.locations import Hub


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and values are not coerced from other types beyond int to float."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _as_saved(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Its values, less what is marked ``Later`` and has its default."""
        values: dict[str, Any] = plain(self)
        return {key: value for key, value in values.items() if not _is_unsaid(type(self).model_fields.get(key), value)}


class Later:
    """Marks a setting that earlier versions did not have.

    A section says it only where it has not its default. A run is known by what its recipe says
    (``runs.identity``), so a run of an earlier version keeps its name.
    """


def _is_unsaid(field: FieldInfo | None, value: Any) -> bool:
    return field is not None and any(isinstance(mark, Later) for mark in field.metadata) and value == field.default


class Share:
    """Marks a count of steps that keeps its proportion to ``training.steps``."""


@dataclass(frozen=True)
class Names:
    """Marks a field whose value names what lies outside the recipe.

    ``weights``: a file or folder of them; ``shipped``: weights in this package, by name; ``data``:
    images, a data set or shards; ``recipe``: another recipe. A value may be an address, or an id of
    ``hub`` where that is given. By this mark paths are found (``recipes.places``), and what a
    checksum is taken of (``recipes.origins``). ``file``: the name of what ships, where it is not the
    value.
    """

    what: Literal["weights", "shipped", "data", "recipe"]
    hub: Hub | None = None
    file: str | None = None


def marks_of(field: FieldInfo) -> Iterator[Any]:
    """What a field is annotated with, also where the annotation is of one of its alternatives."""
    yield from field.metadata
    for part in typing.get_args(field.annotation):
        yield from getattr(part, "__metadata__", ())


WeightsPath = Annotated[str, Names("weights")]

MOST = 99_999_999
"""Of anything that is counted: a checkpoint's name has eight digits."""

Count = Annotated[int, Field(ge=1, le=MOST)]
Steps = Annotated[int, Field(ge=1, le=MOST), Share()]
Positive = Annotated[float, Field(gt=0)]
Few = Annotated[int, Field(ge=1, le=10_000)]
"""Points of a grid or steps of a sampler: what is listed in full, or nested, before a run begins."""

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What torch takes as one."""


class LogNormal(Section):
    kind: Literal["log-normal"]
    mean: float = -1.2
    std: Positive = 1.2


class Uniform(Section):
    kind: Literal["uniform"]
    low: float | None = Field(None, ge=0, le=1)
    high: float | None = Field(None, ge=0, le=1)


class RhoUniform(Section):
    kind: Literal["rho"]
    exponent: Positive = 7.0
    low: Positive | None = None
    high: Positive | None = None


TimesChoice = Annotated[LogNormal | Uniform | RhoUniform, Field(discriminator="kind")]


class EDMWeighting(Section):
    kind: Literal["edm"]
    sigma_data: Positive = 0.5


class ScoreWeighting(Section):
    kind: Literal["score"]


DenoisingWeighting = Annotated[EDMWeighting | ScoreWeighting, Field(discriminator="kind")]


class Optimizer(Section):
    """See ``fewstep.training.optimizer``; ``betas`` are Adam's. ``decay_along``: how the rate falls. ``clip``: bound on the gradient's norm, null for none."""

    kind: Literal["adam", "sgd"] = "adam"
    lr: Positive = 1e-4
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.0, 0.999], min_length=2, max_length=2)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0, le=MOST)
    decay: float = Field(0.0, ge=0, le=1)
    decay_along: Annotated[Literal["cosine", "line"], Later()] = "cosine"
    clip: Positive | None = None

    @model_validator(mode="after")
    def _betas_are_adams(self) -> Optimizer:
        if self.kind == "sgd" and self.betas != [0.0, 0.999]:
            raise ValueError(f"'betas' are {self.betas}, but 'kind: sgd' has none; leave them out")
        return self


class SquaredL2Distance(Section):
    kind: Literal["l2"]


class L1Distance(Section):
    kind: Literal["l1"]


class PseudoHuberDistance(Section):
    """``c``: 0.00054 times the root of the number of dimensions unless given (Song and Dhariwal 2023)."""

    kind: Literal["pseudo-huber"]
    c: Positive | None = None


class PerceptualDistance(Section):
    """In the feature space of the evaluation."""

    kind: Literal["perceptual"]


DistanceChoice = Annotated[SquaredL2Distance | L1Distance | PseudoHuberDistance | PerceptualDistance, Field(discriminator="kind")]


class SolverChoice(Section):
    rule: Literal["euler", "heun", "dpm2m"] = "dpm2m"
    grid: Literal["rho", "log-snr", "uniform"] = "rho"


class ChurnChoice(Section):
    """The stochastic sampler of Karras et al. 2022 (Alg. 2): ``amount`` is its S_churn, ``low`` and ``high`` S_min and S_max (sigma / alpha; no bound above unless given), ``noise`` S_noise.

    ``from_steps``: with fewer steps nothing is added, so that a recipe measures its teacher in few steps without, and in many with it, as the paper does.
    """

    amount: float = Field(0.0, ge=0, le=1e6)
    low: float = Field(0.0, ge=0, le=1e6)
    high: Positive | None = None
    noise: float = Field(1.0, gt=0, le=100)
    from_steps: Count = 1

    @model_validator(mode="after")
    def _levels_in_order(self) -> Self:
        if self.high is not None and self.low > self.high:
            raise ValueError(f"'low' is {self.low:g} and 'high' {self.high:g}; the level from which noise is added must not lie above that up to which it is")
        return self


class SamplerChoice(SolverChoice):
    """How a teacher's samples are made: a solver, and the noise added at its steps."""

    churn: ChurnChoice = ChurnChoice()

    @model_validator(mode="after")
    def _has_no_memory(self) -> Self:
        if self.churn.amount and self.rule == "dpm2m":
            raise ValueError("'churn' goes with the rules euler and heun only, since dpm2m extrapolates from its last step; set 'rule: heun' or leave 'churn' out")
        return self
