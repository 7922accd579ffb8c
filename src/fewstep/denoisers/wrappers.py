"""Denoisers around denoisers."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers.ddim import ddim_between
from fewstep.denoisers.denoiser import Denoiser
from fewstep.denoisers.threshold import StaticThreshold, Threshold
from fewstep.networks.calls import Asking, answered
from fewstep.schedule import Schedule, as_time, expand


class Wrapper(Denoiser):
    """A denoiser that asks another one, and shares its schedule and shape."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    @property
    def classes(self) -> int:
        return self.denoiser.classes


class Rescheduled(Wrapper):
    """The same denoiser seen under another forward process: x_t is scaled to the old process' at
    the time of equal signal-to-noise ratio.

    The factor is sigma_old / sigma_new, which at equal ratio is also alpha_old / alpha_new and
    stays finite where alpha is 0. Ratios beyond the old process' trained range are answered at its
    end, with noise of its size above it and with a signal of its size below it.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule):
        super().__init__(denoiser)
        self._schedule = schedule

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return answered(self.asked(x, t, condition))

    def asked(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Asking:
        """See ``Denoiser``."""
        old = self.denoiser.schedule
        t = as_time(t)
        wanted = old.time_of(self._schedule.log_snr(t))
        there = wanted.clamp(old.t_min, old.t_max)
        # Where the noise is below all that was trained, x is nearly clean: then the signal must
        # keep its size, not the noise.
        factor = torch.where(
            wanted < old.t_min, old.alpha(there) / self._schedule.alpha(t), old.sigma(there) / self._schedule.sigma(t)
        )
        return (yield from self.denoiser.asked(expand(factor, x) * x, there, condition))


class Reflected(Wrapper):
    """The estimate, kept to the data's support (reflected diffusion, Lou and Ermon 2023; DDIL,
    Garrepalli et al. 2024, Sec. 4.1).

    ``bound`` is a ``Threshold``, or a number b for a clamp to [-b, b] (``StaticThreshold``). On a
    student give ``StraightThrough(...)``: a clamp has no gradient where it bites.
    """

    def __init__(self, denoiser: Denoiser, bound: Threshold | float = 1.0):
        super().__init__(denoiser)
        self.threshold = bound if isinstance(bound, Threshold) else StaticThreshold(float(bound))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return answered(self.asked(x, t, condition))

    def asked(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Asking:
        """See ``Denoiser``."""
        return self.threshold.apply((yield from self.denoiser.asked(x, t, condition)))


class Boundary(Wrapper):
    r"""A denoiser's network as a consistency function: f(x, t_min) = x by construction (Song et al.
    2023, Eq. 5).

    The consistency function carries x_t to the end of its trajectory, t_min. With the estimate D(x,
    t) of any denoiser, f is the DDIM step there,

        f(x, t) = r x + (alpha_min - r alpha_t) D(x, t),    r = sigma_min / sigma_t,

    bit for bit x at t_min on every schedule, and D itself for sigma_t >> sigma_min; finite where
    alpha_t = 0. Under variance exploding, with EDM's D = c_skip x + c_out F, the factor on F is (1
    - sigma_min / sigma) sigma sd / sqrt(sigma^2 + sd^2) = sd (sigma - sigma_min) / sqrt(sigma^2 +
    sd^2), which is exactly that of Song et al. 2023, App. C; their factor on x, sd^2 / ((sigma -
    sigma_min)^2 + sd^2), differs from ours by terms of order sigma_min / sigma. Ours needs no sd,
    and it makes a pretrained D a better start: where the data near x is one point, f is already the
    true consistency function.

    ``denoiser`` is any denoiser; nothing else is stored.
    """

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return answered(self.asked(x, t, condition))

    def asked(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Asking:
        """See ``Denoiser``."""
        estimate = yield from self.denoiser.asked(x, t, condition)
        return ddim_between(self.schedule, x, estimate, t, self.schedule.t_min)


class Truncated(Wrapper):
    """A denoiser from the time ``boundary`` on, and another one, ``first``, below it: a consistency
    model that is trained at late times alone (TCM, Lee et al. 2024).

    Both are called for all samples, so that how often each is called depends on no draw.
    """

    def __init__(self, denoiser: Denoiser, first: Denoiser, boundary: float):
        super().__init__(denoiser)
        self.first = first
        self.boundary = boundary

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return answered(self.asked(x, t, condition))

    def asked(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Asking:
        """See ``Denoiser``."""
        late = (as_time(t).expand(len(x)) >= self.boundary).to(x.device)
        above = yield from self.denoiser.asked(x, t, condition)
        below = yield from self.first.asked(x, t, condition)
        return torch.where(late.reshape(late.shape + (1,) * (x.ndim - 1)), above, below)
