"""Gradients through networks that are not trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from torch import nn


class HasParameters(Protocol):
    """A module, or what wraps one."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""


@contextlib.contextmanager
def frozen(*models: HasParameters) -> Iterator[None]:
    """Inside, what these models compute carries a gradient to their inputs and none to their
    parameters; on leaving, each parameter is as it was.

    What was computed inside stays so: its backward, later, reaches no parameter.
    """
    before = [(value, value.requires_grad) for model in models for value in model.parameters()]
    try:
        for value, _ in before:
            value.requires_grad_(False)
        yield
    finally:
        # A parameter that two models share is listed twice, both times as it was.
        for value, required in before:
            value.requires_grad_(required)
