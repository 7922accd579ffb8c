"""A data set: samples by index.

States draw the index of each sample from the run's place, so that a draw is a function of its
position and of nothing before it; all that a data set has to do is to give the samples of an index.
Labels are in memory, since a class proportion needs all of them; samples need not be: what looks at
all samples does so a block at a time.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.errors import UserError
from fewstep.resumable import Inert
from fewstep.system.files import digest_of


@dataclass(frozen=True)
class SampleSpace:
    """What samples look like: their ``shape`` *D, values in [``low``, ``high``], and how many
    ``classes`` they are of, 0 for none. Data says so, and where there is no data the teacher.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    classes: int


class Dataset(Inert, abc.ABC):
    """Samples in [low, high] with ``labels`` (N,) int64 in [0, classes), or None with classes = 0;
    ``names`` of the classes, empty where they have none. What has no range, such as latents, has
    ``low`` = -inf and ``high`` = inf.
    """

    labels: Tensor | None
    classes: int
    low: float
    high: float
    names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """Sentences that are worth a line when the set is used: what was passed over, and how classes
    were found.
    """

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
    @abc.abstractmethod
    def identity(self) -> str:
        """SHA-256, 64 hexadecimal digits, over what decides samples, labels, range and classes.

        It follows the content: another path is the same set, another content under the same path is
        another set. Files are read for it when it is first asked; the digest is remembered.
        """

    @property
    def numbers(self) -> Tensor | None:
        """The number of each sample's condition, (N,) int64, -1 for the unconditional one: its
        label, unless the set says another (see ``captioned``). None where samples have none.
        """
        return self.labels

    def where(self, index: int) -> str:
        """What to call the sample at ``index`` in [0, N) in a sentence: its file where it has
        one.
        """
        return f"sample {index}"

    def captions(self, index: Tensor) -> list[str] | None:
        """The captions of the samples at ``index`` (n,), "" for one that has none; no sample is
        made for it. None where the set has no captions.
        """
        return None

    def sizes(self, index: Tensor) -> Tensor:
        """SDXL's micro-conditioning (Podell et al. 2023, Sec. 2.2) of the pictures at ``index``
        (n,), the context ``time_ids``: (n, 6) float32. Height and width before the picture was
        resized, top and left of the crop in the resized picture, height and width now; in pixels.

        A picture that was neither resized nor cropped, unless the set says another. Raises
        ``UserError`` for samples that are no pictures.
        """
        if len(self.shape) != 3:
            raise UserError(f"data: samples of shape {self.shape} are no pictures, and have no sizes.")
        height, width = self.shape[1:]
        return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).repeat(len(index), 1)

    @property
    def space(self) -> SampleSpace:
        """What its samples look like."""
        return SampleSpace(self.shape, self.low, self.high, self.classes)

    def subset(self, index: Tensor) -> Dataset:
        """The data set of the samples at ``index`` (n,), in that order, with the same classes and
        range.
        """
        return Subset(
            self,
            index,
            None if self.labels is None else self.labels[index],
            self.classes,
            self.low,
            self.high,
            self.names,
        )

    def blocks(self, rows: int = 1000) -> Iterator[Tensor]:
        """All samples in order, at most ``rows`` at a time."""
        for index in torch.arange(len(self)).split(rows):
            yield self.take(index)

    def head(self, rows: int) -> Tensor:
        """At most ``rows`` indices, (n,), whose samples stand for the whole: the first, which is
        right where the order is no order of classes.
        """
        return torch.arange(min(rows, len(self)))

    def proportional_labels(self, count: int) -> Tensor | None:
        """``count`` labels in the data's class proportions, by largest remainders, sorted by class;
        None without labels.
        """
        if self.labels is None:
            return None
        exact = torch.bincount(self.labels, minlength=self.classes).double() * count / len(self.labels)
        counts = exact.floor().long()
        remainders = torch.argsort(exact - counts, descending=True, stable=True)
        counts[remainders[: count - int(counts.sum())]] += 1
        return torch.repeat_interleave(torch.arange(self.classes), counts)

    def stratified_halves(self) -> tuple[Dataset, Dataset]:
        """Two disjoint halves with equal class proportions: every other sample within each
        class.
        """
        labels = torch.zeros(len(self), dtype=torch.int64) if self.labels is None else self.labels
        order = torch.argsort(labels, stable=True)
        return self.subset(order[0::2]), self.subset(order[1::2])


class Derived(Dataset):
    """A sample for each of ``data``: of the same condition, place, caption and size."""

    data: Dataset

    def __len__(self) -> int:
        return len(self.data)

    @property
    def numbers(self) -> Tensor | None:
        return self.data.numbers

    def where(self, index: int) -> str:
        return self.data.where(index)

    def captions(self, index: Tensor) -> list[str] | None:
        return self.data.captions(index)

    def sizes(self, index: Tensor) -> Tensor:
        return self.data.sizes(index)

    def head(self, rows: int) -> Tensor:
        return self.data.head(rows)


class Conditioned(Dataset):
    """Samples that come with their conditions: ``labels`` (N,) are the numbers of these, and no
    classes.
    """

    @property
    @abc.abstractmethod
    def conditions(self) -> Conditions:
        """What the numbers stand for."""


class Described(Dataset):
    """Samples that are described by attributes, each of a few values: what a reader learns to
    tell.
    """

    @property
    @abc.abstractmethod
    def values(self) -> Mapping[str, int]:
        """How many values each attribute has, by its name."""

    @abc.abstractmethod
    def attributes(self, index: Tensor) -> dict[str, Tensor]:
        """The attributes, by name, of the samples at ``index`` (n,) int64 in [0, N): each (n,)
        int64 in [0, the number of its values).
        """


@dataclass(frozen=True, eq=False)
class InMemory(Dataset):
    """All ``samples`` (N, *D), float32, as a tensor.

    ``origin``: what samples that are computed are a function of, a text. The identity is then that
    text's, since the last bits of a cosine differ between processors.
    """

    samples: Tensor
    labels: Tensor | None
    classes: int
    low: float = -1.0
    high: float = 1.0
    names: tuple[str, ...] = ()
    origin: str = ""

    @cached_property
    def identity(self) -> str:
        samples = {} if self.origin else {"samples": self.samples}
        made = {"kind": "in memory", "origin": self.origin, "shape": list(self.samples.shape)}
        return digest_of({**samples, **_labels_of(self)}, {**made, **_reading_of(self)})

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

    @cached_property
    def identity(self) -> str:
        what = {"kind": "subset", "of": self.data.identity, **_reading_of(self)}
        return digest_of({"index": self.index, **_labels_of(self)}, what)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def take(self, index: Tensor) -> Tensor:
        return self.data.take(self.index[index])

    @cached_property
    def numbers(self) -> Tensor | None:
        return None if self.data.numbers is None else self.data.numbers[self.index]

    def where(self, index: int) -> str:
        return self.data.where(int(self.index[index]))

    def captions(self, index: Tensor) -> list[str] | None:
        return self.data.captions(self.index[index])

    def sizes(self, index: Tensor) -> Tensor:
        return self.data.sizes(self.index[index])


def _labels_of(data: Dataset) -> dict[str, Tensor]:
    return {} if data.labels is None else {"labels": data.labels}


def _reading_of(data: Dataset) -> dict[str, Any]:
    span = None if isinstance(data, InMemory) and data.origin else [data.low, data.high]
    return {"classes": data.classes, "names": list(data.names), "range": span}
