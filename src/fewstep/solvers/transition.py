r"""One step of a solver for times of each sample's own: what a distillation's teacher does, when
every sample stands at another time.

Euler is ``ddim_between``. Heun, in y = x / alpha over rho = sigma / alpha (see ``rule``), adds to
Euler's end the change of the slope eps = (x - alpha D) / sigma over the step,

    x_s = x_euler + w_2 alpha_s (rho_s - rho_t) (eps_s - eps_t),

w_2 the second slope's weight. A step to s = 0 or from alpha_t = 0 is a DDIM step, and so is that
sample's row here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.denoisers.ddim import ddim_between, x0_of_transition
from fewstep.errors import UserError
from fewstep.schedule import Schedule, as_time, expand
from fewstep.solvers.rule import Rule

__all__ = ["ancestral", "ddim_between", "renoised", "teacher_step", "x0_of_transition"]


def teacher_step(
    rule: Rule,
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    condition: Condition | Tensor | None = None,
) -> Tensor:
    """x_s (B, *D) from x (B, *D) at t > 0, by one step to s >= 0, each (B,) or ().

    Raises ``UserError`` for a rule with memory, which needs more than one step.

    As ``solve`` with the times (t, s), sample by sample.
    """
    if rule.memory:
        raise UserError(
            f"solver rule '{rule.name}' extrapolates from the last step, and a teacher's single step has "
            "none before it: use 'euler' or 'heun'."
        )
    schedule = denoiser.schedule
    t, s = as_time(t).expand(len(x)), as_time(s).expand(len(x))
    x0 = denoiser(x, t, condition)
    end = ddim_between(schedule, x, x0, t, s)
    corrected = (s > 0) & (schedule.alpha(t) > 0)
    if len(rule.slopes) == 1 or not bool(corrected.any()):
        return end
    # Rows without a correction get a gain of 0 and a harmless time, not an infinite one.
    later = torch.where(s > 0, s, schedule.t_min)
    slope = (x - expand(schedule.alpha(t), x) * x0) / expand(schedule.sigma(t), x)
    end_slope = (end - expand(schedule.alpha(later), x) * denoiser(end, later, condition)) / expand(
        schedule.sigma(later), x
    )
    gain = torch.where(corrected, rule.slopes[1] * schedule.alpha(s) * (schedule.rho(s) - schedule.rho(t)), 0.0)
    return end + expand(gain, x) * (end_slope - slope)


def renoised(schedule: Schedule, x: Tensor, t: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """x (B, *D) at t (B,) carried to tau (B,), not before t, by the forward process with ``noise``
    (B, *D); x itself where tau = t. alpha must not be 0 at t.
    """
    ratio = schedule.alpha(tau) / schedule.alpha(t)
    added = (schedule.sigma(tau) ** 2 - (ratio * schedule.sigma(t)) ** 2).clamp(min=0).sqrt()
    return expand(ratio, x) * x + expand(added, x) * noise


def ancestral(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor | float, s: Tensor | float, noise: Tensor) -> Tensor:
    r"""x_s (B, *D) drawn from q(x_s given x_t, x_0) of the forward process by ``noise`` (B, *D), at
    x (B, *D), t > 0 and 0 <= s <= t, each (B,) or (): DDPM's step (Ho et al. 2020, Eq. 7).

    With r = alpha_t / alpha_s and k = (r sigma_s / sigma_t)^2, x_s = (k / r) x_t + (1 - k) alpha_s
    x_0 + sqrt(1 - k) sigma_s eps. s = t gives x_t and s = 0 gives x0, bit for bit; from alpha_t = 0
    it is x0 noised to s, since x_t knows nothing of it.
    """
    t, s = as_time(t), as_time(s)
    alpha_s, ratio = schedule.alpha(s), schedule.sigma(s) / schedule.sigma(t)
    # Only s = t may have no signal, and nothing decays there.
    decay = torch.where(alpha_s > 0, schedule.alpha(t) / torch.where(alpha_s > 0, alpha_s, 1.0), 1.0)
    kept = (decay * ratio) ** 2
    return (
        expand((1 - kept) * alpha_s, x) * x0
        + expand((1 - kept).clamp(min=0).sqrt() * schedule.sigma(s), x) * noise
        + expand(decay * ratio**2, x) * x
    )
