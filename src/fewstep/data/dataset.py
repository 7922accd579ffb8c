"""A data set in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """``samples`` (N, *D) float32 in [low, high]; ``labels`` (N,) int64 in [0, classes), or None with classes = 0."""

    samples: Tensor
    labels: Tensor | None
    classes: int
    low: float = -1.0
    high: float = 1.0

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape *D of one sample."""
        return tuple(self.samples.shape[1:])

    def proportional_labels(self, count: int) -> Tensor | None:
        """``count`` labels in the data's class proportions, by largest remainders, sorted by class; None without labels."""
        if self.labels is None:
            return None
        exact = torch.bincount(self.labels, minlength=self.classes).double() * count / len(self.labels)
        counts = exact.floor().long()
        remainders = torch.argsort(exact - counts, descending=True, stable=True)
        counts[remainders[: count - int(counts.sum())]] += 1
        return torch.repeat_interleave(torch.arange(self.classes), counts)

    def stratified_halves(self) -> tuple[Tensor, Tensor]:
        """Two disjoint halves of the samples with equal class proportions: every other sample within each class."""
        labels = torch.zeros(len(self), dtype=torch.int64) if self.labels is None else self.labels
        order = torch.argsort(labels, stable=True)
        return self.samples[order[0::2]], self.samples[order[1::2]]
