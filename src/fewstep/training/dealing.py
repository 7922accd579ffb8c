"""Work that is done in parts, dealt out over the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch import distributed as dist

from fewstep.cost import unmetered
from fewstep.system import distributed


def deal(jobs: Sequence[int], work: Callable[[int], Tensor]) -> list[Tensor]:
    """``work(job)`` for all jobs, which the processes take in turn; each gets all results (of one
    type, on one kind of device), in the order of the jobs, the same for any number of processes.
    Meters count in each process what it did itself: their sum over processes is what one process
    would have counted.

    Where the last round is short, the processes that are left over do the first job again, which is
    not counted, and drop it: sharded networks must be called equally often by all.
    """
    size, rank = distributed.size(), distributed.rank()
    if size == 1:
        return [work(job) for job in jobs]
    results: list[Tensor] = []
    for begin in range(0, len(jobs), size):
        taken = jobs[begin : begin + size]
        if rank < len(taken):
            mine = work(taken[rank]).contiguous()
        else:
            with unmetered():
                mine = work(jobs[0]).contiguous()
        for owner, shape in enumerate(distributed.everyones(list(mine.shape))[: len(taken)]):
            result = mine if owner == rank else mine.new_empty(shape)
            dist.broadcast(result, owner)
            results.append(result)
    return results
