r"""Rectified flow: a velocity along straight lines between coupled noise and data (Liu et al.
2022).

For a pair (z, x0) of noise at t = 1 and data at t = 0, on the line x_t = (1 - t) x0 + t z, the
velocity u = d x_t / d t is regressed on z - x0 (Eq. 1). A denoiser of this schedule is a velocity,
u = (x_t - D) / t, and

    | u - (z - x0) |^2 = | D - x0 |^2 / t^2,

so the loss is denoising on the pair's own line with lambda = 1 / t^2. With independent pairs this
trains the first flow; with pairs (z, x0) that a flow's ODE has made it is *reflow*, whose flow is
straighter (Thm. 3.7). How straight is S (Eq. 4), the variance of the velocity along the ODE's own
paths,

    S = int_0^1 E | (Z_1 - Z_0) - u(Z_t, t) |^2 dt,

which is 0 only if each path is a line that is run through at constant speed: then one Euler step is
exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.score_matching import denoising_loss
from fewstep.schedule import RectifiedFlow
from fewstep.states import State, Step
from fewstep.times import TimeDistribution, UniformTimes


@dataclass(frozen=True, eq=False)
class VelocityRegression(Objective):
    """Trains ``student``, a denoiser under ``RectifiedFlow``, on states that are pairs: x the noise
    at t = 1, x0 the data coupled with it.

    The times on the line are drawn from ``times``. Raises ``UserError`` for another schedule and
    for states that are no such pairs.
    """

    student: Denoiser
    times: TimeDistribution = field(default_factory=UniformTimes)

    def __post_init__(self) -> None:
        _check_flow(self.student, "velocity regression")

    def __call__(self, step: Step, state: State) -> Loss:
        if state.x0 is None or not bool((state.t == 1).all()):
            raise UserError(
                "velocity regression: needs pairs of noise at t = 1 and the data that belongs to it (x0); "
                "give stored pairs, or data states with all times at 1."
            )
        schedule = self.student.schedule
        t = self.times.draw(schedule, step.key, "velocity-time", len(state.x), step.start)
        x_t = schedule.add_noise(state.x0, t, state.x)
        total = denoising_loss(self.student(x_t, t, state.condition), state.x0, t**-2)
        return Loss(total, {"velocity": total.detach()})


@torch.no_grad()
def straightness(flow: Denoiser, z: Tensor, steps: int = 100, condition: Condition | Tensor | None = None) -> float:
    """S over the paths of noise z (B, *D) at t = 1, by ``steps`` uniform Euler steps: a mean over
    samples and time of a sum over dimensions, >= 0.

    The paths' ends are Euler's own, so Z_1 - Z_0 is the mean velocity. Raises ``UserError`` for
    another schedule than ``RectifiedFlow``, and for steps shorter than its t_min.
    """
    _check_flow(flow, "straightness")
    if not 1 <= steps <= 1 / flow.schedule.t_min:
        raise UserError(
            f"straightness: needs between 1 and {int(1 / flow.schedule.t_min)} steps, so that the last one "
            f"begins at t_min or above, got {steps}."
        )
    x = z
    mean, squares = torch.zeros_like(z, dtype=torch.float64), torch.zeros_like(z, dtype=torch.float64)
    for index in range(steps):
        t = 1 - index / steps
        velocity = (x - flow(x, torch.tensor(t, dtype=torch.float64), condition)) / t
        x = x - velocity / steps
        # Welford's sums: no difference of large numbers, so that a straight flow has S = 0 up to
        # rounding.
        off = velocity.double() - mean
        mean = mean + off / (index + 1)
        squares = squares + off * (velocity.double() - mean)
    return float((squares / steps).flatten(1).sum(1).mean())


def _check_flow(denoiser: Denoiser, owner: str) -> None:
    if not isinstance(denoiser.schedule, RectifiedFlow):
        raise UserError(
            f"{owner}: needs a denoiser under RectifiedFlow, got one under "
            f"{type(denoiser.schedule).__name__}; wrap it in Rescheduled."
        )
