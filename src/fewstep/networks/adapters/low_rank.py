r"""Low-rank adapters (LoRA; Hu et al. 2021): a layer of weight W computes

    W x + b + (alpha / rank) B (A x),    A (rank, inputs),  B (outputs, rank),

where W and b stay as they were and only A and B are trained. alpha / rank is the paper's scale
(Sec. 4.1). B starts at zero, so that an adapted layer computes what it did, bit for bit. A is
normal, of the variance 1 / (3 inputs) that the authors' code (loralib, Kaiming-uniform with
a = sqrt 5) gives it. Of a convolution A is a convolution of the layer's own kernel, stride and
padding, and B one of kernel 1, so that their product is a kernel (outputs, inputs, k, k).

Parameters have the names of the library peft: ``<layer>.lora_A.weight``, ``<layer>.lora_B.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from fewstep.errors import UserError
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.networks.interfaces import DenoisingNetwork, Reweighted
from fewstep.networks.precision import autocasts
from fewstep.random import Key

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Form:
    """The rank and alpha of an adapter, and the layers that it goes on.

    ``targets``: names of layers, or the ends of their paths after a dot (``to_q``,
    ``ff.net.0.proj``); None for those that the network's family usually adapts.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"an adapter's rank must be at least 1, got {self.rank}.")
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise UserError(
                f"an adapter's alpha must be finite and not 0, got {self.alpha}: what it adds is scaled by alpha / "
                "rank."
            )


class _Weight(nn.Module):
    """One matrix, under a name of its own."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)


class LowRank(nn.Module):
    """What is added to one layer: ``lora_A`` (rank, ...), ``lora_B`` (outputs, rank, ...), in
    float32 at least, also where the layer's own weights are shorter. ``called``: whether the layer
    has ever asked for it.
    """

    def __init__(self, layer: Layer, rank: int, alpha: float):
        super().__init__()
        weight, ones = layer.weight, (1,) * (layer.weight.ndim - 2)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.lora_A = _Weight(weight.new_zeros((rank, *weight.shape[1:]), dtype=dtype))
        self.lora_B = _Weight(weight.new_zeros((len(weight), rank, *ones), dtype=dtype))
        self.alpha = alpha
        self.called = False

    @property
    def rank(self) -> int:
        """Of both matrices."""
        return len(self.lora_A.weight)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def draw(self, key: Key, path: str) -> None:
        """Draws ``lora_A``; ``lora_B`` stays at zero."""
        down = self.lora_A.weight
        inputs = down[0].numel()
        with torch.no_grad():
            # The path in a denoiser, so that adapters have the draws that they had.
            drawn = key.normal(f"lora network.{path}", torch.Size((len(down), inputs))) / (3 * inputs) ** 0.5
            down.copy_(drawn.view_as(down))

    def added_to(self, emitted: Tensor, layer: Layer, x: Tensor) -> Tensor:
        """What the layer emitted on x, and the adapter's part."""
        if not self.called:
            self.called = True
        down, up = self.lora_A.weight, self.lora_B.weight
        if x.dtype != down.dtype and not autocasts(x):
            x = x.to(down.dtype)
        low = _computed(layer, x, down)
        low = linear(low, up) if up.ndim == 2 else conv2d(low, up)
        return emitted + (self.scale * low).to(emitted.dtype)

    def pair(self) -> LowRankPair:
        """As files have it; a copy."""
        return LowRankPair(self.lora_A.weight.detach().clone(), self.lora_B.weight.detach().clone(), self.alpha)


class Adapter(nn.Module):
    """The low-rank parameters on a network's layers and nothing else: what is trained, checkpointed
    and saved. ``layers``: by the path of the layer.
    """

    def __init__(self, layers: Mapping[str, LowRank]):
        super().__init__()
        self.layers = dict(layers)
        for path, layer in layers.items():
            *folders, name = path.split(".")
            holder: nn.Module = self
            for folder in folders:
                if folder not in dict(holder.named_children()):
                    holder.add_module(folder, nn.Module())
                holder = holder.get_submodule(folder)
            holder.add_module(name, layer)

    def added(self, path: str, emitted: Tensor, layer: Layer, x: Tensor) -> Tensor:
        """What the layer at ``path`` emitted on x, and the adapter's part where it has one."""
        low_rank = self.layers.get(path)
        return emitted if low_rank is None else low_rank.added_to(emitted, layer, x)

    def pairs(self) -> dict[str, LowRankPair]:
        """As files have it, by the path of the layer."""
        return {path: layer.pair() for path, layer in self.layers.items()}


def fitting_layers(network: nn.Module, targets: Sequence[str] | None = None) -> dict[str, Layer]:
    """The layers of a network that an adapter of these ``targets`` goes on, by path.

    Raises ``UserError`` where there are none, for a target that matches none, and for a layer that
    computes by a rule of its own.
    """
    usual = network.adapted_by_default if isinstance(network, DenoisingNetwork) else ()
    wanted = tuple(usual if targets is None else targets)
    every = {path: layer for path, layer in network.named_modules() if path and isinstance(layer, Layer)}
    matched = {path: [target for target in wanted if _matches(path, target)] for path in every}
    found = {path: layer for path, layer in every.items() if matched[path] or not wanted}
    idle = sorted(set(wanted) - {target for each in matched.values() for target in each})
    if idle and targets is not None:
        raise UserError(
            f"{type(network).__name__} has no linear or convolutional layer called '{idle[0]}' for an adapter to go "
            f"on; its layers end in {', '.join(sorted({path.rpartition('.')[2] for path in every})[:12])}."
        )
    if not found:
        raise UserError(
            f"{type(network).__name__} has no linear or convolutional layers inside that an adapter could be put on."
        )
    for path, layer in found.items():
        check_layer(path, layer)
    return found


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def check_layer(path: str, layer: Layer) -> None:
    """Raises ``UserError`` for a layer that no adapter can be put on."""
    own = type(layer).forward in (nn.Linear.forward, nn.Conv2d.forward)
    if isinstance(layer, Reweighted):
        return
    if not own:
        raise UserError(
            f"layer '{path}' is a {type(layer).__name__}, which computes by a rule of its own, and no adapter can be "
            "put on it: derive it from Reweighted too, or name 'targets' without it."
        )
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
        raise UserError(
            f"layer '{path}' is a convolution in groups, or one that pads with other values than zeros, and no adapter "
            "can be put on it: name 'targets' without it."
        )


def _computed(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer would emit on x with that weight and without a bias."""
    if isinstance(layer, Reweighted):
        return layer.computed(x, weight, None)
    if isinstance(layer, nn.Linear):
        return linear(x, weight)
    return conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
