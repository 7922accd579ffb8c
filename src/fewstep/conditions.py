"""Where conditions come from: a numbered set of them, and what "no condition" is.

Prior, data, evaluation and pictures name a condition by its number, and ask the owner of the
numbers for what networks see. The unconditional condition belongs to the owner too: a class
network embeds the label -1 as zero, a text network takes the empty prompt's embedding, or zeros.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.condition import NO_CLASS, Condition
from fewstep.errors import UserError
from fewstep.random import Key


class Conditions(abc.ABC):
    """Conditions by number, from 0 to ``count`` - 1; -1 stands for the unconditional condition.

    A set without conditions has a ``count`` of 0.
    """

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """How many conditions there are."""

    @abc.abstractmethod
    def of(self, numbers: Tensor | None) -> Condition:
        """The conditions of ``numbers`` (B,) int64, on the CPU; None where there are none."""

    @abc.abstractmethod
    def null(self, condition: Condition) -> Condition:
        """The unconditional counterpart of a condition: the same guidance scale, and nothing else
        that a sample is asked to be.
        """

    def draw(self, key: Key, rows: int, start: int = 0) -> Condition:
        """Conditions of ``rows`` samples, uniform over the set: a function of the place."""
        return self.of(key.integers("prior-class", rows, self.count, start) if self.count else None)


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

    def of(self, numbers: Tensor | None) -> Condition:
        return Condition(labels=numbers)

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
