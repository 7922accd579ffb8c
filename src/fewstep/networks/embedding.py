"""How noise levels, class labels, guidance scales and the ends of jumps enter a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import UserError


class NoiseEmbedding(nn.Module):
    """Sines and cosines of a noise label (B,) at geometric frequencies from 1 to ``highest``; gives
    (B, channels).

    Computed in the network's type, and in float32 at least.
    """

    frequencies: Tensor

    def __init__(self, channels: int, highest: float = 64.0):
        super().__init__()
        half = channels // 2
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(highest), half)), persistent=False)

    def forward(self, noise_label: Tensor) -> Tensor:
        wide = torch.promote_types(self.frequencies.dtype, torch.float32)
        angle = noise_label.to(wide)[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def one_hot(condition: Condition, classes: int, rows: int, like: Tensor) -> Tensor:
    """Class labels as (B, classes) in the type of ``like``; no label, or the label -1, is a row of
    zeros.

    Raises ``UserError`` for a label outside [-1, classes).
    """
    labels = condition.labels
    if labels is None:
        return like.new_zeros(rows, classes)
    if labels.dtype != torch.int64:
        return labels.to(like.dtype)
    if labels.numel() and (int(labels.max()) >= classes or int(labels.min()) < -1):
        raise UserError(f"a class label is outside [0, {classes - 1}]: the network knows {classes} classes.")
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(like.dtype)


def start_at_zero(layer: nn.Module) -> None:
    """Sets a layer's weights and biases to zero, so that the branch it ends adds nothing at
    first.
    """
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class SideLabels(nn.Module):
    """Further numbers a sample, added to an embedding (B, channels): the guidance scale (Meng et
    al. 2023, Sec. 3) and a jump's end (Kim et al. 2024, Sec. 3).

    Each goes through sines and cosines, the guidance as w / 4, and a linear layer that starts at
    zero, so that a network to which one is added computes what it did before. A number that is not
    asked for has no parameters and costs nothing.
    """

    def __init__(self, channels: int, guidance: bool = False, end: bool = False):
        super().__init__()
        self.waves = NoiseEmbedding(32)
        self.guidance = nn.Linear(32, channels) if guidance else None
        self.end = nn.Linear(32, channels) if end else None
        start_at_zero(self)

    def forward(self, embedded: Tensor, condition: Condition, end_label: Tensor | None) -> Tensor:
        """``embedded`` (B, channels) plus what is asked for.

        Raises ``UserError`` for a number that is asked for and missing, and for an end that is not
        asked for.
        """
        if (self.end is None) != (end_label is None):
            if end_label is None:
                raise UserError(
                    "this network jumps to a given end and was called without one: call it through a "
                    "TrajectoryDenoiser, which gives an end label."
                )
            raise UserError(
                "this network takes no end label: build it with 'end: true', or grow it with grown(network, end=True)."
            )
        if self.guidance is not None:
            if condition.guidance is None:
                raise UserError(
                    "this network is conditioned on a guidance scale and the condition has none: give "
                    "Condition(guidance=w), w (B,)."
                )
            embedded = embedded + self.guidance(self.waves(condition.guidance / 4))
        if self.end is not None and end_label is not None:
            embedded = embedded + self.end(self.waves(end_label))
        return embedded
