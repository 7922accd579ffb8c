"""Objectives on clean data: how feature networks (a classifier, a reader) and a codec's decoder are
trained. Each adds a little noise to what its network gets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fewstep.networks import PatchAutoencoder
from fewstep.objectives.loss import Loss, Objective
from fewstep.states import State, Step


@dataclass(frozen=True, eq=False)
class Classification(Objective):
    """Trains ``classifier`` ((B, *D) -> logits (B, K)) to tell the class of clean data, slightly
    noised: x0 + ``noise_std`` eps.
    """

    classifier: nn.Module
    noise_std: float = 0.1

    def __call__(self, step: Step, state: State) -> Loss:
        assert state.x0 is not None, "classification needs clean data"
        assert state.condition.labels is not None, "classification needs labelled data"
        noisy = state.x0 + self.noise_std * step.noise_like("classifier-noise", state.x0)
        total = functional.cross_entropy(self.classifier(noisy), state.condition.labels)
        return Loss(total, {"cross_entropy": total.detach()})


@dataclass(frozen=True, eq=False)
class AttributeReading(Objective):
    """Trains ``reader`` ((B, *D) -> logits by attribute, each (B, K)) to tell the attributes of
    clean data, slightly noised: x0 + ``noise_std`` eps.

    The loss is the sum of the attributes' cross-entropies. Its states carry the attributes as the
    condition's context (``states.Attributed``).
    """

    reader: nn.Module
    noise_std: float = 0.1

    def __call__(self, step: Step, state: State) -> Loss:
        assert state.x0 is not None, "reading needs clean data"
        noisy = state.x0 + self.noise_std * step.noise_like("reader-noise", state.x0)
        losses = {
            name: functional.cross_entropy(logits, state.condition.context[name])
            for name, logits in self.reader(noisy).items()
        }
        total = torch.stack(list(losses.values())).sum()
        return Loss(total, {"cross_entropy": total.detach(), **{name: loss.detach() for name, loss in losses.items()}})


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
