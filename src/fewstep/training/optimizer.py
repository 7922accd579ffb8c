"""Optimizers as values: what a phase asks for, built when its stage begins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fewstep.errors import UserError


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019).

    The rate rises linearly over ``warmup`` steps, stays at ``lr``, and over the last ``decay`` fraction of a stage of known length falls to 0 along half a cosine.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise UserError(f"Adam: need lr > 0, warmup >= 0 and decay in [0, 1], got {self.lr}, {self.warmup} and {self.decay}.")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer of the parameters."""
        # The fused implementation updates all parameters in one pass; it exists for CPU and CUDA.
        return torch.optim.AdamW(list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)

    def rate(self, step: int, total: int | None) -> float:
        """The learning rate of step ``step`` (from 0) of a stage of ``total`` steps, None when its length is not known."""
        rate = self.lr * min(1.0, (step + 1) / (self.warmup + 1))
        if total is not None and self.decay > 0:
            begin = total * (1 - self.decay)
            if step > begin:
                rate *= 0.5 * (1 + math.cos(math.pi * (step - begin) / (total - begin)))
        return rate
