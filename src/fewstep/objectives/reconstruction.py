"""Reconstruction: how a codec's decoder is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewstep.networks import PatchAutoencoder
from fewstep.objectives.loss import Loss, Objective
from fewstep.states import State, Step


@dataclass(frozen=True, eq=False)
class Reconstruction(Objective):
    """E | decode(encode(x0) + ``noise_std`` eps) - x0 |^2, of clean data.

    Latents that a diffusion model makes are not exactly those of pictures; a decoder that has seen
    a little noise forgives that.
    """

    autoencoder: PatchAutoencoder
    noise_std: float = 0.0

    def __call__(self, step: Step, state: State) -> Loss:
        assert state.x0 is not None, "reconstruction needs clean data"
        with torch.no_grad():
            latents = self.autoencoder.encode(state.x0)
        noisy = latents + self.noise_std * step.noise_like("latent-noise", latents)
        total = (self.autoencoder.decode(noisy) - state.x0).square().mean()
        return Loss(total, {"reconstruction": total.detach()})
