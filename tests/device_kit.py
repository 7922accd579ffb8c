"""Devices that are not there: tensors that say they are elsewhere, hold real numbers on the CPU,
and refuse what a GPU refuses.

Inside ``with Card():`` the devices ``CARD`` and ``SECOND`` (torch's meta device, whose name is
borrowed, without a number and with one) have memory. A tensor taken there becomes an ``OnCard``;
what is computed of it stays there until it is taken back, with the CPU's own kernels, so that
results are bit for bit those of the same computation on the CPU. An operation on tensors here and
there, or on both cards, raises ``Mixed``, but for the three things that PyTorch allows: copies, a
number (a tensor without dimensions) from the CPU in arithmetic, and an index from the CPU.

``at_work`` is such a device for a whole run, whose networks may come and go. What torch refuses of
the borrowed name it then lets pass, and draws are made where they belong, since a thread of its own
would know of no such device.

``Card.fetched`` counts the numbers that were asked for from there: each would make a program wait
for a GPU. ``Card.moves`` notes what went from one device to another, in order.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from fewstep.training.ahead import Ahead

CARD = torch.device("meta")
SECOND = torch.device("meta", 1)
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_JOINING = (_aten.cat.default, _aten.stack.default)
Model = TypeVar("Model", bound=nn.Module)


class Mixed(Exception):
    """An operation on tensors of two devices."""


@dataclass(frozen=True)
class Move:
    """A tensor of ``shape`` that went from one device to another."""

    source: torch.device
    goal: torch.device
    shape: tuple[int, ...]


class OnCard(Tensor):
    """A tensor on a card; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, card: torch.device = CARD) -> OnCard:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=card,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnCard({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Card(TorchDispatchMode):
    """Inside, there are the devices ``CARD`` and ``SECOND``."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched = 0
        self.moves: list[Move] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fetched += function is _aten._local_scalar_dense.default and isinstance(args[0], OnCard)
        made = _run(function, args, kwargs or {})
        if function in _COPIES:
            source, goal = (args[1], args[0]) if function is _aten.copy_.default else (args[0], made)
            if source.device != goal.device:
                self.moves.append(Move(source.device, goal.device, tuple(source.shape)))
        return made


def on_card(model: Model) -> Model:
    """The model, taken to ``CARD`` in place."""
    with _the_same_parameters():
        return model.to(CARD)


@contextlib.contextmanager
def _the_same_parameters() -> Iterator[None]:
    """Inside, parameters stay the same objects on their way, as they do on the way to a GPU."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@contextlib.contextmanager
def at_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """Inside, runs may be on ``CARD``, and networks may be carried to it and back."""
    autocast = torch.autocast

    def shortened(kind: str, *arguments: Any, **named: Any) -> Any:
        return contextlib.nullcontext() if kind == CARD.type else autocast(kind, *arguments, **named)

    monkeypatch.setattr(torch, "autocast", shortened)
    for name in ("adam", "sgd"):
        monkeypatch.setattr(sys.modules[f"torch.optim.{name}"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setattr(Ahead, "__enter__", lambda self: self)
    with _the_same_parameters(), Card() as card:
        yield card


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, OnCard)]
    _check(function, args, there, [value for value in tensors if not isinstance(value, OnCard)])
    asked = kwargs.get("device")
    place = (there[0].device if there else None) if asked is None else torch.device(asked)
    goes = place is not None and place.type == CARD.type
    held_args, held_kwargs = tree_map_only(
        OnCard, lambda value: value.held, (args, kwargs if asked is None else {**kwargs, "device": torch.device("cpu")})
    )
    made = function(*held_args, **held_kwargs)
    if function is _aten.copy_.default:
        return args[0]
    if asked is not None and function is _aten._to_copy.default:
        # A copy between devices is never the tensor itself.
        return OnCard(made, place) if goes else made
    if not goes:
        return made
    made = tree_map_only(Tensor, lambda value: OnCard(value, place), made)
    return return_and_correct_aliasing(function, args, kwargs, made) if there else made


def _check(function: Any, args: Any, there: list[Tensor], here: list[Tensor]) -> None:
    """Raises ``Mixed`` where PyTorch would refuse the devices of the arguments."""
    if any(value.device.type == CARD.type for value in here):
        # PyTorch makes an index of a list on its own; here that tensor would have no numbers.
        raise Mixed(f"{function}: a tensor came to the card past this kit; index with a tensor, not with a list")
    if not there or function in _COPIES:
        return
    if len({value.device for value in there}) > 1:
        raise Mixed(f"{function}: tensors are on both cards")
    wrong = [value for value in here if value.ndim > 0]
    if function in _JOINING:
        wrong = here
    if function in _INDEXING:
        written = args[2] if len(args) > 2 else args[0]
        wrong = [
            value
            for value in (args[0], written)
            if not isinstance(value, OnCard) and (value is args[0] or value.ndim > 0)
        ]
    if wrong:
        raise Mixed(f"{function}: a tensor of shape {tuple(wrong[0].shape)} is on the CPU, another one on the card")
