"""Reads what Weights & Biases writes when it is offline: LevelDB's log format, of protocol
buffers.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 2**15, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a log after its own header of seven bytes; one that is cut short is left
    out.
    """
    position, parts = _HEADER, b""
    while position + _HEADER <= len(content):
        if _BLOCK - position % _BLOCK < _HEADER:
            # A block's rest that holds no header is filled up.
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if not kind:
            return
        body = content[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        parts = body if kind in (_WHOLE, _FIRST) else parts + body
        if kind in (_WHOLE, _LAST):
            yield parts


def _ended(path: Path) -> list[Record]:
    """All records of a file, once its writer, a process of its own, has written the last of
    them.
    """
    deadline = time.monotonic() + 60
    while True:
        found = []
        for data in _records(path.read_bytes()):
            found.append(Record())
            found[-1].ParseFromString(data)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"{path} was not ended"
        time.sleep(0.1)


def history(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's history, of all its processes, in their order; values as JSON."""
    paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    rows = [
        record.history for path in paths for record in _ended(path) if record.WhichOneof("record_type") == "history"
    ]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in row.item} for row in rows]
