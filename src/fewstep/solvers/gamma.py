r"""Gamma-sampling of a trajectory model (Kim et al. 2024, Alg. 3): how much of each jump's noise is
drawn anew.

A jump from t to s goes to s~ first and is noised from there to s. With rho = sigma / alpha,

    rho(s~) = sqrt(1 - gamma^2) rho(s),    x_s = alpha_s / alpha_s~ G(x, t, s~) + gamma sigma_s eps,
    eps ~ N(0, I),

so that x_s has the noise level of s whatever gamma is. gamma = 0 is the deterministic jump G(x, t,
s), with no noise drawn; gamma = 1 goes to clean samples and noises them again, as consistency
models do (``Renoise``). A jump to s = 0 is G(x, t, 0).

With gamma = 0, s may lie after t: a model that was trained for it (``InverseConsistency``) then
carries data to noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import TrajectoryDenoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import as_time, expand
from fewstep.solvers.flow_map import FlowMap


@dataclass(frozen=True, eq=False)
class Gamma(FlowMap):
    """See the module's docstring; ``gamma`` in [0, 1].

    The noise of the jump to s is a function of ``key`` and of s, from sample ``start`` on, and the
    same as ``Renoise``'s. Raises ``UserError`` for another gamma, and for a jump to a later time
    with gamma > 0.
    """

    model: TrajectoryDenoiser
    gamma: float
    key: Key = field(default_factory=lambda: Key(0))
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UserError(f"gamma-sampling: gamma must be in [0, 1], got {self.gamma}.")

    def at(self, key: Key, start: int = 0) -> Gamma:
        """The same map drawing its noise from another place, from sample ``start`` on."""
        return replace(self, key=key, start=start)

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        if self.gamma == 0 or float(s) == 0:
            return self.model.jump(x, t, s, condition)
        if float(s) > float(t):
            raise UserError(
                f"gamma-sampling from t = {float(t):g} up to s = {float(s):g}: only gamma = 0 carries data "
                f"to noise, here it is {self.gamma}."
            )
        schedule = self.model.schedule
        between = schedule.time_at_sigma((1 - self.gamma**2) ** 0.5 * schedule.rho(as_time(s)))
        landed = self.model.jump(x, t, between, condition)
        noise = self.key.normal(f"renoise-{float(s):.12g}", x.shape, self.start).to(x)
        return (
            expand(schedule.alpha(s) / schedule.alpha(between), x) * landed
            + expand(self.gamma * schedule.sigma(s), x) * noise
        )
