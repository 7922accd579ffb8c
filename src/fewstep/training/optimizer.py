"""Optimizers as values: what a phase asks for, built when its stage begins."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep import distributed
from fewstep.errors import UserError


@dataclass(frozen=True)
class Optimizer(abc.ABC):
    """The rate rises linearly over ``warmup`` steps, stays at ``lr``, and over the last ``decay`` fraction of a stage of known length falls to 0 along half a cosine,
    or, with ``along`` "line", along a line (DDIL's "linear schedule", Garrepalli et al. 2024, Sec. 5).

    ``weight_decay`` is decoupled from the gradient (Loshchilov and Hutter 2019) in Adam, and a penalty in plain gradient descent, where the two are one.
    """

    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 0
    decay: float = 0.0
    along: Literal["cosine", "line"] = field(default="cosine", kw_only=True)

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise UserError(f"{type(self).__name__}: need lr > 0, warmup >= 0 and decay in [0, 1], got {self.lr}, {self.warmup} and {self.decay}.")

    @property
    @abc.abstractmethod
    def moments(self) -> int:
        """How many numbers it keeps for each parameter."""

    @abc.abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer of the parameters."""

    def rate(self, step: int, total: int | None) -> float:
        """The learning rate of step ``step`` (from 0) of a stage of ``total`` steps, None when its length is not known."""
        rate = self.lr * min(1.0, (step + 1) / (self.warmup + 1))
        if total is not None and self.decay > 0:
            begin = total * (1 - self.decay)
            if step > begin:
                gone = (step - begin) / (total - begin)
                rate *= 1 - gone if self.along == "line" else 0.5 * (1 + math.cos(math.pi * gone))
        return rate


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015)."""

    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8

    @property
    def moments(self) -> int:
        return 2

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        # The fused implementation updates all parameters in one pass; it exists for CPU and CUDA.
        return torch.optim.AdamW(list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, w <- w - lr (g + weight_decay w), without momentum: what DisBack trains its LSUN generators with (App. B.2)."""

    @property
    def moments(self) -> int:
        return 0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        values = list(parameters)
        # Torch has no fused implementation for sharded parameters.
        whole = all(distributed.part(value) is value for value in values)
        return torch.optim.SGD(values, lr=self.lr, weight_decay=self.weight_decay, fused=whole)


def step_unless(optimizer: torch.optim.Optimizer, left_out: Tensor) -> None:
    """A step of the optimizer, unless ``left_out``, a float32 scalar on the device, is not 0: weights, moments and counters then stay as they are, whatever the gradients.

    Fused optimizers look at the scalar on the device (torch made that for gradient scalers); for another one it is read.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        vars(optimizer).update(found_inf=left_out, grad_scale=None)
        optimizer.step()
    elif not bool(left_out):
        optimizer.step()
