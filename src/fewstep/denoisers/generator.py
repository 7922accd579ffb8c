"""A student that is no denoiser: it maps latents to samples and knows nothing of noise levels
(FastGAN; an MLP on z).
"""

from __future__ import annotations

from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Condition, as_condition


class Generator(nn.Module):
    """Called as ``generator(z (B, *latent_shape), t, condition) -> x0 (B, *shape)``; t is there so
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
        emitted = self.network(z, as_condition(condition))
        cost.count_evaluations(emitted)
        # As a denoiser's: in the latent's type, also under autocast.
        return emitted.to(z.dtype)
