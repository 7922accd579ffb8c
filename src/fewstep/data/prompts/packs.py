"""Packs of embeddings on disk, and which of them a prompt is read from.

A pack is a safetensors file with the embeddings of some prompts, a row a prompt. Its header lists
the SHA-256 of these prompts in the order of the rows. All packs of one encoder and type are in one
folder, as ``pack-00000001.safetensors`` and so on.

A pack is written while its folder is held: the writer looks again at what is there, leaves out the
prompts that another process has written meanwhile, and takes the next number. So a prompt is in one
pack, the first that was written, and all processes read the same bits, whatever batch they would
have computed the prompt in. Where two packs do hold a prompt, because a damaged pack was restored,
the pack whose name sorts first is read.

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

from fewstep.data.prompts.formats import readable
from fewstep.errors import UserError
from fewstep.system.caches import held_cache
from fewstep.system.files import read_metadata, verify_tensors, write_tensors

_KIND, _VERSION = "prompt embeddings", 1
_NAME = re.compile(r"pack-([0-9]{8})\.safetensors")


class RowsLayout(NamedTuple):
    """What the rows of all packs of a folder look like.

    ``length``: the encoder's limit of tokens. ``rows``: by name the type and the shape of one row.
    """

    length: int
    rows: dict[str, tuple[torch.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, length: int, tensors: Mapping[str, Tensor]) -> RowsLayout:
        """The layout of tensors (B, ...)."""
        return cls(length, {name: (value.dtype, tuple(value.shape[1:])) for name, value in sorted(tensors.items())})

    @classmethod
    def of_json(cls, value: Any) -> RowsLayout:
        """What ``as_json`` has written; raises ``ValueError`` for anything else."""
        match value:
            case {"length": int(length), "rows": dict(rows)}:
                return cls(length, {str(name): _row_of_json(row) for name, row in rows.items()})
        raise ValueError

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"length": self.length, "rows": {name: _row_as_json(*row) for name, row in self.rows.items()}}

    def __str__(self) -> str:
        rows = ", ".join(f"{name} {shape} {_type_name(dtype)}" for name, (dtype, shape) in self.rows.items())
        return f"{self.length} tokens; {rows}"


class Header(NamedTuple):
    """What a pack says of its rows: the SHA-256 of each prompt, its tokens, and the layout."""

    prompts: list[str]
    tokens: list[int]
    layout: RowsLayout


def header_of(path: Path, made: Mapping[str, str]) -> Header:
    """The header of the pack at ``path``, read without its tensors.

    ``made``: by which encoder and in which type. Raises ``UserError`` for what is no such pack.
    """
    match read_metadata(path):
        case {
            "kind": kind,
            "version": version,
            "made": by,
            "prompts": list(prompts),
            "tokens": list(tokens),
            "layout": layout,
        } if (kind, version, by) == (_KIND, _VERSION, made) and 0 < len(prompts) == len(tokens):
            try:
                return Header(
                    [str(each) for each in prompts], [int(each) for each in tokens], RowsLayout.of_json(layout)
                )
            except (ValueError, TypeError):
                pass
    raise UserError(f"{path}: holds no embeddings of this encoder and type; move it elsewhere.")


@dataclass
class Index:
    """Where the embeddings of the ``wanted`` prompts are, as far as this process has looked.

    ``made``: by which encoder and in which type. ``found``: by a prompt's SHA-256 the name of the
    pack that it is read from; ``tokens``: how many it has. ``verified``: the packs in ``found``,
    each of which matches its checksum. ``say`` is told of each pack that is passed over.
    """

    folder: Path
    made: Mapping[str, str]
    wanted: Container[str]
    say: Callable[[str], None]
    found: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
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
        """Writes the rows of those prompts that nobody has written yet, and takes in what others
        have.

        Raises ``UserError`` for another layout than that of the folder, and where nothing can be
        written.
        """
        with held_cache(self.folder):
            self.look()
            fresh = [row for row, prompt in enumerate(header.prompts) if prompt not in self.found]
            if self.layout not in (None, header.layout):
                raise UserError(
                    f"{self.folder}: holds embeddings of another kind ({self.layout}) than the encoder of the same "
                    f"identity gives now ({header.layout}); give the encoder another identity, or remove the folder."
                )
            if not fresh:
                return
            last = max((_number_of(name) for name in _names_in(self.folder)), default=0)
            metadata = {
                "kind": _KIND,
                "version": _VERSION,
                "made": dict(self.made),
                "prompts": [header.prompts[row] for row in fresh],
                "tokens": [header.tokens[row] for row in fresh],
                "layout": header.layout.as_json(),
            }
            rows = {name: value[fresh] for name, value in tensors.items()}
            path = self.folder / f"pack-{last + 1:08d}.safetensors"
            write_tensors(path, rows, metadata)
            self.look()
            if path.name not in self.verified:
                raise UserError(f"{path}: was written, and does not read as it was written; check the disk.")

    def _take(self, name: str) -> None:
        header = header_of(self.folder / name, self.made)
        if self.layout not in (None, header.layout):
            raise UserError(f"{self.folder / name}: has {header.layout}, the packs before it have {self.layout}.")
        new = [row for row, prompt in enumerate(header.prompts) if prompt in self.wanted and prompt not in self.found]
        if new:
            verify_tensors(self.folder / name)
            self.verified.add(name)
        self.layout = header.layout
        for row in new:
            self.found[header.prompts[row]] = name
            self.tokens[header.prompts[row]] = header.tokens[row]


def _names_in(folder: Path) -> list[str]:
    with readable(folder):
        return sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name)) if folder.is_dir() else []


def _number_of(name: str) -> int:
    return int(name[len("pack-") : -len(".safetensors")])


def _row_as_json(dtype: torch.dtype, shape: Sequence[int]) -> list[Any]:
    return [_type_name(dtype), *shape]


def _row_of_json(value: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    match value:
        case [str(name), *sizes] if all(type(size) is int and size >= 0 for size in sizes):
            dtype = getattr(torch, name, None)
            if isinstance(dtype, torch.dtype):
                return dtype, tuple(sizes)
    raise ValueError


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
