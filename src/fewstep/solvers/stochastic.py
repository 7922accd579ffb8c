r"""Jumps of a trajectory model that land below the next time and are noised up to it.

**Gamma-sampling** (Kim et al. 2024, Alg. 3): how much of each jump's noise is drawn anew. A jump
from t to s goes to s~ first and is noised from there to s. With rho = sigma / alpha,

    rho(s~) = sqrt(1 - gamma^2) rho(s),    x_s = alpha_s / alpha_s~ G(x, t, s~) + gamma sigma_s eps,
    eps ~ N(0, I),

so that x_s has the noise level of s whatever gamma is.

**Strategic stochastic sampling** (TCD, Zheng et al. 2024, arXiv:2402.19159): how far below the next
time each jump goes. s~ = (1 - gamma) s, in the schedule's own time, and the forward process carries
the sample from there to s (``renoised``), so that how much noise is new follows from the schedule.

In both gamma = 0 is the deterministic jump G(x, t, s), with no noise drawn; gamma = 1 goes to clean
samples and noises them again, as consistency models do (``Renoise``). A jump to s = 0 is G(x, t,
0). With gamma = 0, s may lie after t: a model that was trained for it (``InverseConsistency``) then
carries data to noise.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import TrajectoryDenoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import as_time, expand
from fewstep.solvers.flow_map import FlowMap
from fewstep.solvers.transition import renoised


@dataclass(frozen=True, eq=False)
class StochasticJumps(FlowMap, abc.ABC):
    """See the module's docstring; ``gamma`` in [0, 1].

    The noise of the jump to s is a function of ``key`` and of s, from sample ``start`` on, and the
    same as ``Renoise``'s. Raises ``UserError`` for another gamma, and for a jump to a later time
    with gamma > 0.
    """

    named: ClassVar[str]

    model: TrajectoryDenoiser
    gamma: float
    key: Key = field(default_factory=lambda: Key(0))
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UserError(f"{self.named}: gamma must be in [0, 1], got {self.gamma}.")

    def at(self, key: Key, start: int = 0) -> Self:
        """The same map drawing its noise from another place, from sample ``start`` on."""
        return replace(self, key=key, start=start)

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        if self.gamma == 0 or float(s) == 0:
            return self.model.jump(x, t, s, condition)
        if float(s) > float(t):
            raise UserError(
                f"{self.named} from t = {float(t):g} up to s = {float(s):g}: only gamma = 0 carries data "
                f"to noise, here it is {self.gamma}."
            )
        until = as_time(s)
        below = self.below(until)
        noise = self.key.normal(f"renoise-{float(s):.12g}", x.shape, self.start).to(x)
        return self.noised(self.model.jump(x, t, below, condition), below, until, noise)

    @abc.abstractmethod
    def below(self, s: Tensor) -> Tensor:
        """The time () at which the jump to s () lands."""

    @abc.abstractmethod
    def noised(self, landed: Tensor, below: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """What landed there (B, *D), carried to s by ``noise`` (B, *D)."""


@dataclass(frozen=True, eq=False)
class Gamma(StochasticJumps):
    """Says which part of the noise at s is drawn anew."""

    named: ClassVar[str] = "gamma-sampling"

    def below(self, s: Tensor) -> Tensor:
        schedule = self.model.schedule
        return schedule.time_at_sigma((1 - self.gamma**2) ** 0.5 * schedule.rho(s))

    def noised(self, landed: Tensor, below: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        schedule = self.model.schedule
        return (
            expand(schedule.alpha(s) / schedule.alpha(below), landed) * landed
            + expand(self.gamma * schedule.sigma(s), landed) * noise
        )


@dataclass(frozen=True, eq=False)
class Strategic(StochasticJumps):
    """Says where in time a jump lands."""

    named: ClassVar[str] = "strategic sampling"

    def below(self, s: Tensor) -> Tensor:
        return (1 - self.gamma) * s

    def noised(self, landed: Tensor, below: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        return renoised(self.model.schedule, landed, below, s, noise)
