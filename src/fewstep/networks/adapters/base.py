"""A network that several roles share: the teacher is the network itself, and a student, a fake
score, their averages and the nodes of a path are adapters on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from fewstep.networks.adapters import selection
from fewstep.networks.adapters.low_rank import Layer


class Selected(Protocol):
    """What a base computes with: an adapter, or several for portions of a batch."""

    def added(self, path: str, emitted: Tensor, layer: Layer, x: Tensor) -> Tensor:
        """What the layer at ``path`` emitted on x (B, ...), and what is added to it."""


class AdaptedBase:
    """``network``, whose weights stay as they are, and which computes with one of its adapters at a
    time; called outside ``selected`` it computes what it does without any.

    Its layers keep their names and classes, so that it is described, saved and loaded as any
    network: what is added to a layer's output is added by a hook. Copies of an adapter stand on the
    same base, so that a copy of this object is the object itself.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self._watched: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedBase:
        return self

    def watch(self, paths: Collection[str]) -> None:
        """Lets the layers at these paths ask for the adapter that is selected."""
        for path in paths:
            if path not in self._watched:
                layer = self.network.get_submodule(path)
                self._watched[path] = layer.register_forward_hook(_Site(self, path))

    def selected(self, chosen: Selected) -> AbstractContextManager[None]:
        """Inside, the network computes with what is chosen."""
        return selection.selected(self, chosen)

    def plain(self, copied: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """What ``copied`` makes of the network, of which no layer asks for an adapter."""
        paths = list(self._watched)
        for path in paths:
            self._watched.pop(path).remove()
        try:
            return copied(self.network)
        finally:
            self.watch(paths)


class _Site:
    """The hook of one layer."""

    def __init__(self, base: AdaptedBase, path: str):
        self.base = base
        self.path = path

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], emitted: Tensor) -> Tensor | None:
        chosen: Selected | None = selection.current(self.base)
        return None if chosen is None else chosen.added(self.path, emitted, layer, inputs[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        # A copy of the network is a network of its own, which is nobody's base.
        return _as_it_is


def _as_it_is(layer: Any, inputs: Any, emitted: Any) -> None:
    """Adds nothing."""
