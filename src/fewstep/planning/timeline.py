r"""What overlaps: a pass through a network's blocks as a GPU's two queues work it off, one for
computing and one for exchanges.

A queue works in the order in which its tasks were issued, each when all that it waits for is done.
A sharded network (FSDP2) gathers a block's weights before it runs; the next block's are asked for
when a block begins, one ahead. In the backward pass the order is reversed, and a block's gradients
are scattered when it is through. A replicated one (DDP) reduces a block's gradients when it is
through. With L equal blocks of c seconds of computing and g of gathering,

    forward:  g + (L - 1) max(c, g) + c,

so that what exchanges take is hidden but for the first block's where computing is slower, and the
other way round. ``bounds`` hold whatever the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """A block's seconds: ``forward`` and ``backward`` of computing (the latter with what is
    computed again), ``gather`` of its weights, and ``exchange`` of its gradients.
    """

    forward: float
    backward: float
    gather: float
    exchange: float


@dataclass(frozen=True)
class Task:
    """``seconds`` in a queue; waits for the tasks numbered ``after`` to end and for those numbered
    ``beside`` to begin.
    """

    queue: str
    seconds: float
    after: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()


def played(tasks: Sequence[Task]) -> float:
    """Seconds until all is done; tasks of a queue are in the order in which they are issued, and
    wait only for earlier ones.
    """
    free: dict[str, float] = {}
    begun: list[float] = []
    ended: list[float] = []
    for task in tasks:
        begin = max([free.get(task.queue, 0.0), *(ended[i] for i in task.after), *(begun[i] for i in task.beside)])
        begun.append(begin)
        ended.append(begin + task.seconds)
        free[task.queue] = ended[-1]
    return max(ended, default=0.0)


def pass_through(blocks: Sequence[Stretch], trained: bool) -> list[Task]:
    """The tasks of a forward pass, and of a backward pass where the network is ``trained``."""
    tasks: list[Task] = []
    _walk(tasks, [(block.gather, block.forward, 0.0) for block in blocks])
    if trained:
        _walk(tasks, [(block.gather, block.backward, block.exchange) for block in reversed(blocks)])
    return tasks


def _walk(tasks: list[Task], blocks: Sequence[tuple[float, float, float]]) -> None:
    """Appends the tasks of blocks (gather, compute, exchange) in the order in which they are
    run.
    """
    # What came before is through, and nothing was asked for ahead.
    computed: tuple[int, ...] = (len(tasks) - 1,) if tasks else ()
    gathered = _add(tasks, "exchange", blocks[0][0], after=computed)
    for index, (_, compute, exchange) in enumerate(blocks):
        computed = _add(tasks, "compute", compute, after=gathered)
        gathered = _add(tasks, "exchange", blocks[index + 1][0], beside=computed) if index + 1 < len(blocks) else ()
        _add(tasks, "exchange", exchange, after=computed)


def _add(
    tasks: list[Task], queue: str, seconds: float, after: tuple[int, ...] = (), beside: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Appends a task and returns its number; an exchange of nothing is none, and nobody waits for
    it.
    """
    if queue == "exchange" and seconds == 0:
        return ()
    tasks.append(Task(queue, seconds, after, beside))
    return (len(tasks) - 1,)


def bounds(blocks: Sequence[Stretch], trained: bool) -> tuple[float, float]:
    """The least and the most seconds of a pass: all exchanges hidden behind computing or the other
    way round, and none hidden.
    """
    compute = sum(block.forward + (block.backward if trained else 0.0) for block in blocks)
    exchange = sum(block.gather + (block.gather + block.exchange if trained else 0.0) for block in blocks)
    return max(compute, exchange), compute + exchange
