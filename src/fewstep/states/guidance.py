r"""States with a guidance scale, for students that take the scale as an input.

Meng et al. 2023 ("On Distillation of Guided Diffusion Models", Sec. 3.1) distil classifier-free
guidance into one network that is told the scale w, drawn uniformly from [w_min, w_max] for each
sample; latent consistency models do the same with w in [2, 14] (Luo et al. 2023). Both count (1 +
w) conditional - w null: their w is this library's less 1, so that their range is [3, 15] here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fewstep.errors import UserError
from fewstep.states.state import State, States
from fewstep.states.step import Step


@dataclass(frozen=True)
class WithGuidance(States):
    """The states of ``source``, whose conditions get a ``guidance`` (B,) float32, uniform in
    [``low``, ``high``].

    Sample i's scale is the same whichever source it is put on, so that a mixture's parts agree.
    Raises ``UserError`` for bounds that are not finite or out of order, and at the draw for a
    source whose condition has a scale already.
    """

    source: States
    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= self.high < math.inf:
            raise UserError(f"guidance scales need finite bounds with low <= high, got {self.low} and {self.high}.")

    @property
    def ahead(self) -> bool:
        return self.source.ahead

    def draw(self, step: Step) -> State:
        return self._guided(step, step.state(self.source))

    def trajectories(self, step: Step) -> State:
        return self._guided(step, self.source.trajectories(step))

    def _guided(self, step: Step, state: State) -> State:
        if state.condition.guidance is not None:
            raise UserError("these states have a guidance scale already; put WithGuidance around them once.")
        u = step.key.uniform("guidance-scale", step.rows, step.start).to(state.x.device)
        # In float32 the sum could round to just above high.
        guidance = (self.low + (self.high - self.low) * u).float().clamp(self.low, self.high)
        # All states of a trajectory have its sample's scale.
        guidance = guidance.repeat_interleave(len(state.x) // step.rows)
        return replace(state, condition=replace(state.condition, guidance=guidance))
