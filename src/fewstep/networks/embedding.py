"""How noise levels and class labels enter a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import UserError


class NoiseEmbedding(nn.Module):
    """Sines and cosines of a noise label (B,) at geometric frequencies from 1 to ``highest``; gives (B, channels)."""

    frequencies: Tensor

    def __init__(self, channels: int, highest: float = 64.0):
        super().__init__()
        half = channels // 2
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(highest), half)), persistent=False)

    def forward(self, noise_label: Tensor) -> Tensor:
        angle = noise_label.to(torch.float32)[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def one_hot(condition: Condition, classes: int, rows: int, like: Tensor) -> Tensor:
    """Class labels as (B, classes) in the type of ``like``; no label, or the label -1, is a row of zeros.

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
    """Sets a layer's weights and biases to zero, so that the branch it ends adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
