"""Which adapter each shared network computes with at this moment, and which parameters are held
still.

One value for the whole process, which every adapted layer reads, so that taking turns costs nothing
however many layers there are. It is no context variable: the backward pass of a GPU runs in threads
of its own and must find the selection there. A network is in it while it runs, and no longer.

A block that is recomputed in the backward pass runs again when other roles have had their turn,
and when what was held still is let go. ``contexts`` makes it run under the selection of its own
forward pass, and with the same parameters held; without it the gradients would be those of another
role, in silence, and torch would miss what it kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

_current: dict[Hashable, Any] = {}
_held: list[Sequence[Tensor]] = []


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


@contextlib.contextmanager
def held_still(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, no gradient reaches the parameters; on leaving, each is as it was."""
    before = [value.requires_grad for value in parameters]
    _held.append(parameters)
    try:
        for value in parameters:
            value.requires_grad_(False)
        yield
    finally:
        _held.pop()
        # A parameter that two models share is listed twice, both times as it was.
        for value, required in zip(parameters, before, strict=True):
            value.requires_grad_(required)


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For ``torch.utils.checkpoint``'s ``context_fn``: what a block's forward pass runs in, and its
    recomputation.
    """
    then, held = dict(_current), tuple(_held)
    return contextlib.nullcontext(), Again(lambda: _restored(then, held))


class Again(AbstractContextManager[None]):
    """A context that may be entered any number of times, as a block is computed again for each
    backward pass through it: each time it is what ``make`` gives.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[None]]):
        self.make = make
        self._inside: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        made = self.make()
        made.__enter__()
        self._inside.append(made)

    def __exit__(self, *raised: Any) -> bool | None:
        return self._inside.pop().__exit__(*raised)


@contextlib.contextmanager
def _restored(then: dict[Hashable, Any], held: Sequence[Sequence[Tensor]]) -> Iterator[None]:
    now = dict(_current)
    _replace(then)
    try:
        with contextlib.ExitStack() as still:
            for parameters in held:
                still.enter_context(held_still(parameters))
            yield
    finally:
        _replace(now)


def _replace(by: dict[Hashable, Any]) -> None:
    _current.clear()
    _current.update(by)
