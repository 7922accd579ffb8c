"""Prompts as the owner of conditions: a condition's number is its prompt's place in the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.condition import NO_CLASS, Condition, Conditions
from fewstep.data.prompts.embeddings import EmbeddedPrompts
from fewstep.errors import UserError
from fewstep.system.files import digest_of

TIME_IDS = "time_ids"


@dataclass(frozen=True)
class Unembedded(Conditions):
    """``number`` prompts whose embeddings are not there: conditions of the right ``shapes``, rows
    by name, and of zeros alone. For what only needs sizes.
    """

    shapes: Mapping[str, tuple[int, ...]]
    number: int = 1

    @property
    def count(self) -> int:
        return self.number

    @property
    def identity(self) -> str:
        return digest_of({}, {"kind": "unembedded", "number": self.number})

    def of(self, numbers: Tensor | None) -> Condition:
        return self.sketch(1 if numbers is None else len(numbers))

    def null(self, condition: Condition) -> Condition:
        return condition

    def sketch(self, rows: int) -> Condition:
        return Condition(context={name: torch.zeros(rows, *shape) for name, shape in self.shapes.items()})


@dataclass(frozen=True, eq=False)
class PromptConditions(Conditions):
    """The embedded ``prompts`` by number; the unconditional condition is the encoder's null prompt.

    ``sizes``: rows (1, ...) by name that every condition has besides, also the unconditional one,
    such as SDXL's ``time_ids`` (1, 6): those of generated pictures, which ``sized`` replaces. A
    condition holds its prompt's number as its label, so that what keeps labels keeps prompts.
    Raises ``UserError`` for a name that prompts and sizes share, and for no prompts.
    """

    prompts: EmbeddedPrompts
    sizes: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = sorted(self.sizes.keys() & self.prompts.shapes.keys())
        if shared:
            raise UserError(f"conditions: '{shared[0]}' is the name of an embedding already; give sizes another name.")
        if not len(self.prompts):
            raise UserError("conditions: there are no prompts; give at least one.")

    @property
    def count(self) -> int:
        return len(self.prompts)

    @property
    def identity(self) -> str:
        return digest_of(self.sizes, {"prompts": self.prompts.identity})

    @property
    def texts(self) -> Sequence[str]:
        return self.prompts.texts

    def of(self, numbers: Tensor | None) -> Condition:
        """The conditions of ``numbers`` (B,) int64 from -1 to ``count`` - 1, on the CPU; raises
        ``UserError`` for others, and for None.
        """
        if numbers is None or bool(((numbers < NO_CLASS) | (numbers >= self.count)).any()):
            raise UserError(f"conditions: prompts have numbers from 0 to {self.count - 1}, and -1 is the empty prompt.")
        rows = self.prompts.rows(numbers.clamp(min=0))
        silent = numbers == NO_CLASS
        for name, value in rows.items():
            value[silent] = self.prompts.null[name].to(value.dtype)
        sizes = {name: value.expand(len(numbers), *value.shape[1:]) for name, value in self.sizes.items()}
        return Condition(numbers, {**rows, **sizes})

    def sketch(self, rows: int) -> Condition:
        sizes = {name: tuple(value.shape[1:]) for name, value in self.sizes.items()}
        return Unembedded({**self.prompts.shapes, **sizes}, len(self.prompts)).sketch(rows)

    def sized(self, condition: Condition, sizes: Callable[[], Tensor]) -> Condition:
        """The condition with the pictures' own ``sizes`` as its ``time_ids``, where conditions
        have these; as it is where they do not.
        """
        if TIME_IDS not in self.sizes:
            return condition
        own = sizes().to(condition.context[TIME_IDS])
        return replace(condition, context={**condition.context, TIME_IDS: own})

    def null(self, condition: Condition) -> Condition:
        context = dict(condition.context)
        for name, value in self.prompts.null.items():
            held = context.get(name)
            if held is None:
                raise UserError(
                    f"guidance: the condition has no '{name}', which prompts have; give prompts' conditions."
                )
            context[name] = value.to(held).expand_as(held)
        labels = None if condition.labels is None else torch.full_like(condition.labels, NO_CLASS)
        return replace(condition, labels=labels, context=context)
