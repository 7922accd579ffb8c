"""Networks that would not fit are refused before they are built: a recipe or a file's description
of a few bytes can ask for any amount of memory.

A layer takes a range of addresses for its weights when it is made, and memory only when their
initial values are drawn. ``build`` makes a network without drawing first. Each layer registers its
weights, and there their numbers are counted: the first one beyond a bound is refused. A depth of a
billion is refused by the number of layers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from fewstep.errors import UserError

MOST_UNITS = 1_000_000
"""Of a width, a depth or a number of classes: each is also the length of something that is
computed.
"""

MOST_TENSORS = 20_000
"""Some ten times as many as the largest published networks of this kind have."""


@contextlib.contextmanager
def at_most(numbers: int, holder: str) -> Iterator[None]:
    """While it lasts, modules that are built have at most so many parameters together; ``holder``,
    which allows no more, is named by the ``UserError`` that is raised beyond.
    """
    found = tensors = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal found, tensors
        tensors += 1
        found += 0 if parameter is None else parameter.numel()
        if parameter is not None and not parameter.numel():
            raise UserError("the network has a layer without weights, one of its sizes being 0; raise it.")
        if tensors > MOST_TENSORS:
            raise UserError(f"the network has more than {MOST_TENSORS:,} layers' weights; lower its depth.")
        if found > numbers:
            raise UserError(
                f"the network has more than {numbers:,} parameters, for which {holder} has no room; lower its sizes."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


class Undrawn(TorchFunctionMode):
    """While it lasts, what changes a parameter in place does nothing, so that weights have no
    initial values, and take no memory.

    Other tensors are computed as ever: tables that no file holds, such as those of positions, are
    made when a network is.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def machine_numbers() -> int:
    """How many parameters of four bytes this machine's memory holds."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
