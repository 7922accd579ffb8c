r"""Probabilities of named alternatives, and how they change over a stage.

DDIL's priors beta (Garrepalli et al. 2024, Alg. 1) are probabilities that sum to 1: with w_1, ...,
w_K and one uniform number u, alternative k is chosen when

    w_1 + ... + w_{k-1} <= u < w_1 + ... + w_k.

The listing compares u with beta_teacher alone where the sum beta_forward + beta_teacher is meant;
sums are what is used here. An alternative of weight 0 is never chosen.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError


@dataclass(frozen=True, eq=False)
class Weights(abc.ABC):
    """A probability for each of some names, as a function of the step within the stage."""

    @property
    @abc.abstractmethod
    def names(self) -> frozenset[str]:
        """The alternatives."""

    @abc.abstractmethod
    def at(self, step: int) -> dict[str, float]:
        """Probabilities >= 0 that sum to 1, at a step of the stage (from 0)."""

    def choose(self, names: Sequence[str], step: int, u: Tensor) -> Tensor:
        """Indices into ``names`` (all of this object's, in any order), int64, from uniform numbers
        u in [0, 1) of the same shape.
        """
        weights = self.at(step)
        bounds = torch.cumsum(torch.tensor([weights[name] for name in names], dtype=torch.float64), 0)
        # Divided by its last entry, so that rounding leaves no gap below 1.
        return torch.searchsorted(bounds / bounds[-1], u.to(torch.float64), right=True)


@dataclass(frozen=True, eq=False)
class Constant(Weights):
    """The same probabilities at every step, proportional to ``weights``.

    Raises ``UserError`` for a negative weight, and unless their sum is positive and finite.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        _normalised(self.weights)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.weights)

    def at(self, step: int) -> dict[str, float]:
        return _normalised(self.weights)


@dataclass(frozen=True, eq=False)
class Linear(Weights):
    """From ``start`` at step 0 to ``end`` at step ``steps`` >= 1, each normalised, linearly
    between; it stays at ``end`` afterwards.

    Raises ``UserError`` where ``Constant`` does, when start and end have different names, and for
    fewer than 1 step.
    """

    start: Mapping[str, float]
    end: Mapping[str, float]
    steps: int

    def __post_init__(self) -> None:
        _normalised(self.start)
        _normalised(self.end)
        if set(self.start) != set(self.end):
            raise UserError(
                f"weights that move need the same names at start and end, got {_listed(self.start)} and "
                f"{_listed(self.end)}; give the missing ones the weight 0."
            )
        if self.steps < 1:
            raise UserError(
                f"weights that move need at least 1 step to do so, got {self.steps}; use Constant for "
                "weights that stay."
            )

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.start)

    def at(self, step: int) -> dict[str, float]:
        share = min(step / self.steps, 1.0)
        start, end = _normalised(self.start), _normalised(self.end)
        return _normalised({name: (1 - share) * start[name] + share * end[name] for name in start})


def check_names(what: str, parts: Mapping[str, Any], weights: Weights) -> None:
    """Raises ``UserError`` unless ``weights`` are over exactly the names of ``parts``."""
    if set(parts) != weights.names:
        raise UserError(
            f"{what}: the weights are over {_listed(weights.names)}, but the parts are {_listed(parts)}; "
            "name them alike."
        )


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    if any(not value >= 0 for value in weights.values()) or not 0 < total < math.inf:
        raise UserError(f"weights must be numbers >= 0, at least one of them above 0, got {dict(weights)}.")
    return {name: value / total for name, value in weights.items()}


def _listed(names: Mapping[str, Any] | frozenset[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"
