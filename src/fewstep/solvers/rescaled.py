"""A flow map of one schedule as that of another, where both start from pure noise: what couples a
flow's noise with a teacher's samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.solvers.flow_map import FlowMap


@dataclass(frozen=True, eq=False)
class Rescaled(FlowMap):
    """Takes unit noise at t = 1 to t = 0 by taking ``scale`` times it through ``flow_map`` from
    ``time`` (KarrasVE: sigma_max, 1). Raises ``UserError`` for any other jump.
    """

    flow_map: FlowMap
    scale: float
    time: float

    def at(self, key: Key, start: int = 0) -> Rescaled:
        """The same, its map bound to a place."""
        return replace(self, flow_map=self.flow_map.at(key, start))

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        if float(t) != 1 or float(s) != 0:
            raise UserError(
                f"a rescaled flow map goes from t = 1 to t = 0 only, not from {float(t):g} to {float(s):g}."
            )
        return self.flow_map(self.scale * x, self.time, 0.0, condition)
