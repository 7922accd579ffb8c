r"""Strategic stochastic sampling of a trajectory model (TCD, Zheng et al. 2024, arXiv:2402.19159):
how far below the next time each jump goes, before noise is added again.

A jump from t to s goes to s~ = (1 - gamma) s first, in the schedule's own time, and the forward
process carries it from there to s (``renoised``). gamma = 0 is the deterministic jump G(x, t, s),
with no noise drawn; gamma = 1 goes to clean samples and noises them again, as consistency models do
(``Renoise``). A jump to s = 0 is G(x, t, 0).

``Gamma`` says by its gamma which part of the noise at s is drawn anew; here it says where in time
the jump ends, and how much noise is new follows from the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import TrajectoryDenoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import as_time
from fewstep.solvers.flow_map import FlowMap
from fewstep.solvers.transition import renoised


@dataclass(frozen=True, eq=False)
class Strategic(FlowMap):
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
            raise UserError(f"strategic sampling: gamma must be in [0, 1], got {self.gamma}.")

    def at(self, key: Key, start: int = 0) -> Strategic:
        """The same map drawing its noise from another place, from sample ``start`` on."""
        return replace(self, key=key, start=start)

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        if self.gamma == 0 or float(s) == 0:
            return self.model.jump(x, t, s, condition)
        if float(s) > float(t):
            raise UserError(
                f"strategic sampling from t = {float(t):g} up to s = {float(s):g}: only gamma = 0 carries data "
                f"to noise, here it is {self.gamma}."
            )
        until = as_time(s)
        below = (1 - self.gamma) * until
        noise = self.key.normal(f"renoise-{float(s):.12g}", x.shape, self.start).to(x)
        return renoised(self.model.schedule, self.model.jump(x, t, below, condition), below, until, noise)
