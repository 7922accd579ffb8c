r"""The average of a model's weights over training (EMA), kept as a separate copy.

After update number n (from 1) the average moves by 1 - beta(n) towards the weights:

- ``HalfLife(h)``: beta = 0.5^(1 / min(h, ramp n)), an exponential average whose memory halves every
  h steps and is kept short at the start (Karras et al. 2022, whose ramp-up ratio is 0.05);
- ``PowerFunction(std)``: beta = (1 - 1 / n)^(gamma + 1), whose memory stays a fixed fraction of the
  run: its profile over training time is t^gamma, of relative width ``std`` (Karras et al. 2024, Eq.
  127: std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
"""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import annotated_types as at
import numpy as np
import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.values import NotNegative, Value


@dataclass(frozen=True)
class Decay(Value, abc.ABC):
    """How fast an average forgets."""

    @abc.abstractmethod
    def beta(self, update: int) -> float:
        """The weight of the old average at update number ``update`` (from 1)."""


@dataclass(frozen=True)
class HalfLife(Decay):
    """Halves its memory every ``steps``; ``ramp`` > 0 bounds the half-life by ramp times the
    updates so far.
    """

    kind: Literal["half-life"] = field(default="half-life", kw_only=True)
    steps: NotNegative = 200.0
    ramp: NotNegative = 0.05

    def beta(self, update: int) -> float:
        if self.steps <= 0:
            return 0.0
        return 0.5 ** (1 / min(self.steps, self.ramp * update) if self.ramp > 0 else 1 / self.steps)


@dataclass(frozen=True)
class PowerFunction(Decay):
    """Profile of relative width ``std`` in (0, 0.28): EDM2's 0.05, 0.10, ..."""

    kind: Literal["power"] = field(default="power", kw_only=True)
    std: Annotated[float, at.Interval(gt=0, lt=0.288)] = 0.1

    @property
    def gamma(self) -> float:
        """The positive root of Eq. 127 (Karras et al. 2024, Alg. 2)."""
        inverse = self.std**-2
        return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())

    def beta(self, update: int) -> float:
        return (1 - 1 / update) ** (self.gamma + 1)


class Averaged(nn.Module):
    """The averaged copy of ``model``; called like it. ``update`` moves it, never a gradient."""

    count: Tensor

    def __init__(self, model: nn.Module, decay: Decay):
        super().__init__()
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        # A buffer, so that the state dict is all that a checkpoint needs.
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        # The same on the host: reading the buffer waits for the device. None where it was loaded.
        self._begun: int | None = 0

    @property
    def updates(self) -> int:
        """How often it was updated."""
        return int(self.count)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.average(x, t, condition)

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        super()._load_from_state_dict(*arguments, **named)
        self._begun = None

    @torch.no_grad()
    def update(self, model: nn.Module, left_out: Tensor | None = None) -> None:
        """Moves towards the weights of ``model``, of which it was built; buffers are copied.

        Where ``left_out``, a scalar on the device, is not 0, nothing changes, and it must stay so:
        updates are counted on the host, which does not read it.
        """
        stays = (
            torch.zeros((), dtype=torch.bool, device=self.count.device)
            if left_out is None
            else (left_out != 0).to(self.count.device)
        )
        self.count += ~stays
        self._begun = self.updates if self._begun is None else self._begun + 1
        step = 1 - self.decay.beta(max(self._begun, 1))
        averages: list[Tensor] = list(self.average.parameters())
        # An average that stays is moved towards itself: what it would move to may be no number.
        values: list[Tensor] = (
            list(model.parameters())
            if left_out is None
            else [torch.where(stays, a, v) for a, v in zip(averages, model.parameters(), strict=True)]
        )
        if averages:
            torch._foreach_lerp_(averages, values, step)
        for average, value in zip(self.average.buffers(), model.buffers(), strict=True):
            average.copy_(torch.where(stays, average, value))
