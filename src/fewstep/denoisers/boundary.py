r"""A denoiser's network as a consistency function: f(x, t_min) = x by construction (Song et al. 2023, Eq. 5).

The consistency function carries x_t to the end of its trajectory, t_min. With the estimate D(x, t) of any denoiser, f is the DDIM step there,

    f(x, t) = r x + (alpha_min - r alpha_t) D(x, t),    r = sigma_min / sigma_t,

bit for bit x at t_min on every schedule, and D itself for sigma_t >> sigma_min; finite where alpha_t = 0. Under variance exploding, with EDM's D = c_skip x + c_out F, the factor
on F is (1 - sigma_min / sigma) sigma sd / sqrt(sigma^2 + sd^2) = sd (sigma - sigma_min) / sqrt(sigma^2 + sd^2), which is exactly that of Song et al. 2023, App. C; their factor on
x, sd^2 / ((sigma - sigma_min)^2 + sd^2), differs from ours by terms of order sigma_min / sigma. Ours needs no sd, and it makes a pretrained D a better start: where the data near x
is one point, f is already the true consistency function.
"""

from __future__ import annotations

from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers.transition import ddim_between
from fewstep.denoisers.wrappers import _Wrapper


class Boundary(_Wrapper):
    """See the module's docstring. ``denoiser`` is any denoiser; nothing else is stored."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return ddim_between(self.schedule, x, self.denoiser(x, t, condition), t, self.schedule.t_min)
