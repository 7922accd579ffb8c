"""One role on a shared network: what objectives call, phases train and averages copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.adapters.base import AdaptedBase
from fewstep.networks.adapters.low_rank import Adapter, Form, Layer, LowRank, check_layer, fitting_layers
from fewstep.networks.adapters.low_rank_pair import LowRankPair, add_to_weights
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.networks.precision import long_copy
from fewstep.random import Key

Model = TypeVar("Model", bound=nn.Module)


class AdaptedNetwork(nn.Module):
    """Called as the base's network is, and computes it with ``adapter``.

    Its parameters are the adapter's alone; the base is no submodule. A copy has an adapter of its
    own on the same base.
    """

    def __init__(self, base: AdaptedBase, adapter: Adapter):
        super().__init__()
        self.base = base
        self.adapter = adapter
        self._seen = False
        base.watch(adapter.layers)

    @staticmethod
    def fresh(base: AdaptedBase, form: Form, seed: int = 0) -> AdaptedNetwork:
        """With a fresh adapter, which adds 0; its draws are a function of ``seed``, the layer's
        path and the rank.

        Raises ``UserError`` where the network has no layer for it.
        """
        layers = {
            path: LowRank(layer, form.rank, form.alpha)
            for path, layer in fitting_layers(base.network, form.targets).items()
        }
        key = Key(seed, "lora")
        for path, layer in layers.items():
            layer.draw(key, path)
        return _view(base, Adapter(layers))

    @staticmethod
    def holding(base: AdaptedBase, pairs: Mapping[str, LowRankPair]) -> AdaptedNetwork:
        """With the adapter that a file holds, which may have been trained on another network, such
        as a better teacher of the same shape.

        Raises ``UserError`` naming the first layer that does not fit.
        """
        layers: dict[str, LowRank] = {}
        every = dict(base.network.named_modules())
        for path, pair in pairs.items():
            layer = every.get(path)
            if not isinstance(layer, Layer):
                raise UserError(
                    f"the adapter does not fit at layer '{path}': this network has no such layer; the adapter belongs "
                    "to a network of another shape."
                )
            check_layer(path, layer)
            low_rank = LowRank(layer, Form(pair.rank, pair.alpha).rank, pair.alpha)
            for name, own, found in (
                ("lora_A", low_rank.lora_A.weight, pair.down),
                ("lora_B", low_rank.lora_B.weight, pair.up),
            ):
                if own.shape != found.shape:
                    raise UserError(
                        f"the adapter does not fit at layer '{path}': it has {tuple(found.shape)} for '{name}' where "
                        f"the layer needs {tuple(own.shape)}; it belongs to a network of another shape."
                    )
                with torch.no_grad():
                    own.copy_(found)
            layers[path] = low_rank
        if not layers:
            raise UserError("the adapter is empty: it holds no layer.")
        return _view(base, Adapter(layers))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Raises ``UserError`` after the first call where a layer was not called, so that its
        adapter would never do anything.
        """
        with self.base.selected(self.adapter):
            emitted = self.base.network(*inputs, **named)
        if not self._seen:
            self._seen = True
            idle = next((path for path, low_rank in self.adapter.layers.items() if not low_rank.called), None)
            if idle is not None:
                raise UserError(
                    f"{type(self.base.network).__name__} does not call its layer '{idle}', but uses its weights in "
                    "another way or not at all, so that an adapter on it would do nothing; name 'targets' without it."
                )
        return emitted

    def extra_repr(self) -> str:
        """The base, which is no submodule."""
        return f"(base): {self.base.network}"


class AdaptedDenoisingNetwork(AdaptedNetwork, DenoisingNetwork):
    """Such a role on a denoising network: what a critic asks of it is the base's."""

    def _of_base(self) -> DenoisingNetwork:
        assert isinstance(self.base.network, DenoisingNetwork)
        return self.base.network

    @property
    def bottleneck(self) -> int:  # type: ignore[override]
        """See ``DenoisingNetwork``."""
        return self._of_base().bottleneck

    @property
    def leave(self) -> nn.Linear | nn.Conv2d:  # type: ignore[override]
        """See ``DenoisingNetwork``."""
        return self._of_base().leave

    @property
    def context_shapes(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
        """See ``DenoisingNetwork``."""
        return self._of_base().context_shapes

    @property
    def recompute(self) -> bool:
        """Of the base, for all of its roles."""
        return self._of_base().recompute

    @recompute.setter
    def recompute(self, on: bool) -> None:
        self._of_base().recompute = on

    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """See ``DenoisingNetwork``."""
        with self.base.selected(self.adapter):
            return self._of_base().features(x, noise_label, condition, end_label)


def _view(base: AdaptedBase, adapter: Adapter) -> AdaptedNetwork:
    kind = AdaptedDenoisingNetwork if isinstance(base.network, DenoisingNetwork) else AdaptedNetwork
    return kind(base, adapter)


def adapted_in(module: nn.Module) -> Iterator[AdaptedNetwork]:
    """The roles in a module."""
    return (each for each in module.modules() if isinstance(each, AdaptedNetwork))


def shorten_adapters(module: nn.Module) -> None:
    """Keeps the adapters in a module in the types of the layers that they are on, in place: those
    of frozen roles need not be longer.
    """
    for role in adapted_in(module):
        for path, low_rank in role.adapter.layers.items():
            low_rank.to(role.base.network.get_parameter(f"{path}.weight").dtype)


def bases_of(module: nn.Module) -> list[nn.Module]:
    """The shared networks on which roles in a module stand, once each; they are no submodules of
    it.
    """
    return list({id(each.base.network): each.base.network for each in adapted_in(module)}.values())


def apart(model: Model) -> Model:
    """A copy that shares no base: of every shared network it has a copy of its own."""
    copied = copy.deepcopy(model)
    bases: dict[int, AdaptedBase] = {}
    for role in adapted_in(copied):
        key = id(role.base)
        if key not in bases:
            bases[key] = AdaptedBase(role.base.plain(copy.deepcopy))
        role.base = bases[key]
        role.base.watch(role.adapter.layers)
    return copied


def merged_network(role: AdaptedNetwork) -> nn.Module:
    """A plain network of its own, the adapter added to its weights: it computes the same up to
    rounding.
    """
    plain = role.base.plain(long_copy)
    add_to_weights(plain, role.adapter.pairs())
    return plain
