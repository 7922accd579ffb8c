r"""Low-rank adapters (LoRA; Hu et al. 2021): a network's layers computed with

    W + scale B A,    A (rank, fan_in),  B (outputs, rank),

where W stays as it was and only A and B are trained. ``scale`` is the paper's alpha / r (Sec. 4.1).
B starts at zero, so that an adapted network computes what it did, bit for bit; A is normal, of the
variance 1 / (3 fan_in) that the authors' code (loralib, Kaiming-uniform with a = sqrt 5) gives it.
A convolution's kernel (outputs, inputs, k, k) is taken as the matrix (outputs, inputs k k).

Each adapted layer is put inside an ``AdaptedLayer``, which calls it with the other weight.
(``torch.nn.utils.parametrize`` would need no wrapper, but a deep copy shares its class with the
original, and folding the copy breaks the original.) The low-rank parameters are held twice, by
these and by the ``Adapter``, so that a phase can train and a checkpoint can save the adapter alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewstep.errors import UserError
from fewstep.random import Key


class LowRank(nn.Module):
    """weight (outputs, ...) -> weight + scale (up down), with ``down`` (rank, fan_in) and ``up``
    (outputs, rank), both zero at first.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float):
        super().__init__()
        self.down = nn.Parameter(weight.new_zeros(rank, weight[0].numel()))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


class AdaptedLayer(nn.Module):
    """A linear or convolutional layer, called with ``low_rank`` of its weight in the weight's
    place.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, low_rank: LowRank):
        super().__init__()
        self.layer = layer
        self.low_rank = low_rank

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.layer, {"weight": self.low_rank(self.layer.weight)}, (x,))

    def folded(self) -> nn.Linear | nn.Conv2d:
        """The layer itself, the adapted weight written into it."""
        with torch.no_grad():
            self.layer.weight.copy_(self.low_rank(self.layer.weight))
        return self.layer


class Adapter(nn.Module):
    """The low-rank parameters of an adapted module and nothing else: what is trained, checkpointed
    and saved.

    In its state dict, a layer at ``network.enter`` is ``to:network:enter``, since names of
    submodules hold no dots. ``paths`` are the layers' own paths in the module; ``rank`` and
    ``scale``: see above.
    """

    def __init__(self, layers: Mapping[str, LowRank], rank: int, scale: float):
        super().__init__()
        self.rank = rank
        self.scale = scale
        self.paths = tuple(layers)
        for path, layer in layers.items():
            self.add_module(_name(path), layer)


def add_adapter(module: nn.Module, rank: int, scale: float = 1.0, seed: int = 0) -> Adapter:
    """Adapts every linear and convolutional layer inside ``module``, in place, and freezes the
    weights that the module had.

    The draws are a function of ``seed``, the layer's path and the rank. Raises ``UserError`` for a
    rank below 1, a module without such layers, and one that has an adapter already.
    """
    adapter = _installed(module, rank, scale)
    key = Key(seed, "lora")
    for path, layer in _adapted(module).items():
        down = layer.low_rank.down
        with torch.no_grad():
            down.copy_(key.normal(f"lora {path}", down.shape) / (3 * down.shape[1]) ** 0.5)
    return adapter


def apply_adapter(module: nn.Module, state: Mapping[str, Tensor], rank: int, scale: float) -> Adapter:
    """Puts an adapter's state dict onto ``module``, which may be another one than it was trained
    on, such as a better teacher of the same shape.

    Raises ``UserError`` naming the first layer that does not fit; the module is then unchanged.
    """
    left = dict(state)
    for path, layer in _layers(module).items():
        for part, shape in (("down", (rank, layer.weight[0].numel())), ("up", (len(layer.weight), rank))):
            found = left.pop(f"{_name(path)}.{part}", None)
            if found is None or found.shape != shape:
                has = "nothing" if found is None else f"{tuple(found.shape)}"
                raise UserError(
                    f"the adapter does not fit at layer '{path}': it has {has} for '{part}' where the layer "
                    f"needs {shape}; it belongs to a network of another shape."
                )
    if left:
        path = min(left).removeprefix("to:").rpartition(".")[0].replace(":", ".")
        raise UserError(
            f"the adapter does not fit at layer '{path}': this network has no such layer; the adapter "
            "belongs to a network of another shape."
        )
    adapter = _installed(module, rank, scale)
    adapter.load_state_dict(dict(state))
    return adapter


def adapter_of(module: nn.Module) -> Adapter:
    """The adapter of an adapted module, as of a copy of one; it shares the module's parameters.

    Raises ``UserError`` when there is none.
    """
    parts = {path: layer.low_rank for path, layer in _adapted(module).items()}
    if not parts:
        raise UserError(f"{type(module).__name__} has no adapter: give it one by add_adapter.")
    first = next(iter(parts.values()))
    return Adapter(parts, len(first.down), first.scale)


def fold_adapter(module: nn.Module) -> None:
    """Writes the adapted weights into the layers of ``module``, in place, which then are plain
    layers again. Raises ``UserError`` when there is no adapter.
    """
    for path in adapter_of(module).paths:
        layer = module.get_submodule(path)
        assert isinstance(layer, AdaptedLayer)
        module.set_submodule(path, layer.folded())


def has_adapter(module: nn.Module) -> bool:
    """Whether some layer of ``module`` is adapted."""
    return bool(_adapted(module))


def _name(path: str) -> str:
    # With a prefix no layer's name can be one of nn.Module's own attributes.
    return "to:" + path.replace(".", ":")


def _layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that an adapter would go on, by path."""
    return {path: layer for path, layer in module.named_modules() if path and isinstance(layer, (nn.Linear, nn.Conv2d))}


def _adapted(module: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers that are adapted, by path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, AdaptedLayer)}


def _installed(module: nn.Module, rank: int, scale: float) -> Adapter:
    """An adapter of zeros on a module without one."""
    layers = _layers(module)
    if rank < 1:
        raise UserError(f"an adapter's rank must be at least 1, got {rank}.")
    if not layers:
        raise UserError(
            f"{type(module).__name__} has no linear or convolutional layers inside that an adapter could be put on."
        )
    if has_adapter(module):
        raise UserError(
            f"{type(module).__name__} has an adapter already: fold it in by 'merged' before adding another."
        )
    module.requires_grad_(False)
    parts = {path: LowRank(layer.weight, rank, scale) for path, layer in layers.items()}
    for path, part in parts.items():
        module.set_submodule(path, AdaptedLayer(layers[path], part))
    return Adapter(parts, rank, scale)
