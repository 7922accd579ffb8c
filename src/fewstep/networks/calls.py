"""Calls of networks that wait to be made, so that those of several denoisers can be made in one
batch.

A denoiser's ``asked`` is a generator: it yields each call of a network, is sent what the network
emits, and returns the estimate. ``answered`` makes the calls one after another, ``answered_apart``
those of several denoisers in turns.
``answered_together`` asks several denoisers at once: calls of one network, whatever the adapters
that it computes with, become one call of all their samples.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.networks.adapters import beside, shared_by


@dataclass(frozen=True, eq=False)
class Call:
    """``network(x (B, *D), label (B,), condition)``, which waits to be made."""

    network: nn.Module
    x: Tensor
    label: Tensor
    condition: Condition

    def emitted(self) -> Tensor:
        """What the network emits (B, *D), computed now."""
        emitted: Tensor = self.network(self.x, self.label, self.condition)
        return emitted

    @property
    def like(self) -> Hashable:
        """Equal for calls that can be one: of one network, and with tensors of equal shapes and
        types.
        """
        condition = self.condition
        given = {"label": self.label, "labels": condition.labels, "guidance": condition.guidance, **condition.context}
        shapes = [(name, each.shape[1:], each.dtype) for name, each in given.items() if each is not None]
        return id(shared_by(self.network)), self.x.shape[1:], self.x.dtype, tuple(shapes)


Asking = Generator[Call, Tensor, Tensor]
"""Yields calls, is sent what they emit, and returns an estimate."""


def known(estimate: Tensor) -> Asking:
    """An estimate for which no network is asked."""
    yield from ()
    return estimate


def answered(asking: Asking) -> Tensor:
    """The estimate; each call is made by itself."""
    (estimate,) = answered_apart([asking])
    return estimate


def answered_apart(askings: Sequence[Asking]) -> list[Tensor]:
    """The estimates; each call is made by itself, and the first calls of all are made before any of
    them goes on: on devices of their own (``elsewhere``) they are at work at once.

    Equal to ``answered`` of each bit for bit.
    """
    return _answered(askings, lambda calls: [call.emitted() for call in calls])


def answered_together(askings: Sequence[Asking]) -> list[Tensor]:
    """The estimates; calls that can be one are made in one batch, a contiguous part for each.

    Equal to ``answered`` of each up to the rounding of another batch size.
    """
    return _answered(askings, _in_batches)


def _answered(askings: Sequence[Asking], made: Callable[[Sequence[Call]], Sequence[Tensor]]) -> list[Tensor]:
    estimates: dict[int, Tensor] = {}
    replies: dict[int, Tensor | None] = dict.fromkeys(range(len(askings)))
    while replies:
        calls: dict[int, Call] = {}
        for number, reply in replies.items():
            try:
                calls[number] = next(askings[number]) if reply is None else askings[number].send(reply)
            except StopIteration as finished:
                estimates[number] = finished.value
        replies = dict(zip(calls, made(list(calls.values())), strict=True))
    return [estimates[number] for number in range(len(askings))]


def _in_batches(calls: Sequence[Call]) -> list[Tensor]:
    alike: dict[Hashable, list[int]] = {}
    for number, call in enumerate(calls):
        alike.setdefault(call.like, []).append(number)
    emitted: dict[int, Tensor] = {}
    for numbers in alike.values():
        together = [calls[number] for number in numbers]
        parts = _in_one_batch(together) if len(together) > 1 else [together[0].emitted()]
        emitted |= zip(numbers, parts, strict=True)
    return [emitted[number] for number in range(len(calls))]


def _in_one_batch(calls: Sequence[Call]) -> Sequence[Tensor]:
    counts = [len(call.x) for call in calls]
    whole = Call(
        calls[0].network,
        torch.cat([call.x for call in calls]),
        torch.cat([call.label for call in calls]),
        Condition.cat([call.condition for call in calls]),
    )
    with beside([call.network for call in calls], counts) as network:
        return Call(network, whole.x, whole.label, whole.condition).emitted().split(counts)
