"""What a sample is conditioned on: class labels, named tensors (text embeddings), a guidance scale.

One frozen type at the bottom, so that states, denoisers and objectives pass it on without looking
inside. The label -1 stands for "no class": networks embed it as zero, as EDM does with dropped
labels (Karras et al. 2022, App. F).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.errors import UserError

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
