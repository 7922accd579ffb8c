r"""Thresholds of estimates of x0, for data in the symmetric range [-b, b].

- static: the nearest point of [-b, b]^D, as is usual in samplers (Lou and Ermon 2023, Sec. 2.3, take it for the discrete counterpart of reflection);
- dynamic (Saharia et al. 2022, Sec. 2.3): per sample s = max(b, the p-quantile of |x0|), x0 := clamp(x0, -s, s) b / s, which keeps saturated pixels from all meeting the bound;
- straight-through (Bengio et al. 2013): another threshold's value with the gradient of the identity.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError


@dataclass(frozen=True)
class Threshold(abc.ABC):
    """Maps estimates (B, *D) into the data's range."""

    @abc.abstractmethod
    def apply(self, x0: Tensor) -> Tensor:
        """The estimates (B, *D) within bounds, of the same type."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values from which ``threshold_from`` rebuilds it."""


@dataclass(frozen=True)
class StaticThreshold(Threshold):
    """Clamps to [-bound, bound]; an infinite bound changes nothing."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise UserError(f"StaticThreshold: the bound must be above 0, got {self.bound}.")

    def apply(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.bound, self.bound)

    def describe(self) -> dict[str, Any]:
        return {"kind": "static", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class DynamicThreshold(Threshold):
    """See the module's docstring; ``percentile`` p is a fraction in (0, 1], with Imagen's 0.995. Between order statistics the quantile is linear."""

    bound: float = 1.0
    percentile: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise UserError(f"DynamicThreshold: the bound must be above 0 and finite, got {self.bound}.")
        if not 0 < self.percentile <= 1:
            raise UserError(f"DynamicThreshold: the percentile must be a fraction in (0, 1], such as 0.995, got {self.percentile}.")

    def apply(self, x0: Tensor) -> Tensor:
        size = self._quantile(x0).clamp(min=self.bound).reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -size), size) * (self.bound / size)

    def _quantile(self, x0: Tensor) -> Tensor:
        # Sorted by hand, since torch.quantile refuses batches of large images.
        ordered = x0.abs().flatten(1).sort(dim=1).values
        place = self.percentile * (ordered.shape[1] - 1)
        low, high = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        return torch.lerp(low, high, place - math.floor(place))

    def describe(self) -> dict[str, Any]:
        return {"kind": "dynamic", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class StraightThrough(Threshold):
    """The value of ``threshold``, exactly, and the gradient of the identity: a student beyond the bound is still told where to go."""

    threshold: Threshold

    def apply(self, x0: Tensor) -> Tensor:
        return _Straight.apply(x0, self.threshold)

    def describe(self) -> dict[str, Any]:
        return {"kind": "straight-through", "of": self.threshold.describe()}


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


def threshold_from(description: Mapping[str, Any]) -> Threshold:
    """Rebuilds a threshold from ``describe``; raises ``UserError`` for an unknown kind or field, and for a straight-through of a straight-through, which says nothing new."""
    values = dict(description)
    kind = values.pop("kind", None)
    if kind == "straight-through" and set(values) == {"of"} and values["of"].get("kind") != kind:
        return StraightThrough(threshold_from(values["of"]))
    for name, cls in (("static", StaticThreshold), ("dynamic", DynamicThreshold)):
        if kind == name:
            unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
            if unknown:
                raise UserError(f"threshold '{kind}': unknown field '{min(unknown)}'.")
            return cls(**values)
    raise UserError(f"threshold: unknown kind or nesting '{kind}'; it must be static, dynamic, or straight-through of one of these.")
