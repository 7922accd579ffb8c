r"""A network that jumps between any two times of the probability-flow ODE: the consistency
trajectory model (Kim et al. 2024, Sec. 3).

A network g of (x, t, s) takes the place of the estimate of x_0 in a DDIM step from t to s,

    G(x, t, s) = r x + (alpha_s - r alpha_t) g(x, t, s),    r = sigma_s / sigma_t,

which under variance exploding is (s / t) x + (1 - s / t) g. So G(x, t, t) = x bit for bit, whatever
the network; as s tends to t, g must become the denoiser E[x_0 given x_t] for G to be the ODE's
solution, so g(x, t, t) *is* trained as a denoiser, and at s = 0 G is g itself, a sample. s > t is
inversion, data to noise by the same network: it must be trained for that (``InverseConsistency``;
``method.inversion`` in a recipe), and a model that was not is far off there.

The network is called as ``network(scale x, label(t), condition, label(s))``, g = skip(t) x + out(t)
F as with any denoiser. The label of s is taken at t_min where s is below: there the labels of many
networks tend to infinity, and nothing can be told apart there any more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers.ddim import ddim_between
from fewstep.denoisers.network import NetworkDenoiser, _Networked
from fewstep.denoisers.wrappers import Wrapper
from fewstep.networks.grow import grown
from fewstep.schedule import as_time


class TrajectoryDenoiser(_Networked):
    """See the module's docstring.

    ``network(x, label (B,), Condition, end_label (B,))``; ``shape`` is that of one sample.

    Called as a denoiser it is g(x, t, t). Raises ``UserError`` for predictions and inputs that the
    schedule does not allow, as ``NetworkDenoiser`` does.
    """

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.estimate(x, t, t, condition)

    def estimate(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        """g(x, t, s), (B, *D), from x (B, *D), t in [t_min, t_max] and s in [0, t_max], each (B,)
        or ().
        """
        t, s = as_time(t).expand(len(x)), as_time(s).expand(len(x))
        fed, label = self._fed(x, t)
        _, end_label = self.inputs.scale_and_label(self._schedule, s.clamp(min=self._schedule.t_min))
        emitted = self.network(fed, label, self._told(condition), end_label.to(fed.device, x.dtype))
        cost.count_evaluations(emitted)
        return self._x0_of(emitted, x, t)

    def jump(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        """G(x, t, s), (B, *D): x at s; the arguments as in ``estimate``."""
        return ddim_between(self._schedule, x, self.estimate(x, t, s, condition), t, s)


def trajectory_of(denoiser: NetworkDenoiser) -> TrajectoryDenoiser:
    """A trajectory model that begins as a pretrained denoiser: its network grown by a silent end
    label, so that g(x, t, s) is the denoiser's estimate, bit for bit, whatever s.
    """
    network = grown(denoiser.network, end=True)
    return TrajectoryDenoiser(
        network, denoiser.schedule, denoiser.prediction, denoiser.inputs, denoiser.shape, denoiser.classes
    )


class EndJump(Wrapper):
    """A trajectory model seen as a one-step student: G(x, t, 0), so that it can stand where samples
    are made (``Renoise``, adversarial terms).

    The model itself, called as a denoiser, answers with g(x, t, t), a conditional mean.
    """

    denoiser: TrajectoryDenoiser

    def __init__(self, denoiser: TrajectoryDenoiser):
        super().__init__(denoiser)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.denoiser.jump(x, t, torch.zeros((), dtype=torch.float64), condition)
