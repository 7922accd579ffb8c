"""How noise levels and augmentations enter EDM's networks: waves of the noise label, and a linear
map of nine numbers.

The frequencies are computed in float32 whatever the network's type: a label may be as large as 999,
so that the last bit of a frequency is worth 1e-4 in a wave's angle, and weights were trained with
these very ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import UserError


def _waves(noise_label: Tensor, frequencies: Tensor) -> Tensor:
    """(B,) and (n,) -> (B, 2 n): cosines, then sines."""
    angle = noise_label.to(torch.promote_types(noise_label.dtype, torch.float32))[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class PositionalEmbedding(nn.Module):
    """A noise label (B,) -> (B, channels), cosines first, at frequencies 10000^(-i / n), i <
    channels / 2 (Ho et al. 2020): DDPM++ and ADM.

    n is channels / 2, or one less with ``endpoint``, so that the lowest frequency is 1 / 10000
    itself (DDPM++). ``channels`` must be even, and at least 4.
    """

    def __init__(self, channels: int, endpoint: bool = False):
        super().__init__()
        self.count = channels // 2
        self.divisor = self.count - 1 if endpoint else self.count

    def forward(self, noise_label: Tensor) -> Tensor:
        exponents = torch.arange(self.count, dtype=torch.float32, device=noise_label.device) / self.divisor
        return _waves(noise_label, torch.pow(1 / 10000, exponents))


class FourierEmbedding(nn.Module):
    """A noise label (B,) -> (B, channels), cosines first, at normal frequencies of deviation
    ``scale`` drawn once and kept with the weights (Song et al. 2021): NCSN++.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(channels // 2))

    def forward(self, noise_label: Tensor) -> Tensor:
        return _waves(noise_label, 2 * math.pi * self.freqs)


def augmentation(condition: Condition, width: int, rows: int, like: Tensor) -> Tensor:
    """The augmentation labels ``condition.context["augment"]`` (B, width) in the type of ``like``;
    zeros, which say "not augmented", where there are none.

    EDM's nine are the amounts of mirroring, scaling, rotation, stretching and translation (Karras
    et al. 2022, App. F.2). Raises ``UserError`` for another shape.
    """
    given = condition.context.get("augment")
    if given is None:
        return like.new_zeros(rows, width)
    if given.shape != (rows, width):
        raise UserError(
            f"the condition's context 'augment' has shape {tuple(given.shape)}; this network takes {width} "
            f"augmentation labels a sample, ({rows}, {width})."
        )
    return given.to(like.dtype)
