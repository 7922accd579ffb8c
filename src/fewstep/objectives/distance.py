r"""How far two batches of samples are apart: one number a sample, for every objective that compares
samples.

- ``SquaredL2``: mean over dimensions of (a - b)^2;
- ``L1``: mean over dimensions of |a - b|;
- ``PseudoHuber``: sqrt(sum (a - b)^2 + c^2) - c, a smooth norm: its gradient is bounded (Song and
  Dhariwal 2023, Eq. 7);
- ``Perceptual``: mean over features of (phi(a) - phi(b))^2, phi a frozen network (LPIPS without its
  learned weights; Zhang et al. 2018).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fewstep.values import Positive, Value


@dataclass(frozen=True)
class Distance(Value, abc.ABC):
    """Called as ``distance(a (B, *D), b (B, *D)) -> (B,)``: symmetric, >= 0, and 0 for equal
    samples.
    """

    @abc.abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """See the class's docstring."""

    def within(self, features: Callable[[Tensor], Tensor]) -> Distance:
        """The distance itself, which needs no feature space."""
        return self


@dataclass(frozen=True)
class SquaredL2(Distance):
    """The mean squared difference."""

    kind: Literal["l2"] = field(default="l2", kw_only=True)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class L1(Distance):
    """The mean absolute difference."""

    kind: Literal["l1"] = field(default="l1", kw_only=True)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber(Distance):
    """sqrt(sum of squares + c^2) - c with ``c`` > 0; None is the paper's 0.00054 sqrt(d) for
    samples of d dimensions.
    """

    kind: Literal["pseudo-huber"] = field(default="pseudo-huber", kw_only=True)
    c: Positive | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        total = (a - b).square().flatten(1).sum(1)
        c = 0.00054 * math.sqrt(math.prod(a.shape[1:])) if self.c is None else self.c
        # The same number as sqrt(total + c^2) - c, without its cancellation for near samples.
        return total / (torch.sqrt(total + c**2) + c)


@dataclass(frozen=True)
class Perceptual(Distance):
    """The mean squared difference of ``features`` ((B, *D) -> (B, ...)), which must be frozen and
    let gradients pass to its input.
    """

    features: Callable[[Tensor], Tensor]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return SquaredL2()(self.features(a), self.features(b))
