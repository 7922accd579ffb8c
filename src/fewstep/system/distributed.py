"""Several processes as one run: which one this is, and what they agree on.

``torchrun`` starts the processes; ``joined`` makes them one group. Each works on its rows of the
global batch (``share``), and gradients are averaged by torch's own engines (see
``training.layout``). What is left is here: sums of small vectors, decisions taken once, and
writing. Everything is the identity in a process that is alone, at no cost.

Every process must call these functions, in the same order; a run's control flow therefore depends
only on values that all of them have. What concerns the outside world (files, the terminal) happens
in the first process, whose failure is everyone's (``together``).

The small exchanges are on CPU tensors, over gloo, whatever the networks are on: they must not wait
for a device. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from fewstep.errors import NotFinite, SharedError, SharedNotFinite, UserError
from fewstep.system.launch import REMEDY, Launch, launched, local_number, restarts

T = TypeVar("T")
LONGEST_WAIT = datetime.timedelta(minutes=30)
"""For the slowest process; one that is gone is noticed at once."""
LONGEST_START = datetime.timedelta(minutes=10)
"""Between the first process that is there and the last one; torchrun waits as long for its
machines.
"""
QUIET_START = 10.0
"""Seconds of it that pass without a word."""
_acting: list[None] = []


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that torchrun started are one group; a process that was started alone,
    or belongs to a group already, is left as it is.
    """
    launch = None if dist.is_initialized() else launched()
    if launch is None:
        yield
        return
    if local_number() < torch.cuda.device_count():
        # nccl works on the current card: each process on its own. A run that needs a card which is
        # not there is refused where it asks (``recipes.building.device``).
        torch.cuda.set_device(local_number())
    dist.init_process_group(store=_met(launch), rank=launch.number, world_size=launch.processes, timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        # A DDP module that is still there can make gloo wait for ever; some are in cycles.
        gc.collect()
        dist.destroy_process_group()


def _met(launch: Launch) -> dist.Store:
    """The store through which the processes find each other, once all of them are there.

    Raises ``UserError`` where they do not come.
    """
    if launch.processes == 1:
        # A group of one needs no network.
        return dist.HashStore()
    found: list[dist.Store | dist.DistError] = []
    # In a thread: torch waits where no signal is heard.
    waiting = threading.Thread(target=lambda: found.append(_meeting()), daemon=True)
    waiting.start()
    waiting.join(QUIET_START)
    if waiting.is_alive():
        sys.stderr.write(
            f"fewstep: process {launch.number} of {launch.processes} waits for the others at {launch.meeting}.\n"
        )
    while waiting.is_alive():
        waiting.join(0.2)
    (store,) = found
    if isinstance(store, dist.Store):
        return store
    where = f"process {launch.number} of {launch.processes} (RANK and WORLD_SIZE in the environment)"
    raise UserError(f"{where} did not meet the others at {launch.meeting}: {_first_line(store)}; {REMEDY}.") from store


def _meeting() -> dist.Store | dist.DistError:
    """The store, when all processes have come to it, or why they did not."""
    try:
        found, number, processes = next(dist.rendezvous("env://", timeout=LONGEST_START))
        # A store may outlive the workers that torchrun has killed: what they wrote there must not
        # be taken for the new ones' addresses.
        store = dist.PrefixStore(f"start-{restarts()}", found)
        store.set(f"here-{number}", "")
        store.wait([f"here-{each}" for each in range(processes)], LONGEST_START)
    except dist.DistError as error:
        return error
    return store


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() and not _acting else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _acting else 0


def first() -> bool:
    """Whether this is the process that writes and talks."""
    return rank() == 0


def share(count: int) -> tuple[int, int]:
    """(start, rows): this process' part of ``count`` samples, which must be a multiple of
    ``size()``.
    """
    rows, rest = divmod(count, size())
    if rest:
        raise UserError(f"{count} samples cannot be shared equally by {size()} processes; use a multiple of {size()}.")
    return rank() * rows, rows


def gathered(values: Tensor) -> Tensor:
    """Each process' values (*D), float64 on the CPU, in the order of the processes: (processes,
    *D), the same bits everywhere.
    """
    values = values.detach().to("cpu", torch.float64)
    if size() == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def total(values: Tensor) -> Tensor:
    """The sum of each process' values (n,), float64 on the CPU, added in the order of the
    processes: the same bits everywhere.
    """
    return gathered(values).sum(0)


def largest(value: int) -> int:
    """The largest of the processes' numbers."""
    if size() == 1:
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def largest_of(tensor: Tensor) -> Tensor:
    """The largest of the processes' values of a tensor that each has, on its device; without a
    graph, and without a wait for the device.
    """
    if size() == 1:
        return tensor
    largest_yet = tensor.detach().clone()
    dist.all_reduce(largest_yet, dist.ReduceOp.MAX)
    return largest_yet


def mean_of(tensor: Tensor) -> Tensor:
    """The mean over the processes of a tensor that each has, on its device; without a graph."""
    if size() == 1:
        return tensor
    summed = tensor.detach().clone()
    dist.all_reduce(summed)
    return summed / size()


def agreed(value: T) -> T:
    """The first process' value, of what JSON can hold."""
    if size() == 1:
        return value
    text = bytearray(json.dumps(value).encode()) if first() else bytearray()
    length = torch.tensor(len(text))
    dist.broadcast(length, 0)
    content = torch.frombuffer(text, dtype=torch.uint8) if first() else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0)
    agreed_on: T = json.loads(content.numpy().tobytes())
    return agreed_on


def everyones(value: T) -> list[T]:
    """The values of all processes in their order, of what JSON can hold."""
    if size() == 1:
        return [value]
    text = json.dumps(value).encode()
    longest = largest(len(text))
    padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return [json.loads(part.numpy().tobytes()) for part in parts]


def together(action: Callable[[], T]) -> T:
    """Runs ``action`` in the first process only and gives its outcome (of what JSON can hold) to
    all; a ``UserError`` there is raised in all, in the others as ``SharedError``.

    Inside the action that process is alone: what it calls of this module concerns nobody else.
    """
    if size() == 1:
        return action()
    value, failure = None, None
    if first():
        _acting.append(None)
        try:
            value = action()
        except UserError as error:
            failure = error
        finally:
            _acting.pop()
    value, message, not_finite = agreed(
        (value, None if failure is None else str(failure), isinstance(failure, NotFinite))
    )
    if failure is not None:
        raise failure
    if message is not None:
        raise SharedNotFinite(message) if not_finite else SharedError(message)
    return value  # type: ignore[return-value]


def in_step(action: Callable[[], T]) -> T:
    """Runs ``action`` in every process.

    A ``UserError`` in some is raised in all: in the first of them as it is, elsewhere as
    ``SharedError``, so that it is said once and nobody waits.
    """
    value, failure = None, None
    try:
        value = action()
    except UserError as error:
        failure = error
    problems = everyones(None if failure is None else str(failure))
    failed = [number for number, problem in enumerate(problems) if problem is not None]
    if failure is not None and failed[0] == rank():
        raise failure
    if failed:
        raise SharedError(problems[failed[0]])
    return value  # type: ignore[return-value]


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes; another one as it is."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """This process' part of a sharded tensor; another one as it is."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(full: Tensor, slot: Tensor) -> Tensor:
    """``full``, which every process has, laid out as ``slot`` is: this process' part of it where
    that is sharded. Nothing is sent.
    """
    if not dist.is_initialized():
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(slot, DTensor) or isinstance(full, DTensor):
        return full
    return distribute_tensor(full.to(slot.device), slot.device_mesh, slot.placements, src_data_rank=None)
