"""Makes the rows that a cache lacks, and finds those it holds.

What is missing is computed in blocks, and each block is written as a pack (see ``packs``), so that
a process that is killed loses one block. Several processes of one run work as one: the first
process computes, a block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from fewstep.data.cached.packs import Index, header_of
from fewstep.data.cached.rows import CachedRows, PackRows
from fewstep.system import distributed
from fewstep.system.finite import first_not_finite


def fill(index: Index, compute: Callable[[], Iterator[None]]) -> list[str]:
    """The names of the packs that hold the wanted rows, in all processes of a run.

    ``compute`` runs in the first process, after its first look at the cache; it writes what is
    missing, a block at each step.
    """
    steps = _steps(index, compute)
    # A block at a time: no process waits for another longer than that takes.
    while (names := distributed.together(lambda: next(steps))) is None:
        pass
    return names


def _steps(index: Index, compute: Callable[[], Iterator[None]]) -> Iterator[list[str] | None]:
    index.look()
    yield from compute()
    yield sorted(set(index.found.values()))


def blocks_missing(index: Index, keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """The keys whose rows are not there, at most ``size`` at a time. What others have written
    meanwhile, which each writing finds, is passed over.
    """
    left = iter(keys)
    while block := list(islice((key for key in left if key not in index.found), size)):
        yield block


def found_rows(
    index: Index, names: Sequence[str], keys: Sequence[str]
) -> tuple[CachedRows, Mapping[str, Mapping[str, int]]]:
    """The rows of ``keys`` in the packs of those names, which hold all of them, and their whole
    numbers by name and key.
    """
    places: dict[str, tuple[int, int]] = {}
    counts: dict[str, dict[str, int]] = {}
    headers = [header_of(index.folder / name, index.packed) for name in names]
    for number, header in enumerate(headers):
        for row, key in enumerate(header.keys):
            if key in index.wanted and key not in places:
                places[key] = (number, row)
                for count, numbers in header.counts.items():
                    counts.setdefault(count, {})[key] = numbers[row]
    packs = PackRows(index.folder, tuple(names), headers[0].layout, index.verified)
    where = torch.tensor([places[key] for key in keys])
    return CachedRows(packs, where[:, 0], where[:, 1]), counts


def first_row_not_finite(tensors: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """The name of the first tensor (B, ...) with a value that is not finite, and the first such
    row; None where all are finite.
    """
    name = first_not_finite(tensors.items())
    if not name:
        return None
    value = tensors[name]
    return name, int(torch.nonzero(~torch.isfinite(value).reshape(len(value), -1).all(1))[0])
