"""Networks whose weights are kept short: what is frozen needs no float32, and takes half of the
memory in bfloat16.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def shorten(network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Keeps the weights of all linear and convolutional layers in ``dtype``, in place.

    Such a layer computes in that type and emits float32, so that everything between layers (norms,
    embeddings, residual sums) is as long as it was; under autocast the layer computes as any does.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
            layer.register_forward_pre_hook(_taken_in)
            layer.register_forward_hook(_given_out)


def long_copy(model: Model) -> Model:
    """A copy whose weights are float32 at least: what is trained, or added to, must not be
    shorter.
    """
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.is_floating_point() and parameter.element_size() < torch.float32.itemsize:
            parameter.data = parameter.data.to(torch.float32)
    return copied


def autocasts(x: Tensor) -> bool:
    """Whether a layer that is called on x chooses the type that it computes in by itself."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _taken_in(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    if autocasts(inputs[0]):
        return None
    return tuple(each.to(layer.weight.dtype) for each in inputs)


def _given_out(layer: Any, inputs: Any, emitted: Tensor) -> Tensor:
    return emitted if autocasts(emitted) else emitted.to(torch.float32)
