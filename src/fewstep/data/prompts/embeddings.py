"""Embedded prompts: rows by index, read from the cache when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fewstep.data.cached.rows import CachedRows
from fewstep.resumable import Inert


@dataclass(frozen=True, eq=False)
class EmbeddedPrompts(Inert):
    """The embeddings of ``texts``, N prompts in their order; made by ``embed``.

    ``identity``: SHA-256, 64 hexadecimal digits, over the encoder, the type that was asked for and
    the texts. ``null``: the rows of the unconditional prompt, (1, ...) by name. ``kept``: the rows
    on disk. ``remarks``: sentences of the prompts, and of those that are cut.

    Objects may be pickled, and read by several threads.
    """

    texts: tuple[str, ...]
    identity: str
    null: Mapping[str, Tensor]
    kept: CachedRows
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row by name."""
        return self.kept.shapes

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The embeddings (n, ...) by name, on the CPU and in the type they are kept in, at
        ``index`` (n,) int64 in [0, N); an index may repeat.

        Raises ``UserError`` for a pack that is gone or damaged since the prompts were embedded.
        """
        return self.kept.take(index)
