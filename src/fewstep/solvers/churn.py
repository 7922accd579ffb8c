r"""Noise that is added and taken away again at each step of a solver: the stochastic sampler of
Karras et al. 2022 (Alg. 2).

In y = x / alpha over rho = sigma / alpha (see ``rule``), a step from t first goes up to the level
of t^, and then takes the solver's step from there,

    rho(t^) = (1 + gamma) rho(t),    gamma = min(amount / steps, sqrt(2) - 1)  for  low <= rho(t) <=
    high, else 0,
    y^ = y + noise sqrt(rho(t^)^2 - rho(t)^2) eps,    eps ~ N(0, I).

``amount``, ``low``, ``high`` and ``noise`` are the paper's S_churn, S_min, S_max and S_noise. eps
is a function of a place, of t and of the sample's index, as every draw here, and no generator's
next number. With gamma = 0 a step is the solver's own, bit for bit. Networks are called up to t_max
only, so that t^ never lies above it; where alpha = 0 nothing is added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import Schedule
from fewstep.solvers.rule import Rule, solve
from fewstep.values import Contradiction, Count, Positive, Value

Level = Annotated[float, Interval(ge=0, le=1e6)]


@dataclass(frozen=True)
class Churn(Value):
    """See the module's docstring; an ``amount`` of 0 adds nothing. ``high``: None for no bound.

    ``from_steps``: with fewer steps nothing is added, so that a recipe measures its teacher in few
    steps without, and in many with it, as the paper does.
    """

    amount: Level = 0.0
    low: Level = 0.0
    high: Positive | None = None
    noise: Annotated[float, Interval(gt=0, le=100)] = 1.0
    from_steps: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high is not None and self.low > self.high:
            raise Contradiction(
                f"'low' is {self.low:g} and 'high' {self.high:g}; the level from which noise is added must "
                "not lie above that up to which it is"
            )

    def at(self, steps: int) -> Churn:
        """What is added at the steps of a sampler of so many."""
        return NO_CHURN if steps < self.from_steps else self

    def lifted_time(self, schedule: Schedule, t: Tensor, steps: int) -> Tensor:
        """t^ for a scalar time t of a grid of ``steps`` steps; t itself where nothing is added."""
        rho = float(schedule.rho(t)) if float(schedule.alpha(t)) > 0 else math.inf
        gamma = min(self.amount / steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.low <= rho <= (math.inf if self.high is None else self.high) or math.isinf(rho):
            return t
        return schedule.time_at_sigma((1 + gamma) * rho).clamp(max=schedule.t_max)


NO_CHURN = Churn()


def solve_with_churn(
    rule: Rule,
    churn: Churn,
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    key: Key,
    start: int = 0,
    condition: Condition | Tensor | None = None,
) -> Tensor:
    """``solve`` with noise added at each step, drawn at ``key`` for the samples ``start`` ... of
    the global batch. It takes as many evaluations.

    Raises ``UserError`` for a rule with memory, whose last step would not lead to where the next
    begins.
    """
    if not churn.amount:
        return solve(rule, denoiser, x, times, condition)
    if rule.memory:
        raise UserError(
            f"solver rule '{rule.name}' extrapolates from its last step, which churn moves away from: use "
            "'euler' or 'heun', or a churn of 0."
        )
    schedule, steps = denoiser.schedule, len(times) - 1
    for t, s in pairwise(times):
        above = churn.lifted_time(schedule, t, steps)
        # Rounding may put a lifted time below its own; nothing is added then, as where gamma is 0.
        if float(above) > float(t):
            x = _noised(churn, schedule, x, t, above, key, start)
        else:
            above = t
        x = solve(rule, denoiser, x, torch.stack([above, s]), condition)
    return x


def _noised(churn: Churn, schedule: Schedule, x: Tensor, t: Tensor, above: Tensor, key: Key, start: int) -> Tensor:
    ratio = float(schedule.alpha(above) / schedule.alpha(t))
    added = float(schedule.alpha(above)) * math.sqrt(float(schedule.rho(above)) ** 2 - float(schedule.rho(t)) ** 2)
    noise = key.normal(f"churn-{float(t):.12g}", x.shape, start).to(x)
    return ratio * x + churn.noise * added * noise
