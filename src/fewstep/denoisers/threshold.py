r"""Thresholds of estimates of x0, for data in the symmetric range [-b, b].

- static: the nearest point of [-b, b]^D, as is usual in samplers (Lou and Ermon 2023, Sec. 2.3,
  take it for the discrete counterpart of reflection);
- dynamic (Saharia et al. 2022, Sec. 2.3): per sample s = max(b, the p-quantile of |x0|), x0 :=
  clamp(x0, -s, s) b / s, which keeps saturated pixels from all meeting the bound;
- straight-through (Bengio et al. 2013): another threshold's value with the gradient of the
  identity.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import annotated_types as at
import torch
from torch import Tensor

from fewstep.values import Contradiction, Infinite, Positive, Value


@dataclass(frozen=True)
class Threshold(Value, abc.ABC):
    """Maps estimates (B, *D) into the data's range."""

    @abc.abstractmethod
    def apply(self, x0: Tensor) -> Tensor:
        """The estimates (B, *D) within bounds, of the same type."""


@dataclass(frozen=True)
class StaticThreshold(Threshold):
    """Clamps to [-bound, bound]; an infinite bound changes nothing."""

    kind: Literal["static"] = field(default="static", kw_only=True)
    bound: Annotated[float, at.Gt(0), Infinite()] = 1.0

    def apply(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class DynamicThreshold(Threshold):
    """See the module's docstring; ``percentile`` p is a fraction in (0, 1], with Imagen's 0.995.

    Between order statistics the quantile is linear.
    """

    kind: Literal["dynamic"] = field(default="dynamic", kw_only=True)
    bound: Positive = 1.0
    percentile: Annotated[float, at.Interval(gt=0, le=1)] = 0.995

    def apply(self, x0: Tensor) -> Tensor:
        size = self._quantile(x0).clamp(min=self.bound).reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -size), size) * (self.bound / size)

    def _quantile(self, x0: Tensor) -> Tensor:
        # Sorted by hand, since torch.quantile refuses batches of large images.
        ordered = x0.abs().flatten(1).sort(dim=1).values
        place = self.percentile * (ordered.shape[1] - 1)
        low, high = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        return torch.lerp(low, high, place - math.floor(place))


@dataclass(frozen=True)
class StraightThrough(Threshold):
    """The value of another threshold, exactly, and the gradient of the identity: a student beyond
    the bound is still told where to go.
    """

    kind: Literal["straight-through"] = field(default="straight-through", kw_only=True)
    of: Threshold

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.of, StraightThrough):
            raise Contradiction("StraightThrough: a nesting of two says nothing new; use the inner one alone.")

    def apply(self, x0: Tensor) -> Tensor:
        return _Straight.apply(x0, self.of)


class _Straight(torch.autograd.Function):
    # x0 + (value - x0).detach() would have the gradient too, but its value is off by a rounding.

    generate_vmap_rule = True

    @staticmethod
    def forward(x0: Tensor, threshold: Threshold) -> Tensor:
        return threshold.apply(x0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].clone()
