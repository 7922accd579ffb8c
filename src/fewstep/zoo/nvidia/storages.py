"""Tensors as PyTorch writes them inside a pickle: storages as bytes, and views of them, each
checked against the bytes that are there.

A storage is the legacy form of ``torch.save``: five pickles in a row (a magic number, a version,
facts on the machine, the storage by its persistent id, the list of keys), the number of elements as
an int64, and the elements, little-endian. All five are read by the same machine as the file around
them. A tensor is a view of a storage: type, offset, shape, strides. Views may neither leave their
storage nor repeat its elements, and all tensors of a file together may not be larger than the file:
10 GB that a kilobyte claims are refused before they are allocated.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import Machine, Name, shown_foreign

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}
_DIMENSIONS = 8


@dataclass(frozen=True, eq=False)
class Storage:
    """``count`` elements of type ``dtype``, as bytes."""

    dtype: torch.dtype
    count: int
    content: memoryview


class Storages:
    """The storages and tensors of one file of ``size`` bytes; ``storage`` and ``tensor`` are
    builders (see ``machine``).
    """

    def __init__(self, size: int):
        self._size = size
        self._stored = 0
        self._claimed = 0

    def storage(self, arguments: tuple[Any, ...]) -> Storage:
        """``torch.storage._load_from_bytes(bytes)``."""
        if len(arguments) != 1 or type(arguments[0]) is not bytes:
            raise UserError("has a storage that is not made of bytes.")
        self._stored += len(arguments[0])
        if self._stored > self._size:
            raise UserError("has storages that together are larger than the file; get the file from its source again.")
        return _storage_from(arguments[0])

    def tensor(self, arguments: tuple[Any, ...]) -> Tensor:
        """``torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad,
        hooks)``.
        """
        if len(arguments) != 6 or not isinstance(arguments[0], Storage):
            raise UserError("has a tensor that is not a view of a storage.")
        storage, offset, shape, strides = arguments[:4]
        for numbers in ((offset,), shape, strides):
            if (
                type(numbers) is not tuple
                or len(numbers) > _DIMENSIONS
                or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers)
            ):
                raise UserError(
                    f"has a tensor whose shape, strides or offset are not at most {_DIMENSIONS} whole numbers from 0."
                )
        if len(shape) != len(strides):
            raise UserError(f"has a tensor of {len(shape)} dimensions with {len(strides)} strides.")
        elements = math.prod(shape)
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if elements else 0
        if elements > span or offset + span > storage.count:
            raise UserError(
                f"has a tensor of {shown_foreign(elements)} elements that does not fit into its storage of "
                f"{storage.count}; get the file from its source again."
            )
        size = storage.dtype.itemsize
        self._claimed += span * size
        if self._claimed > self._size:
            raise UserError("has tensors that together are larger than the file; get the file from its source again.")
        flat = torch.empty(span, dtype=storage.dtype)
        flat.view(torch.uint8).numpy().data[:] = storage.content[offset * size : (offset + span) * size]
        return flat.as_strided(shape, strides).contiguous()


def parameter(arguments: tuple[Any, ...]) -> Tensor:
    """``torch._utils._rebuild_parameter(tensor, requires_grad, hooks)``: the tensor."""
    if len(arguments) != 3 or not isinstance(arguments[0], Tensor):
        raise UserError("has a parameter that is not a tensor.")
    return arguments[0]


def _storage_from(payload: bytes) -> Storage:
    stream = io.BytesIO(payload)
    plain = Machine({})
    if plain.run(stream) != _MAGIC or plain.run(stream) != _VERSION:
        raise UserError("has a storage that PyTorch's legacy format does not begin.")
    facts = plain.run(stream)
    if type(facts) is not dict or facts.get("little_endian") is not True:
        raise UserError("has a storage that is not little-endian.")
    storage = Machine(dict.fromkeys(_TYPES, _not_called), _claim).run(stream)
    keys = plain.run(stream)
    if not isinstance(storage, _Claim) or type(keys) is not list or len(keys) != 1 or keys[0] != storage.key:
        raise UserError("has a storage whose list of keys is not its key.")
    content = memoryview(payload)[stream.tell() :]
    if (
        len(content) != 8 + storage.count * storage.dtype.itemsize
        or struct.unpack("<q", content[:8])[0] != storage.count
    ):
        raise UserError(
            f"has a storage that claims {shown_foreign(storage.count)} elements and holds {len(content)} bytes; it "
            "may have been cut short."
        )
    return Storage(storage.dtype, storage.count, content[8:])


@dataclass(frozen=True, eq=False)
class _Claim:
    """What a storage's persistent id says of it."""

    dtype: torch.dtype
    key: str
    count: int


def _claim(identity: Any) -> _Claim:
    """From ('storage', type, key, device, number of elements, None); the last is missing in old
    files.
    """
    if (
        type(identity) is not tuple
        or len(identity) not in {5, 6}
        or identity[0] != "storage"
        or identity[5:] not in ((), (None,))
    ):
        raise UserError("has a storage with a malformed persistent id.")
    _, kind, key, _, count = identity[:5]
    if not isinstance(kind, Name) or type(key) is not str or type(count) is not int or count < 0:
        raise UserError("has a storage with a malformed persistent id.")
    return _Claim(_TYPES[kind.text], key, count)


def _not_called(arguments: tuple[Any, ...]) -> Any:
    raise UserError("calls a type of storage, which legacy files only name.")
