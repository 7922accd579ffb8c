"""Models with low-rank adapters (see ``networks.adapters``): their adapters, what they are when the
adapter is added to the weights, and adapters in files of our own, which other programs' files are
read beside (``zoo.lora``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.denoisers.denoiser import Model
from fewstep.errors import UserError
from fewstep.networks.adapters import Adapter, adapted_in, merged_network
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.networks.kinds.network_files import FORMAT
from fewstep.system.files import read_tensors, write_tensors

ADAPTER = "adapter.safetensors"
"""In the folder of a run whose student is an adapter."""
KIND = "lora"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def merged(model: Model) -> Model:
    """A plain copy of an adapted model, the adapter added to its weights: what is saved, exported
    and sampled. It computes the same up to rounding.

    Raises ``UserError`` when the model has no adapter.
    """
    plain = copy.deepcopy(model)
    roles = [path for path, role in plain.named_modules() if role in set(adapted_in(plain))]
    if not roles:
        raise UserError(f"{type(model).__name__} has no adapter: put its network on a base by 'AdaptedNetwork'.")
    for path, role in zip(roles, list(adapted_in(plain)), strict=True):
        plain.set_submodule(path, merged_network(role))
    return plain


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter of a model with one; it shares the model's parameters.

    Raises ``UserError`` where there is none.
    """
    role = next(adapted_in(model), None)
    if role is None:
        raise UserError(f"{type(model).__name__} has no adapter: put its network on a base by 'AdaptedNetwork'.")
    return role.adapter


def adapter_in(path: Path) -> Path:
    """The adapter's file that is meant by a path: itself, or of a run's folder the student's."""
    return path / ADAPTER if path.is_dir() else path


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter from a file of ours, by the paths of its layers; ``extra`` holds the plain values
    that were saved with it.
    """

    pairs: dict[str, LowRankPair]
    extra: dict[str, Any]

    @property
    def ranks(self) -> str:
        """Its rank, or the least and the greatest of its layers."""
        found = sorted({pair.rank for pair in self.pairs.values()})
        return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"

    def on(self, network: nn.Module) -> dict[str, LowRankPair]:
        """Its pairs for the layers of a network.

        A file from before convolutions had kernels holds matrices (rank, inputs k k), which take
        the shapes that the network's layers give them.
        """
        layers = dict(network.named_modules())
        return {path: _as_kernel(pair, layers.get(path)) for path, pair in self.pairs.items()}


def save_adapter(path: Path, adapter: Adapter, extra: Mapping[str, Any] | None = None) -> str:
    """Writes the adapter and ``extra`` (plain values) to ``path``; returns the file's digest."""
    pairs = adapter.pairs()
    tensors = {path + _DOWN: pair.down for path, pair in pairs.items()}
    tensors |= {path + _UP: pair.up for path, pair in pairs.items()}
    alphas = {path: pair.alpha for path, pair in pairs.items()}
    return write_tensors(path, tensors, {**(extra or {}), "format": FORMAT, "kind": KIND, "alphas": alphas})


def load_adapter(path: Path) -> StoredAdapter:
    """Reads what ``save_adapter`` wrote.

    Raises ``UserError`` naming the file when it is damaged or holds something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.pop("format", None) != FORMAT or metadata.pop("kind", None) != KIND:
        raise UserError(
            f"{path}: is not an adapter's file of format {FORMAT}; it may come from another version or hold "
            "a whole model."
        )
    alphas = metadata.pop("alphas", None)
    rank, scale = metadata.pop("rank", None), metadata.pop("scale", None)
    if alphas is None and isinstance(rank, int) and isinstance(scale, (int, float)):
        return StoredAdapter(_paired(path, _renamed(tensors), rank * float(scale)), metadata)
    if not isinstance(alphas, dict) or not all(isinstance(each, (int, float)) for each in alphas.values()):
        raise UserError(f"{path}: says no alpha for its layers; it was altered or written by something else.")
    return StoredAdapter(_paired(path, tensors, alphas), metadata)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of today for those of files that have one rank and scale for all layers: ``to:``
    and the path in the denoiser with colons.
    """
    ends = {"down": _DOWN, "up": _UP}
    found = {}
    for name, value in tensors.items():
        path, _, part = name.removeprefix("to:").rpartition(".")
        found[path.replace(":", ".").removeprefix("network.") + ends.get(part, f".{part}")] = value
    return found


def _paired(path: Path, tensors: Mapping[str, Tensor], alphas: Mapping[str, Any] | float) -> dict[str, LowRankPair]:
    layers = sorted({name.removesuffix(_DOWN).removesuffix(_UP) for name in tensors})
    pairs = {}
    for layer in layers:
        down, up = tensors.get(layer + _DOWN), tensors.get(layer + _UP)
        alpha = alphas if isinstance(alphas, float) else alphas.get(layer)
        if down is None or up is None or alpha is None or not down.ndim == up.ndim >= 2 or up.shape[1] != len(down):
            raise UserError(
                f"{path}: layer '{layer}' has no two matrices of one rank with an alpha; it was altered or written by "
                "something else."
            )
        if not math.isfinite(alpha) or not alpha:
            raise UserError(f"{path}: layer '{layer}' has an alpha of {alpha}, and it must be finite and not 0.")
        pairs[layer] = LowRankPair(down, up, float(alpha))
    return pairs


def _as_kernel(pair: LowRankPair, layer: nn.Module | None) -> LowRankPair:
    if not isinstance(layer, nn.Conv2d) or pair.down.ndim != 2 or pair.down[0].numel() != layer.weight[0].numel():
        return pair
    down = pair.down.view(pair.rank, *layer.weight.shape[1:])
    return replace(pair, down=down, up=pair.up[:, :, None, None])
