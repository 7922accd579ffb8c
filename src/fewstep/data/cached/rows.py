"""Rows by index, read from the packs when they are asked for.

Packs are mapped into memory, and of a pack only the rows that are asked for are read. A pack is
compared with its checksum once, when it is first opened. Each thread opens the packs for itself, so
that the thread that draws ahead and the loop may read at the same time.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.cached.packs import RowsLayout
from fewstep.errors import UserError
from fewstep.resumable import Inert
from fewstep.system.files import opened_tensors, verify_tensors

MOST_OPEN = 128
"""Packs that a thread has open at a time; the one that was not read for longest is closed."""


class _Opened(threading.local):
    """This thread's open packs by their number: what closes each, and its tensors by name."""

    def __init__(self) -> None:
        self.packs: OrderedDict[int, tuple[contextlib.ExitStack, dict[str, Any]]] = OrderedDict()


class PackRows(Inert):
    """The rows of the packs ``names`` in ``folder``, all of one ``layout``.

    ``verified``: names of packs that this process has compared with their checksums. Copies, also
    those that are pickled, open and verify the packs for themselves.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], layout: RowsLayout, verified: Iterable[str] = ()):
        self.folder, self.names, self.layout = folder, names, layout
        self._verified = set(verified)
        self._opened = _Opened()

    def __reduce__(self) -> tuple[type[PackRows], tuple[Path, tuple[str, ...], RowsLayout]]:
        return PackRows, (self.folder, self.names, self.layout)

    def take(self, packs: Tensor, rows: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The rows (n, ...) by name at numbers of packs (n,) and rows in them (n,), int64; of all
        names, or of those that are given.

        Raises ``UserError`` for a pack that is gone or damaged.
        """
        layout = self.layout.rows
        taken = {
            name: torch.empty(len(packs), *layout[name][1], dtype=layout[name][0])
            for name in (layout if names is None else names)
        }
        # A pack at a time, however the index is ordered.
        numbers, places = packs.tolist(), rows.tolist()
        for position in torch.argsort(packs, stable=True).tolist():
            row, tensors = places[position], self._tensors(numbers[position])
            for name, values in taken.items():
                values[position] = tensors[name][row : row + 1][0]
        return taken

    def _tensors(self, number: int) -> dict[str, Any]:
        packs = self._opened.packs
        if number not in packs:
            if len(packs) >= MOST_OPEN:
                _, (closing, _) = packs.popitem(last=False)
                closing.close()
            packs[number] = self._open(self.folder / self.names[number])
        packs.move_to_end(number)
        return packs[number][1]

    def _open(self, path: Path) -> tuple[contextlib.ExitStack, dict[str, Any]]:
        if path.name not in self._verified:
            verify_tensors(path)
            self._verified.add(path.name)
        closing = contextlib.ExitStack()
        stream = closing.enter_context(opened_tensors(path))
        tensors = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
        first = {name: tensor[0:1] for name, tensor in tensors.items()}
        if RowsLayout.of(first, self.layout.facts) != self.layout:
            closing.close()
            raise UserError(f"{path}: has other rows than its header says; remove the file, and make it again.")
        return closing, tensors


@dataclass(frozen=True, eq=False)
class CachedRows(Inert):
    """N rows by index: ``pack`` (N,) and ``row`` (N,), int64, say where each is in ``packs``.

    Objects may be pickled, and read by several threads.
    """

    packs: PackRows
    pack: Tensor
    row: Tensor

    def __len__(self) -> int:
        return len(self.pack)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row by name."""
        return {name: shape for name, (_, shape) in self.packs.layout.rows.items()}

    def __getitem__(self, rows: slice) -> CachedRows:
        """Some of the rows."""
        return CachedRows(self.packs, self.pack[rows], self.row[rows])

    def take(self, index: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The rows (n, ...) by name, on the CPU and in the type they are kept in, at ``index`` (n,)
        int64 in [0, N), of all names or of those that are given; an index may repeat.

        Raises ``UserError`` for a pack that is gone or damaged since the rows were found.
        """
        return self.packs.take(self.pack[index], self.row[index], names)
