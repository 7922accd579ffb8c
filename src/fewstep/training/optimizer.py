"""Optimizers as values: what a phase asks for, built when its stage begins."""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import annotated_types as at
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.values import MOST, BelowOne, Costly, Fraction, Later, NotNegative, Positive, Value

Warmup = Annotated[int, at.Interval(ge=0, le=MOST), Costly(4)]
# What bitsandbytes does: moments of fewer numbers stay in float32, others have a scale a block.
_FEWEST_OF_8_BITS, _BLOCK, _MAPS = 4096, 256, 2 * 256 * 4


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

    @abc.abstractmethod
    def moment_bytes(self, parameters: Iterable[Tensor]) -> int:
        """Bytes of what it remembers of the parameters' numbers, its counters of steps left out."""

    def check(self, sharded: bool) -> None:
        """Raises ``UserError`` where it cannot be built here; ``sharded``: whether its parameters
        will be divided among processes. The sentence begins with a verb, after what it is of.
        """
        return

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
class TwoMoments(Optimizer, abc.ABC):
    """Steps along a mean of gradients over the root of a mean of their squares, whose memories are
    ``betas``; ``eps`` is added to the root.
    """

    betas: tuple[BelowOne, BelowOne] = (0.0, 0.999)
    eps: Annotated[Positive, Later()] = 1e-8


@dataclass(frozen=True)
class Adam(TwoMoments):
    """Adam (Kingma and Ba 2015)."""

    kind: Literal["adam"] = field(default="adam", kw_only=True)

    def moment_bytes(self, parameters: Iterable[Tensor]) -> int:
        return sum(2 * parameter.numel() * parameter.element_size() for parameter in parameters)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        # The fused implementation updates all parameters in one pass; it exists for CPU and CUDA.
        return torch.optim.AdamW(
            list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class Adam8bit(TwoMoments):
    """Adam whose moments are kept in 8 bits (Dettmers et al. 2022), by the library bitsandbytes.

    A moment is one byte, an index into a map of 256 values, times a float32 scale for each 256
    numbers. Tensors of fewer than 4096 numbers keep moments of float32. Steps are taken in float32,
    so that what is rounded is what is remembered. The host waits for the device at each step.
    """

    kind: Literal["adam8bit"] = field(default="adam8bit", kw_only=True)

    def moment_bytes(self, parameters: Iterable[Tensor]) -> int:
        sizes = [parameter.numel() for parameter in parameters]
        long = sum(2 * 4 * size for size in sizes if size < _FEWEST_OF_8_BITS)
        short = sum(2 * (size + 4 * math.ceil(size / _BLOCK)) for size in sizes if size >= _FEWEST_OF_8_BITS)
        # The two maps, one for numbers with a sign and one for squares, are shared by all tensors.
        return long + short + (_MAPS if short else 0)

    def check(self, sharded: bool) -> None:
        if sharded:
            raise UserError(
                "has 'optimizer.kind: adam8bit', whose library bitsandbytes does not know parameters that "
                "'distributed.mode: fsdp' divides; use 'optimizer.kind: adam', or 'distributed.mode: ddp'."
            )
        _bitsandbytes()

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        built: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(
            list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        return built


def _bitsandbytes() -> Any:
    """The library; raises ``UserError`` where it is missing."""
    # What it says on import of kernels for other things than optimizers is no business of a run.
    logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            "has 'optimizer.kind: adam8bit', which needs bitsandbytes, and that is not installed: "
            "pip install 'fewstep[bitsandbytes]', or use 'optimizer.kind: adam'."
        ) from error
    return bitsandbytes


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, w <- w - lr (g + weight_decay w), without momentum: what DisBack trains its
    LSUN generators with (App. B.2).
    """

    kind: Literal["sgd"] = field(default="sgd", kw_only=True)

    def moment_bytes(self, parameters: Iterable[Tensor]) -> int:
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
