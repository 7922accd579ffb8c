"""Which networks are on the device while others are at work.

With ``training.offload`` a network that is not used waits in the host's memory, and with it the
moments of its optimizer. The unit of time is what the loop does as a whole: a phase's turn with its
hook, a stage's first actions, a measurement. Before each, what it uses is brought to the device and
everything else is sent away, so that the device holds the most that one of them uses, and not the
sum. What stays is not moved: where phases take turns, only their difference is carried.

A gradient waits nowhere. It is used in its own turn alone, which begins without one, so that it is
let go of when the next thing begins.

What a part uses is found by walking it, as stateful objects are (``resumable``). Such an object may
hold more networks than it runs at the moment: a target that walks a path runs its node in force,
and its teacher waits (``Resumable.in_use``).

Carrying changes no bit, and a checkpoint may be taken of what waits.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fewstep.errors import UserError
from fewstep.resumable import Resumable, walk
from fewstep.training.layout import units

HOST = torch.device("cpu")


class Room(abc.ABC):
    """See the module's docstring."""

    @abc.abstractmethod
    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Is told all networks of a run; once, before anything is loaded into them or trained."""

    @abc.abstractmethod
    def take_in(self, *parts: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Brings the networks that ``parts`` use to the device, and the moments of ``optimizer``;
        others may be sent away.
        """

    @abc.abstractmethod
    def take_in_all(self) -> None:
        """Brings every network to the device, for what does not say which it uses."""


class Roomy(Room):
    """Everything stays where it is."""

    def settle(self, modules: Iterable[nn.Module]) -> None:
        return

    def take_in(self, *parts: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
        return

    def take_in_all(self) -> None:
        return


class Tight(Room):
    """What is not used waits in the host's memory, everything at first; ``device`` is where what is
    used is at work.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._units: list[nn.Module] = []
        self._optimizer: torch.optim.Optimizer | None = None

    def settle(self, modules: Iterable[nn.Module]) -> None:
        found = list(modules)
        self._units = units(found)
        inside = {id(part) for unit in self._units for part in unit.modules()}
        for unit in self._units:
            _carry(unit, HOST)
        # What is around networks, such as an average's count, is small and always at work.
        for part in (part for module in found for part in module.modules() if id(part) not in inside):
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer.to(self._device))

    def take_in(self, *parts: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._take_in(units(networks_in(*parts)), optimizer)

    def take_in_all(self) -> None:
        self._take_in(self._units, None)

    def _take_in(self, used: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None) -> None:
        known = {id(unit) for unit in self._units}
        self._units += [unit for unit in used if id(unit) not in known]
        for parameter in (parameter for unit in self._units for parameter in unit.parameters()):
            parameter.grad = None
        staying = {id(unit) for unit in used}
        for unit in (unit for unit in self._units if id(unit) not in staying):
            _carry(unit, HOST)
        if self._optimizer is not None and self._optimizer is not optimizer:
            _carry_moments(self._optimizer, HOST)
        self._optimizer = optimizer
        # After the others were sent away: weights that one of them shares come back.
        for unit in used:
            _carry(unit, self._device)
        if optimizer is not None:
            _carry_moments(optimizer, self._device)


def now_in_use(found: Resumable) -> Sequence[nn.Module]:
    """The networks that a stateful object runs now."""
    return found.in_use()


def networks_in(*parts: Any, asked: Callable[[Resumable], Sequence[nn.Module]] = now_in_use) -> Iterator[nn.Module]:
    """The modules that parts hold, and those that stateful objects among them run now, as
    ``asked``.
    """
    for value in walk(parts):
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, Resumable):
            yield from asked(value)


def build_room(offload: bool, mode: str, device: torch.device) -> Room:
    """The room of a run that works on ``device``.

    Raises ``UserError`` as ``check_offload`` does.
    """
    if not offload:
        return Roomy()
    check_offload(mode, device)
    return Tight(device)


def check_offload(mode: str, device: torch.device) -> None:
    """Raises ``UserError`` where nothing can wait: in a group of processes, of either ``mode``, and
    on the CPU.
    """
    if dist.is_initialized():
        why = {
            "ddp": "'distributed.mode: ddp' keeps gradients on the GPU for as long as a stage lasts, and what waits "
            "would wait without them; use 'distributed.mode: fsdp' alone, which divides them",
            "fsdp": "'distributed.mode: fsdp' has divided weights, gradients and moments among the processes already",
        }
        raise UserError(f"'training.offload: true' is for one process: {why[mode]}; set 'training.offload' to false.")
    if device.type == "cpu":
        raise UserError(
            "'training.offload: true' needs a GPU, and this run works on the CPU, in whose memory everything is "
            "already; set 'training.offload' to false, or 'training.device' to 'cuda'."
        )


def _tensors(unit: nn.Module) -> Iterator[Tensor]:
    yield from unit.parameters()
    yield from unit.buffers()


def _carry(unit: nn.Module, device: torch.device) -> None:
    if any(value.device != device for value in _tensors(unit)):
        unit.to(device)


def _carry_moments(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    entries = list(optimizer.state.values())
    times = Counter(id(value) for entry in entries for value in entry.values() if isinstance(value, Tensor))
    # What several entries share, such as a map of 8 bits, they share afterwards.
    shared: dict[int, tuple[Tensor, Tensor]] = {}
    for entry in entries:
        for key, value in entry.items():
            if not isinstance(value, Tensor):
                continue
            if times[id(value)] == 1:
                entry[key] = value.to(device)
            else:
                entry[key] = shared.setdefault(id(value), (value, value.to(device)))[1]
