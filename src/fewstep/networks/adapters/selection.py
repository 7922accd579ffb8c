"""Which adapter each shared network computes with at this moment.

One value for the whole process, which every adapted layer reads, so that taking turns costs nothing
however many layers there are. It is no context variable: the backward pass of a GPU runs in threads
of its own and must find the selection there. A network is in it while it runs, and no longer.

A block that is recomputed in the backward pass runs again when other roles have had their turn.
``contexts`` makes it run under the selection of its own forward pass; without it the gradients
would be those of another role, in silence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any

_current: dict[Hashable, Any] = {}


def current(shared: Hashable) -> Any:
    """What ``shared`` computes with now; None for nothing but itself."""
    return _current.get(shared)


@contextlib.contextmanager
def selected(shared: Hashable, adapter: Any) -> Iterator[None]:
    """Inside, ``shared`` computes with ``adapter``; on leaving, with what it did before."""
    before = _current.get(shared)
    _current[shared] = adapter
    try:
        yield
    finally:
        if before is None:
            del _current[shared]
        else:
            _current[shared] = before


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For ``torch.utils.checkpoint``'s ``context_fn``: what a block's forward pass runs in, and its
    recomputation.
    """
    return contextlib.nullcontext(), _restored(dict(_current))


@contextlib.contextmanager
def _restored(then: dict[Hashable, Any]) -> Iterator[None]:
    now = dict(_current)
    _replace(then)
    try:
        yield
    finally:
        _replace(now)


def _replace(by: dict[Hashable, Any]) -> None:
    _current.clear()
    _current.update(by)
