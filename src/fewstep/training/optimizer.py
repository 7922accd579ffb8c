"""Optimizers as values: what a phase asks for, built when its stage begins."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import annotated_types as at
import torch
from torch import Tensor, nn

from fewstep.system import distributed
from fewstep.values import MOST, BelowOne, Costly, Fraction, Later, NotNegative, Positive, Value

Warmup = Annotated[int, at.Interval(ge=0, le=MOST), Costly(4)]


@dataclass(frozen=True)
class Optimizer(Value, abc.ABC):
    """The rate rises linearly over ``warmup`` steps, stays at ``lr``, and falls to 0 over the last
    ``decay`` fraction of a stage of known length: along half a cosine, or, with ``decay_along``
    "line", along a line (DDIL's "linear schedule", Garrepalli et al. 2024, Sec. 5).

    ``clip`` bounds the norm of the gradient, None for no bound. ``weight_decay`` is decoupled from
    the gradient (Loshchilov and Hutter 2019) in Adam, and a penalty in plain gradient descent,
    where the two are one.
    """

    lr: Positive = 1e-4
    weight_decay: NotNegative = 0.0
    warmup: Warmup = 0
    decay: Fraction = 0.0
    decay_along: Annotated[Literal["cosine", "line"], Later()] = field(default="cosine", kw_only=True)
    clip: Positive | None = field(default=None, kw_only=True)

    @property
    @abc.abstractmethod
    def moments(self) -> int:
        """How many numbers it keeps for each parameter."""

    @abc.abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer of the parameters."""

    def rate(self, step: int, total: int | None) -> float:
        """The learning rate of step ``step`` (from 0) of a stage of ``total`` steps, None when its
        length is not known.
        """
        rate = self.lr * min(1.0, (step + 1) / (self.warmup + 1))
        if total is not None and self.decay > 0:
            begin = total * (1 - self.decay)
            if step > begin:
                gone = (step - begin) / (total - begin)
                rate *= 1 - gone if self.decay_along == "line" else 0.5 * (1 + math.cos(math.pi * gone))
        return rate


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015)."""

    kind: Literal["adam"] = field(default="adam", kw_only=True)
    betas: tuple[BelowOne, BelowOne] = (0.0, 0.999)
    eps: Annotated[Positive, Later()] = 1e-8

    @property
    def moments(self) -> int:
        return 2

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        # The fused implementation updates all parameters in one pass; it exists for CPU and CUDA.
        return torch.optim.AdamW(
            list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, w <- w - lr (g + weight_decay w), without momentum: what DisBack trains its
    LSUN generators with (App. B.2).
    """

    kind: Literal["sgd"] = field(default="sgd", kw_only=True)

    @property
    def moments(self) -> int:
        return 0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        values = list(parameters)
        # Torch has no fused implementation for sharded parameters.
        whole = all(distributed.part(value) is value for value in values)
        return torch.optim.SGD(values, lr=self.lr, weight_decay=self.weight_decay, fused=whole)


def step_unless(optimizer: torch.optim.Optimizer, left_out: Tensor) -> None:
    """A step of the optimizer, unless ``left_out``, a float32 scalar on the device, is not 0:
    weights, moments and counters then stay as they are, whatever the gradients.

    Fused optimizers look at the scalar on the device (torch made that for gradient scalers); for
    another one it is read.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        vars(optimizer).update(found_inf=left_out, grad_scale=None)
        optimizer.step()
    elif not bool(left_out):
        optimizer.step()
