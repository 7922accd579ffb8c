"""Cross-entropy of a classifier: how the feature network of the Frechet distance is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn import functional

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
