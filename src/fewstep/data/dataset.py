"""A data set: samples by index.

States draw the index of each sample from the run's place, so that a draw is a function of its position and of nothing before it; all that a data set has to do is to give the samples
of an index. Labels are in memory, since a class proportion needs all of them; samples need not be: what looks at all samples does so a block at a time.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleSpace:
    """What samples look like: their ``shape`` *D, values in [``low``, ``high``], and how many ``classes`` they are of, 0 for none. Data says so, and where there is no data the teacher."""

    shape: tuple[int, ...]
    low: float
    high: float
    classes: int


class Dataset(abc.ABC):
    """Samples in [low, high] with ``labels`` (N,) int64 in [0, classes), or None with classes = 0; ``names`` of the classes, empty where they have none."""

    labels: Tensor | None
    classes: int
    low: float
    high: float
    names: tuple[str, ...]

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number N of samples."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape *D of one sample."""

    @abc.abstractmethod
    def take(self, index: Tensor) -> Tensor:
        """The samples (n, *D), float32, at ``index`` (n,) int64 in [0, N); an index may repeat."""

    @property
    def space(self) -> SampleSpace:
        """What its samples look like."""
        return SampleSpace(self.shape, self.low, self.high, self.classes)

    def subset(self, index: Tensor) -> Dataset:
        """The data set of the samples at ``index`` (n,), in that order, with the same classes and range."""
        return Subset(self, index, None if self.labels is None else self.labels[index], self.classes, self.low, self.high, self.names)

    def blocks(self, rows: int = 1000) -> Iterator[Tensor]:
        """All samples in order, at most ``rows`` at a time."""
        for index in torch.arange(len(self)).split(rows):
            yield self.take(index)

    def head(self, rows: int) -> Tensor:
        """At most ``rows`` indices, (n,), whose samples stand for the whole: the first, which is right where the order is no order of classes."""
        return torch.arange(min(rows, len(self)))

    def proportional_labels(self, count: int) -> Tensor | None:
        """``count`` labels in the data's class proportions, by largest remainders, sorted by class; None without labels."""
        if self.labels is None:
            return None
        exact = torch.bincount(self.labels, minlength=self.classes).double() * count / len(self.labels)
        counts = exact.floor().long()
        remainders = torch.argsort(exact - counts, descending=True, stable=True)
        counts[remainders[: count - int(counts.sum())]] += 1
        return torch.repeat_interleave(torch.arange(self.classes), counts)

    def stratified_halves(self) -> tuple[Dataset, Dataset]:
        """Two disjoint halves with equal class proportions: every other sample within each class."""
        labels = torch.zeros(len(self), dtype=torch.int64) if self.labels is None else self.labels
        order = torch.argsort(labels, stable=True)
        return self.subset(order[0::2]), self.subset(order[1::2])


@dataclass(frozen=True, eq=False)
class InMemory(Dataset):
    """All ``samples`` (N, *D), float32, as a tensor."""

    samples: Tensor
    labels: Tensor | None
    classes: int
    low: float = -1.0
    high: float = 1.0
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.samples.shape[1:])

    def take(self, index: Tensor) -> Tensor:
        return self.samples[index]


@dataclass(frozen=True, eq=False)
class Subset(Dataset):
    """The samples of ``data`` at ``index`` (n,), read when they are asked for."""

    data: Dataset
    index: Tensor
    labels: Tensor | None
    classes: int
    low: float
    high: float
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def take(self, index: Tensor) -> Tensor:
        return self.data.take(self.index[index])
