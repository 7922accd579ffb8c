"""Students that are a teacher and a low-rank adapter: merging the two, and adapters in files (see
``networks.lora``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.denoisers.denoiser import Model
from fewstep.errors import UserError
from fewstep.networks.kinds.network_files import FORMAT
from fewstep.networks.lora import Adapter, apply_adapter, fold_adapter
from fewstep.system.files import read_tensors, write_tensors

_KIND = "lora"


def merged(model: Model) -> Model:
    """A plain copy of an adapted model, the adapter folded into its weights: what is saved,
    exported and sampled. It computes the same, bit for bit.

    Raises ``UserError`` when the model has no adapter.
    """
    plain = copy.deepcopy(model)
    fold_adapter(plain)
    return plain


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter from a file; ``extra`` holds the plain values that were saved with it."""

    state: dict[str, Tensor]
    rank: int
    scale: float
    extra: dict[str, Any]

    def apply_to(self, module: nn.Module) -> Adapter:
        """``apply_adapter`` of it: raises ``UserError`` naming the first layer that does not
        fit.
        """
        return apply_adapter(module, self.state, self.rank, self.scale)


def save_adapter(path: Path, adapter: Adapter, extra: Mapping[str, Any] | None = None) -> str:
    """Writes the adapter and ``extra`` (plain values) to ``path``; returns the file's digest."""
    metadata = {**(extra or {}), "format": FORMAT, "kind": _KIND, "rank": adapter.rank, "scale": adapter.scale}
    return write_tensors(path, adapter.state_dict(), metadata)


def load_adapter(path: Path) -> StoredAdapter:
    """Reads what ``save_adapter`` wrote.

    Raises ``UserError`` naming the file when it is damaged or holds something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.pop("format", None) != FORMAT or metadata.pop("kind", None) != _KIND:
        raise UserError(
            f"{path}: is not an adapter's file of format {FORMAT}; it may come from another version or hold "
            "a whole model."
        )
    rank, scale = metadata.pop("rank", None), metadata.pop("scale", None)
    if not isinstance(rank, int) or not isinstance(scale, (int, float)):
        raise UserError(f"{path}: says no rank and scale for its adapter; it was altered or written by something else.")
    return StoredAdapter(tensors, rank, float(scale), metadata)
