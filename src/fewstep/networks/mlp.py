"""Multilayer perceptrons for points in the plane: a denoising network, and a generator on latents
(DisBack, App. E.2).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.embedding import NoiseEmbedding, SideLabels, one_hot, start_at_zero
from fewstep.networks.interfaces import DenoisingNetwork, GeneratorNetwork
from fewstep.networks.kinds.registry import register
from fewstep.values import Count, Given


@register("residual-mlp")
class ResidualMLP(DenoisingNetwork):
    """(B, dim), noise labels (B,), condition -> (B, dim): residual blocks of width ``width``, each
    shifted by the noise embedding.

    ``guidance`` and ``end``: see ``SideLabels``.
    """

    def __init__(
        self,
        dim: Count = 2,
        width: Count = 128,
        depth: Count = 4,
        classes: int = 0,
        guidance: bool = False,
        end: bool = False,
    ):
        super().__init__()
        self.classes = classes
        self.bottleneck = width
        self.embed = NoiseEmbedding(32)
        self.condition = nn.Sequential(nn.Linear(32 + classes, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(dim, width)
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.leave = nn.Linear(width, dim)
        start_at_zero(self.leave)
        # Last, so that the other weights are drawn alike with and without it.
        self.side = SideLabels(width, guidance, end)

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        return self.leave(self._hidden(x, noise_label, condition, end_label))

    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """The hidden layer after the last block, (B, width)."""
        return self._hidden(x, noise_label, condition, end_label)

    def _hidden(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        embedded = self.embed(noise_label)
        if self.classes:
            embedded = torch.cat([embedded, one_hot(condition, self.classes, len(x), embedded)], dim=1)
        shared = self.side(self.condition(embedded), condition, end_label)
        hidden = self.enter(x)
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            hidden = hidden + block(hidden + shift(shared))
        return hidden


@register("latent-mlp")
class LatentMLP(GeneratorNetwork):
    """Latents (B, latent), condition -> (B, dim): the paper's "simple MLP" generator of the plane,
    with no notion of noise levels.
    """

    def __init__(
        self,
        latent: Count = 2,
        dim: Annotated[Count, Given()] = 2,
        width: Count = 64,
        depth: Count = 3,
        classes: int = 0,
    ):
        super().__init__()
        self.classes = classes
        layers: list[nn.Module] = [nn.Linear(latent + classes, width), nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(width, dim))

    @classmethod
    def sizes_for(cls, shape: tuple[int, ...]) -> dict[str, int]:
        if len(shape) != 1:
            raise UserError(
                f"makes points, and samples here have shape {shape}; use a 'fastgan' or a 'copy' for images."
            )
        return {"dim": shape[0]}

    def forward(self, z: Tensor, condition: Condition) -> Tensor:
        if self.classes:
            z = torch.cat([z, one_hot(condition, self.classes, len(z), z)], dim=1)
        return self.body(z)
