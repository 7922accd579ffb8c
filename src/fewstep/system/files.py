"""Files that are whole or absent, and tensors that prove what they are.

Nothing is written in place: a file is written aside in the same folder, synced, renamed over the
old one, and the folder is synced, so that a crash at any moment leaves either the old file or the
new one.

Tensors are stored as safetensors (no pickle, nothing is executed when reading). All of a file's
metadata is one JSON text under one key, because the order of several keys is not stable in that
format and equal content must give equal bytes. The JSON carries a SHA-256 over the names, types,
shapes and bytes of the tensors and over the metadata: a flipped byte is found when reading.

Where several processes are one run (see ``distributed``), all call the functions that write and the
first one writes; an error of its is everyone's. Reading is each process' own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fewstep.errors import NotFinite, UserError
from fewstep.system import distributed
from fewstep.system.finite import first_not_finite
from fewstep.system.ledger import ledger_of

_KEY = "fewstep"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces ``path`` when the context ends well, atomically and durably,
    with the permissions that the umask allows.

    In a folder that keeps a ledger, a file that was not written there is given another name first
    (see ``ledger``). Raises ``UserError`` when the disk is full or writing is not permitted; the
    old file is then untouched, as it is after any other error.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of this process and thread, and a number: a file of that name from a process before it is
        # not written into.
        aside = path.parent / f".{path.name}.{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}.aside"
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            ledger = ledger_of(path)
            if ledger is not None:
                ledger.about_to_replace(path, aside)
            os.replace(aside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(why_not_written(path, error)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content`` as ``replacing`` does."""
    distributed.together(lambda: write_alone(path, content))


def write_alone(path: Path, content: bytes) -> None:
    """``write_bytes`` of this process alone, whatever others do."""
    with replacing(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8 text; what a name that is not UTF-8 has in it is escaped."""
    write_bytes(path, as_utf8(text))


def as_utf8(text: str) -> bytes:
    """The text in UTF-8.

    Python reads a name that is not UTF-8 into characters that UTF-8 lacks: they become their
    escapes.
    """
    return text.encode("utf-8", "backslashreplace")


def append_line(path: Path, line: str) -> None:
    """Adds a line to an existing file with one write.

    Raises ``UserError`` when the disk is full, writing is not permitted, or the file is gone.
    """

    def append() -> None:
        try:
            with open(path, "r+b") as stream:
                stream.seek(0, os.SEEK_END)
                stream.write(as_utf8(line) + b"\n")
        except OSError as error:
            raise UserError(why_not_written(path, error)) from error

    distributed.together(append)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> str:
    """Writes tensors and JSON metadata to one safetensors file; returns its digest (64 hexadecimal
    digits).

    The same tensors and metadata give the same bytes, whoever writes them and whenever. Sharded
    tensors are gathered, one after another, in the process that writes. Raises ``NotFinite`` for
    values that are not finite, and nothing is written then.
    """

    def header(plain: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, str]]:
        digest = digest_of(plain, metadata)
        return digest, {_KEY: json.dumps({"digest": digest, **metadata}, sort_keys=True)}

    return _write_with_header(path, tensors, header)


def write_foreign_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> str:
    """As ``write_tensors``, for other programs to read: nothing of ours is in the file.

    ``header``: the metadata of a safetensors file, at most one entry, so that equal content gives
    equal bytes.
    """
    assert len(header) <= 1
    return _write_with_header(path, tensors, lambda plain: (digest_of(plain, header), dict(header)))


def _write_with_header(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    header: Callable[[Mapping[str, torch.Tensor]], tuple[str, dict[str, str]]],
) -> str:
    """Writes the tensors; ``header`` gives the digest and the metadata of all that is written."""
    from safetensors.torch import save

    plain: dict[str, torch.Tensor] = {}
    for name, value in sorted(tensors.items()):
        gathered = distributed.whole(value.detach())
        if distributed.first():
            # A tensor that shares storage with another (tied weights, views) would be refused by
            # safetensors.
            plain[name] = gathered.to("cpu").contiguous().clone()

    def write() -> str:
        wrong = first_not_finite(plain.items())
        if wrong:
            raise NotFinite(f"{path}: was not written, because '{wrong}' holds values that are not finite.")
        digest, said = header(plain)
        write_bytes(path, save(plain, metadata=said))
        return digest

    return distributed.together(write)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what ``write_tensors`` wrote: (tensors on the CPU, metadata without the digest).

    Raises ``UserError`` naming the file when it is missing, cut short, altered, or not one of ours.
    """
    with opened_tensors(Path(path)) as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
        header = stream.metadata() or {}
    return tensors, _verified(Path(path), tensors, header)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that ``read_tensors`` gives, without reading the tensors; raises as it does.

    The header must be whole and the file as long as it says; a flipped byte is not found.
    """
    with opened_tensors(Path(path)) as stream:
        return _metadata(Path(path), stream.metadata() or {})[0]


def verify_tensors(path: Path) -> dict[str, Any]:
    """The metadata that ``read_tensors`` gives, the checksum compared with one tensor in memory at
    a time. Raises as ``read_tensors`` does.
    """
    with opened_tensors(Path(path)) as stream:
        return _verified(Path(path), _OneByOne(stream), stream.metadata() or {})


def check_finite(path: Path) -> None:
    """Raises ``NotFinite`` for a safetensors file with a value that is not finite, ``UserError``
    for one that cannot be read; one tensor is in memory at a time.
    """
    with opened_tensors(Path(path)) as stream:
        for name, value in _OneByOne(stream).items():
            if first_not_finite([(name, value)]):
                raise NotFinite(
                    f"{path}: '{name}' holds values that are not finite; use another file, or make it again."
                )


class _OneByOne(Mapping[str, torch.Tensor]):
    """The tensors of an open file, each read when it is asked for and not kept."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._stream.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream.keys())

    def __len__(self) -> int:
        return len(self._stream.keys())


@contextlib.contextmanager
def readable(path: object) -> Iterator[None]:
    """Around the reading of a file: an ``OSError`` becomes a ``UserError`` that names the file."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path}: cannot be read ({why}); check the path and its permissions.") from error


@contextlib.contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """An open safetensors file, of which tensors and parts of them are read when they are asked
    for. Nothing is compared with the checksum.

    What cannot be read of it, then or inside the context, is a ``UserError``.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    try:
        with _utf8_name(path) as name, safe_open(name, framework="pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error}); it may have been cut short.") from error


@contextlib.contextmanager
def _utf8_name(path: Path) -> Iterator[str]:
    """A name of the file in UTF-8: safetensors opens no other."""
    if as_utf8(str(path)) == os.fsencode(path):
        yield str(path)
        return
    with open(path, "rb") as stream:
        yield f"/dev/fd/{stream.fileno()}"


def _metadata(path: Path, header: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The metadata of ours in a file's header, and the digest."""
    try:
        metadata = json.loads(header[_KEY])
        digest = metadata.pop("digest")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: was not written by fewstep; its header has no '{_KEY}' entry to rebuild it from."
        ) from error
    return metadata, digest


def _verified(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> dict[str, Any]:
    """The metadata, having compared the digest."""
    metadata, digest = _metadata(path, header)
    if digest_of(tensors, metadata) != digest:
        raise UserError(
            f"{path}: its content does not match its checksum; the file is damaged, restore it from a copy."
        )
    return metadata


def digest_of(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 over metadata, names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def why_not_written(path: Path, error: OSError) -> str:
    """The sentence for an error in writing."""
    remedy = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EFBIG: "it would exceed the file-size limit; raise the limit (ulimit -f)",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EACCES: "writing is not permitted; change the permissions or choose another folder",
        errno.EPERM: "writing is not permitted; change the permissions or choose another folder",
        errno.ENOENT: "it, or its folder, has been removed meanwhile; start the run anew",
        errno.EROFS: "the file system is read-only; choose another folder",
    }.get(error.errno or 0, f"{error.strerror or error}; choose another folder")
    return f"{path}: could not be written: {remedy}."
