"""Networks that would not fit are refused before they are built: a recipe or a file's description of a few bytes can ask for any amount of memory.

``build`` makes a network on the meta device first, where weights have shapes and no values. Each layer registers its weights when it is made, and there their numbers are counted: the first
one beyond a bound is refused. A depth of a billion is refused by the number of layers, which take time and memory on any device.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fewstep.errors import UserError

MOST_TENSORS = 20_000
"""Some ten times as many as the largest published networks of this kind have."""


@contextlib.contextmanager
def at_most(numbers: int, holder: str) -> Iterator[None]:
    """While it lasts, modules that are built have at most so many parameters together; ``holder``, which allows no more, is named by the ``UserError`` that is raised beyond."""
    found = tensors = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal found, tensors
        tensors += 1
        found += 0 if parameter is None else parameter.numel()
        if tensors > MOST_TENSORS:
            raise UserError(f"the network has more than {MOST_TENSORS:,} layers' weights; lower its depth.")
        if found > numbers:
            raise UserError(f"the network has more than {numbers:,} parameters, for which {holder} has no room; lower its sizes.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def machine_numbers() -> int:
    """How many parameters of four bytes this machine's memory holds."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
