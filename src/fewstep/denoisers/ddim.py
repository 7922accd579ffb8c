r"""Transitions of the probability-flow ODE along one estimate of x_0, for times of each sample's
own.

Holding the estimate x0 and the noise (x_t - alpha_t x0) / sigma_t fixed from t to s gives DDIM
(Song et al. 2021a, Eq. 12, without its noise), with r = sigma_s / sigma_t,

    x_s = alpha_s x0 + r (x_t - alpha_t x0) = r x_t + (alpha_s - r alpha_t) x0.

The second form is what is computed: its two factors are float64 numbers, so that s = t gives x_t
and s = 0 gives x0, bit for bit, and alpha_t = 0 is no special case. Solved for x0,

    x0 = (x_s - r x_t) / (alpha_s - r alpha_t),

the estimate that makes one step of any given transition (Salimans and Ho 2022, App. G; Garrepalli
et al. 2024, Eq. 3).
"""

from __future__ import annotations

from torch import Tensor

from fewstep.schedule import Schedule, as_time, expand


def ddim_between(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
    """x_s (B, *D) from x (B, *D) at t and the estimate x0 (B, *D); t > 0 and s >= 0, each (B,) or
    (), s before or after t.
    """
    ratio, gain = _factors(schedule, t, s)
    return expand(ratio, x) * x + expand(gain, x) * x0


def x0_of_transition(schedule: Schedule, x_t: Tensor, x_s: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
    """The estimate x0 (B, *D) for which ``ddim_between`` carries x_t (B, *D) to x_s (B, *D); t > 0
    and s >= 0 as there, but never equal.
    """
    ratio, gain = _factors(schedule, t, s)
    return (x_s - expand(ratio, x_t) * x_t) / expand(gain, x_t)


def _factors(schedule: Schedule, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
    t, s = as_time(t), as_time(s)
    ratio = schedule.sigma(s) / schedule.sigma(t)
    return ratio, schedule.alpha(s) - ratio * schedule.alpha(t)
