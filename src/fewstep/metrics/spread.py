"""Two plain statistics that tell collapse and saturation."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(samples: Tensor, labels: Tensor | None = None) -> float:
    """Root mean square distance a dimension of samples (N, *D) from the mean of their class (of all, without labels (N,))."""
    flat = samples.flatten(1).double().cpu()
    labels = torch.zeros(len(flat), dtype=torch.int64) if labels is None else labels.cpu()
    classes = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).double()
    means = torch.zeros(classes, flat.shape[1], dtype=torch.float64).index_add_(0, labels, flat) / counts[:, None]
    return float((flat - means[labels]).square().mean().sqrt())


def outside(samples: Tensor, low: float, high: float, margin: float) -> float:
    """The fraction of values below ``low`` or above ``high`` by more than ``margin`` times the range; a negative margin moves the bounds inwards."""
    slack = margin * (high - low)
    return float(((samples < low - slack) | (samples > high + slack)).double().mean())
