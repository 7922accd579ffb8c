"""What a sample is conditioned on: class labels, named tensors (text embeddings), a guidance scale;
and where conditions come from.

``Condition`` is one frozen type at the bottom, so that states, denoisers and objectives pass it on
without looking inside. The label -1 stands for "no class".

``Conditions`` is a numbered set of them, and knows what "no condition" is. Prior, data, evaluation
and pictures name a condition by its number, and ask the owner of the numbers for what networks see.
A class network embeds the label -1 as zero; a text network takes the empty prompt's embedding, or
zeros.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.random import Key

NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class Condition:
    """A batch of conditions; every tensor's first dimension is the batch.

    ``labels``: class ids (B,) int64 with -1 for none, or probabilities (B, K). ``context``: named
    tensors (B, ...). ``guidance``: the scale w of classifier-free guidance (B,), for networks and
    wrappers that read it.
    """

    labels: Tensor | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)
    guidance: Tensor | None = None

    def __len__(self) -> int:
        for tensor in self._tensors():
            return len(tensor)
        return 0

    def __getitem__(self, index: slice | Tensor) -> Condition:
        """The condition of some of the samples."""
        return self._map(lambda value: value[index])

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return self._map(lambda value: value.to(device))

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Concatenates batches; raises ``UserError`` unless all parts carry the same fields."""
        fields = {(part.labels is None, frozenset(part.context), part.guidance is None) for part in parts}
        if len(fields) != 1:
            raise UserError(
                "conditions cannot be concatenated: some carry labels, a context or a guidance scale that "
                "others lack; give all the same fields."
            )
        return Condition(
            _cat([part.labels for part in parts if part.labels is not None]),
            {key: torch.cat([part.context[key] for part in parts]) for key in parts[0].context},
            _cat([part.guidance for part in parts if part.guidance is not None]),
        )

    @staticmethod
    def select(mask: Tensor, these: Condition, others: Condition) -> Condition:
        """The conditions of ``these`` where ``mask`` (B,) is true, else those of ``others``, which
        carry the same fields.
        """
        rows = torch.where(mask, torch.arange(len(mask)), len(mask) + torch.arange(len(mask)))
        both = Condition.cat([these, others])
        return both._map(lambda value: value[rows.to(value.device)])

    def _tensors(self) -> list[Tensor]:
        return [v for v in (self.labels, *self.context.values(), self.guidance) if v is not None]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(
            None if self.labels is None else function(self.labels),
            {k: function(v) for k, v in self.context.items()},
            None if self.guidance is None else function(self.guidance),
        )


def _cat(tensors: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(tensors)) if tensors else None


def as_condition(value: Condition | Tensor | None) -> Condition:
    """Accepts what a denoiser accepts: a ``Condition``, a bare label tensor, or None."""
    if isinstance(value, Condition):
        return value
    return Condition(labels=value)


class Conditions(abc.ABC):
    """Conditions by number, from 0 to ``count`` - 1; -1 stands for the unconditional condition.

    A set without conditions has a ``count`` of 0.
    """

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """How many conditions there are."""

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """SHA-256, 64 hexadecimal digits, over what decides the conditions and their order."""

    @property
    def texts(self) -> Sequence[str]:
        """What each condition says, by its number; empty where conditions are no texts."""
        return ()

    @abc.abstractmethod
    def of(self, numbers: Tensor | None) -> Condition:
        """The conditions of ``numbers`` (B,) int64, on the CPU; None where there are none."""

    @abc.abstractmethod
    def null(self, condition: Condition) -> Condition:
        """The unconditional counterpart of a condition: the same guidance scale, and nothing else
        that a sample is asked to be.
        """

    @abc.abstractmethod
    def sketch(self, rows: int) -> Condition:
        """A condition of ``rows`` samples whose tensors have the right shapes and no meaning, on
        torch's default device, which may be the meta device.
        """

    def sized(self, condition: Condition, sizes: Callable[[], Tensor]) -> Condition:
        """The condition of real pictures, whose ``sizes`` (B, 6) are asked for where conditions
        hold a picture's sizes (``Dataset.sizes``); as it is where they do not.
        """
        return condition

    def dropped(self, condition: Condition, mask: Tensor) -> Condition:
        """The conditions (B), where ``mask`` (B,) is true the unconditional one in their place."""
        return Condition.select(mask, self.null(condition), condition)

    def draw(self, key: Key, rows: int, start: int = 0) -> Condition:
        """Conditions of ``rows`` samples, uniform over the set: a function of the place."""
        return self.of(self.numbers(key, rows, start))

    def numbers(self, key: Key, rows: int, start: int = 0) -> Tensor | None:
        """The numbers (``rows``,) int64 of the conditions that ``draw`` gives there; None where the
        set has none.
        """
        return key.integers("prior-class", rows, self.count, start) if self.count else None


@dataclass(frozen=True)
class Classes(Conditions):
    """``number`` classes, whose labels are their numbers; none for 0.

    The unconditional condition is the label -1, or probabilities of zero, which networks embed as
    zero, as EDM does with dropped labels (Karras et al. 2022, App. F).
    """

    number: int = 0

    @property
    def count(self) -> int:
        return self.number

    @property
    def identity(self) -> str:
        return hashlib.sha256(f"{self.number} classes".encode()).hexdigest()

    def of(self, numbers: Tensor | None) -> Condition:
        return Condition(labels=numbers)

    def sketch(self, rows: int) -> Condition:
        # Probabilities: ids on the meta device have no values to be checked.
        return Condition(labels=torch.zeros(rows, self.number) if self.number else None)

    def null(self, condition: Condition) -> Condition:
        if condition.context:
            raise UserError(
                f"guidance: the condition holds {', '.join(sorted(condition.context))}, and class labels alone "
                "do not say what it is without them; give Guided the conditions' owner."
            )
        labels = condition.labels
        if labels is None:
            return condition
        whole = labels.dtype == torch.int64
        return replace(condition, labels=torch.full_like(labels, NO_CLASS) if whole else torch.zeros_like(labels))


LABELS = Classes()
"""The owner of class labels, whatever their number."""
