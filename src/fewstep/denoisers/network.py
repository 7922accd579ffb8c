"""A network as a denoiser: x0 = skip(t) x + out(t) network(scale(t) x, label(t), condition).

skip and out come from the prediction (see ``prediction``); scale and label say what the network
wants to be fed (see ``inputs``). Both pairs are computed in float64 and then cast to x's type. A
network on latents is no denoiser but a ``Generator``.
"""

from __future__ import annotations

import abc

from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Condition, as_condition
from fewstep.denoisers.denoiser import Denoiser
from fewstep.denoisers.inputs import Inputs
from fewstep.errors import UserError
from fewstep.networks.calls import Asking, Call, answered
from fewstep.networks.elsewhere import Door
from fewstep.networks.grow import grown
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.prediction import Prediction
from fewstep.schedule import Schedule, as_time, expand


class _Networked(Denoiser, Door, abc.ABC):
    """A denoiser that holds one network and what it is fed and emits; see the two kinds,
    ``NetworkDenoiser`` and ``TrajectoryDenoiser``.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: Prediction,
        inputs: Inputs,
        shape: tuple[int, ...],
        classes: int = 0,
    ):
        super().__init__()
        prediction.check(schedule)
        inputs.check(schedule)
        self.network = network
        self.prediction = prediction
        self.inputs = inputs
        self._schedule = schedule
        self._shape = tuple(shape)
        self._classes = classes

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def classes(self) -> int:
        return self._classes

    def _fed(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        scale, label = self.inputs.scale_and_label(self._schedule, t)
        fed = self.brought(expand(scale, x) * x)
        return fed, label.to(fed.device, x.dtype)

    def _told(self, condition: Condition | Tensor | None) -> Condition:
        return self.brought(as_condition(condition))

    def _x0_of(self, emitted: Tensor, x: Tensor, t: Tensor) -> Tensor:
        # Under autocast the network emits a shorter type; the sum with x stays in x's.
        return self.prediction.to_x0(self._schedule, emitted.to(x.device).to(x.dtype), x, t)


class NetworkDenoiser(_Networked):
    """See the module's docstring.

    ``network(x, label (B,), Condition)``; ``shape`` is that of one sample.
    """

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return answered(self.asked(x, t, condition))

    def asked(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Asking:
        """See ``Denoiser``."""
        t = as_time(t).expand(len(x))
        emitted = yield Call(self.network, *self._fed(x, t), self._told(condition))
        cost.count_evaluations(emitted)
        return self._x0_of(emitted, x, t)

    def features(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """The network's innermost activations (B, bottleneck, ...) where ``forward`` would use it,
        on the network's device; counted as an evaluation.

        Raises ``UserError`` for a network that is no ``DenoisingNetwork``.
        """
        if not isinstance(self.network, DenoisingNetwork):
            raise UserError(
                f"{type(self.network).__name__} has no features to put a critic's head on: use a network "
                "that derives from DenoisingNetwork."
            )
        found = self.network.features(*self._fed(x, as_time(t).expand(len(x))), self._told(condition))
        cost.count_evaluations(found)
        return found.to(x.dtype)


def in_network(like: NetworkDenoiser, network: nn.Module) -> NetworkDenoiser:
    """A denoiser around ``network``, fed and read as ``like`` is."""
    return NetworkDenoiser(network, like.schedule, like.prediction, like.inputs, like.shape, like.classes)


def grown_denoiser(denoiser: NetworkDenoiser, **changes: bool) -> NetworkDenoiser:
    """The same denoiser around ``grown(denoiser.network, **changes)``; its estimates are bit for
    bit the old ones until the new branches are trained.
    """
    return in_network(denoiser, grown(denoiser.network, **changes))


class Generator(nn.Module, Door):
    """A student that is no denoiser: it maps latents to samples and knows nothing of noise levels
    (FastGAN; an MLP on z).

    Called as ``generator(z (B, *latent_shape), t, condition) -> x0 (B, *shape)``; t is there so
    that it can stand where a denoiser does, and is ignored.

    It has no schedule, so it can be trained and sampled from a prior only.
    """

    def __init__(self, network: nn.Module, latent_shape: tuple[int, ...], shape: tuple[int, ...], classes: int = 0):
        super().__init__()
        self.network = network
        self.latent_shape = tuple(latent_shape)
        self.shape = tuple(shape)
        self.classes = classes

    def forward(self, z: Tensor, t: Tensor | None = None, condition: Condition | Tensor | None = None) -> Tensor:
        emitted = self.network(self.brought(z), self.brought(as_condition(condition)))
        cost.count_evaluations(emitted)
        # As a denoiser's: in the latent's type, also under autocast.
        return emitted.to(z.device).to(z.dtype)
