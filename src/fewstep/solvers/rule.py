r"""Solvers of the probability-flow ODE as data, and the one loop that runs them.

With y = x / alpha and rho = sigma / alpha, every schedule has the same ODE (Karras et al. 2022, Eq.
81; Song et al. 2021a, Eq. 14):

    dy / drho = (y - D(x, t)) / rho.

- ``EULER``: y += (rho_s - rho_t) slope, which in x is DDIM: x_s = alpha_s D + sigma_s / sigma_t (x
  - alpha_t D).
- ``HEUN``: a second slope at the predicted point, the two averaged (Karras et al. 2022, Alg. 1). A
  step that ends at t = 0 or begins where alpha = 0 is a DDIM step.
- ``DPM2M``: DDIM with D extrapolated in lambda = -log rho from this step's and the last one's, D +
  (D - D_last) h / (2 h_last) (Lu et al. 2022b, DPM-Solver++(2M)); its first step and a step to t =
  0 are DDIM steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.schedule import Schedule


@dataclass(frozen=True)
class Rule:
    """``slopes``: the weights of the slopes at the step's start and, if there are two, at its
    predicted end. ``memory``: extrapolates D from the last step.
    """

    name: str
    order: int
    slopes: tuple[float, ...] = (1.0,)
    memory: bool = False

    def __post_init__(self) -> None:
        if len(self.slopes) not in (1, 2) or abs(sum(self.slopes) - 1) > 1e-12:
            raise UserError(f"solver rule '{self.name}': one or two slopes whose weights sum to 1, got {self.slopes}.")
        if self.memory and len(self.slopes) != 1:
            raise UserError(f"solver rule '{self.name}': a rule with memory has one slope.")

    def evaluations(self, steps: int) -> int:
        """Network evaluations of ``steps`` steps down to t = 0, where the last is always a DDIM
        step.
        """
        return len(self.slopes) * (steps - 1) + 1


EULER = Rule("euler", 1)
HEUN = Rule("heun", 2, slopes=(0.5, 0.5))
DPM2M = Rule("dpm2m", 2, memory=True)
RULES = {rule.name: rule for rule in (EULER, HEUN, DPM2M)}


def solve(
    rule: Rule, denoiser: Denoiser, x: Tensor, times: Tensor, condition: Condition | Tensor | None = None
) -> Tensor:
    """Carries x (B, *D) from ``times[0]`` to ``times[-1]`` through decreasing (or, for inversion,
    increasing) times (N + 1,), float64.

    A step may end at t = 0, where x is the clean sample; none may begin there.
    """
    schedule = denoiser.schedule
    previous: tuple[Tensor, Tensor] | None = None
    for t, s in pairwise(times):
        x0 = denoiser(x, t, condition)
        estimate = _extrapolated(schedule, x0, t, s, previous) if rule.memory else x0
        end = ddim_step(schedule, x, estimate, t, s)
        if len(rule.slopes) == 2 and float(s) > 0 and float(schedule.alpha(t)) > 0:
            end = _corrected(rule, schedule, x, x0, end, denoiser(end, s, condition), t, s)
        previous = (t, x0)
        x = end
    return x


def ddim_step(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """alpha_s x0 + sigma_s / sigma_t (x - alpha_t x0), for scalar times t > 0 and s >= 0."""
    ratio = float(schedule.sigma(s) / schedule.sigma(t))
    return float(schedule.alpha(s)) * x0 + ratio * (x - float(schedule.alpha(t)) * x0)


def _corrected(
    rule: Rule, schedule: Schedule, x: Tensor, x0: Tensor, end: Tensor, end_x0: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    alpha, end_alpha = float(schedule.alpha(t)), float(schedule.alpha(s))
    rho, end_rho = float(schedule.rho(t)), float(schedule.rho(s))
    slope = rule.slopes[0] * (x / alpha - x0) / rho + rule.slopes[1] * (end / end_alpha - end_x0) / end_rho
    return end_alpha * (x / alpha + (end_rho - rho) * slope)


def _extrapolated(
    schedule: Schedule, x0: Tensor, t: Tensor, s: Tensor, previous: tuple[Tensor, Tensor] | None
) -> Tensor:
    if previous is None or float(s) == 0:
        return x0
    before, last_x0 = previous
    lambdas = torch.stack([0.5 * schedule.log_snr(time) for time in (before, t, s)])
    if not bool(torch.isfinite(lambdas).all()):
        return x0
    last_step, step = lambdas.diff().tolist()
    return x0 + step / (2 * last_step) * (x0 - last_x0)
