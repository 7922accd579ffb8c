"""Packs of rows on disk, and which of them a row is read from.

A row is a few named tensors, such as a prompt's embedding, found by its key, such as the SHA-256 of
the prompt. A pack is a safetensors file of some rows. Its header lists their keys in the order of
the rows. What is made by one maker (``PackedRows.made``) is in one folder, as
``pack-00000001.safetensors`` and so on.

A pack is written while its folder is held: the writer looks again at what is there, leaves out the
rows that another process has written meanwhile, and takes the next number. So a row is in one pack,
the first that was written, and all processes read the same bits, whatever batch they would have
computed the row in. Where two packs do hold a key, because a damaged pack was restored, the pack
whose name sorts first is read.

A pack that is damaged is passed over, and said; it is not removed. A process that is killed leaves
whole packs, and at most a file whose name begins with a dot and ends with ``.aside``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.system.caches import cache_folder, held_cache
from fewstep.system.files import digest_of, read_metadata, readable, verify_tensors, write_tensors

_VERSION = 2
_NAME = re.compile(r"pack-([0-9]{8})\.safetensors")


@dataclass(frozen=True)
class PackedRows:
    """What the packs of a folder hold.

    ``kind``: the name of it, such as "prompt embeddings". ``made``: what decides the rows, as JSON
    values. ``what`` and ``maker``: how a sentence calls the rows, and what gives them, such as
    "embeddings of this encoder and type" and "the encoder".
    """

    kind: str
    made: Mapping[str, Any]
    what: str
    maker: str

    def folder(self, room: str, root: Path | None = None) -> Path:
        """Their folder below ``root``/``room``; None for the machine's cache."""
        return Path(root or cache_folder()) / room / digest_of({}, {**self.made, "packs": _VERSION})[:32]


class RowsLayout(NamedTuple):
    """What the rows of all packs of a folder look like.

    ``rows``: by name the type and the shape of one row. ``facts``: numbers that hold for all rows,
    by name, such as an encoder's limit of tokens.
    """

    rows: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    facts: dict[str, int]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, int] | None = None) -> RowsLayout:
        """The layout of tensors (B, ...)."""
        rows = {name: (value.dtype, tuple(value.shape[1:])) for name, value in sorted(tensors.items())}
        return cls(rows, dict(sorted((facts or {}).items())))

    @classmethod
    def of_json(cls, value: Any) -> RowsLayout:
        """What ``as_json`` has written; raises ``ValueError`` for anything else."""
        match value:
            case {"rows": dict(rows), "facts": dict(facts)} if all(type(each) is int for each in facts.values()):
                return cls(
                    {str(name): _row_of_json(row) for name, row in rows.items()},
                    {str(name): number for name, number in facts.items()},
                )
        raise ValueError

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"rows": {name: _row_as_json(*row) for name, row in self.rows.items()}, "facts": self.facts}

    def __str__(self) -> str:
        rows = [f"{name} {shape} {type_name(dtype)}" for name, (dtype, shape) in self.rows.items()]
        return ", ".join([*(f"{name} {number}" for name, number in self.facts.items()), *rows])


class Header(NamedTuple):
    """What a pack says of its rows: the key of each, the layout, and ``counts``: whole numbers of
    each row by name, such as its tokens.
    """

    keys: list[str]
    layout: RowsLayout
    counts: dict[str, list[int]] = {}  # noqa: RUF012 (nobody writes into it)


def header_of(path: Path, packed: PackedRows) -> Header:
    """The header of the pack at ``path``, read without its tensors.

    Raises ``UserError`` for what is no such pack.
    """
    match read_metadata(path):
        case {
            "kind": kind,
            "version": version,
            "made": by,
            "keys": list(keys),
            "counts": dict(counts),
            "layout": layout,
        } if (kind, version, by) == (packed.kind, _VERSION, packed.made) and keys:
            try:
                found = {str(name): [int(each) for each in numbers] for name, numbers in counts.items()}
                if all(len(numbers) == len(keys) for numbers in found.values()):
                    return Header([str(each) for each in keys], RowsLayout.of_json(layout), found)
            except (ValueError, TypeError):
                pass
    raise UserError(f"{path}: holds no {packed.what}; move it elsewhere.")


@dataclass
class Index:
    """Where the ``wanted`` rows are, as far as this process has looked.

    ``found``: by a row's key the name of the pack that it is read from; ``counts``: the row's whole
    numbers, by their name and the key. ``verified``: the packs in ``found``, each of which matches
    its checksum. ``say`` is told of each pack that is passed over.
    """

    folder: Path
    packed: PackedRows
    wanted: Container[str]
    say: Callable[[str], None]
    found: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    layout: RowsLayout | None = None
    _seen: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Takes in the packs that have come since the last look."""
        for name in _names_in(self.folder):
            if name not in self._seen:
                self._seen.add(name)
                try:
                    self._take(name)
                except UserError as error:
                    self.say(f"{error} It is passed over.")

    def write(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Writes those rows (B, ...) that nobody has written yet, and takes in what others have.

        Raises ``UserError`` for another layout than that of the folder, and where nothing can be
        written.
        """
        with held_cache(self.folder):
            self.look()
            fresh = [row for row, key in enumerate(header.keys) if key not in self.found]
            if self.layout not in (None, header.layout):
                maker = self.packed.maker
                raise UserError(
                    f"{self.folder}: holds {self.packed.what} of another form ({self.layout}) than {maker} of the same "
                    f"identity gives now ({header.layout}); give {maker} another identity, or remove the folder."
                )
            if not fresh:
                return
            last = max((_number_of(name) for name in _names_in(self.folder)), default=0)
            metadata = {
                "kind": self.packed.kind,
                "version": _VERSION,
                "made": dict(self.packed.made),
                "keys": [header.keys[row] for row in fresh],
                "counts": {name: [numbers[row] for row in fresh] for name, numbers in header.counts.items()},
                "layout": header.layout.as_json(),
            }
            rows = {name: value[fresh] for name, value in tensors.items()}
            path = self.folder / f"pack-{last + 1:08d}.safetensors"
            write_tensors(path, rows, metadata)
            self.look()
            if path.name not in self.verified:
                raise UserError(f"{path}: was written, and does not read as it was written; check the disk.")

    def _take(self, name: str) -> None:
        header = header_of(self.folder / name, self.packed)
        if self.layout not in (None, header.layout):
            raise UserError(f"{self.folder / name}: has {header.layout}, the packs before it have {self.layout}.")
        new = [row for row, key in enumerate(header.keys) if key in self.wanted and key not in self.found]
        if new:
            verify_tensors(self.folder / name)
            self.verified.add(name)
        self.layout = header.layout
        self.found.update((header.keys[row], name) for row in new)
        for count, numbers in header.counts.items():
            self.counts.setdefault(count, {}).update((header.keys[row], numbers[row]) for row in new)


def _names_in(folder: Path) -> list[str]:
    with readable(folder):
        return sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name)) if folder.is_dir() else []


def _number_of(name: str) -> int:
    return int(name[len("pack-") : -len(".safetensors")])


def _row_as_json(dtype: torch.dtype, shape: Sequence[int]) -> list[Any]:
    return [type_name(dtype), *shape]


def _row_of_json(value: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    match value:
        case [str(name), *sizes] if all(type(size) is int and size >= 0 for size in sizes):
            dtype = getattr(torch, name, None)
            if isinstance(dtype, torch.dtype):
                return dtype, tuple(sizes)
    raise ValueError


def type_name(dtype: torch.dtype) -> str:
    """What torch calls the type: ``float32``."""
    return str(dtype).removeprefix("torch.")
