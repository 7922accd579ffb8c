"""Caches of rows that processes fill at one time, or are killed while they fill; and what damages a
file of rows.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fewstep.system import files

SECONDS = 240


def packs_in(cache: Path) -> list[Path]:
    """The packs of a cache, by name."""
    return sorted(cache.rglob("pack-*.safetensors"))


def flipped(path: Path) -> None:
    """Damages a value of a file."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Takes the end off a file."""
    os.truncate(path, path.stat().st_size - 8)


# In a process of its own


def wait_to_begin(out: Path) -> None:
    """Says that the process that writes ``out`` is ready, and waits for the file ``go``."""
    (out.parent / f"{out.name}.ready").touch()
    while not (out.parent / "go").exists():
        time.sleep(0.005)


def hang_in_sync(marker: Path, syncs: int) -> None:
    """After that many ``syncs`` this process hangs for ever in the next one, which has put a file's
    bytes on the disk; the file has no name yet.
    """
    real, before = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal before
        real(handle)
        before += 1
        if before > syncs:
            marker.touch()
            time.sleep(600)

    files.os.fsync = fsync  # type: ignore[attr-defined]


@contextlib.contextmanager
def one_of_two(rank: int, out: Path) -> Iterator[None]:
    """This process as one of two of a run."""
    from torch import distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{out.parent / 'meeting'}", rank=rank, world_size=2)
    yield
    dist.destroy_process_group()


# In the test's process


def filled_by_two(fill: Callable[..., None], cache: Path, folder: Path, *more: Any) -> bytes:
    """What two processes read that call ``fill(cache, out, shift, *more)`` at the same time, each
    with rows that are shifted by another number.
    """
    processes = [_started(fill, cache, folder / f"out-{each}", each / 8, *more) for each in (0, 1)]
    for each in (0, 1):
        _await(folder / f"out-{each}.ready", *processes)
    (folder / "go").touch()
    return _ended(processes, [folder / "out-0", folder / "out-1"])


def filled_by_a_group(fill: Callable[..., None], cache: Path, folder: Path) -> bytes:
    """What the two processes of a run read that call ``fill(rank, cache, out)``."""
    processes = [_started(fill, rank, cache, folder / "out") for rank in (0, 1)]
    return _ended(processes, [folder / "out.0", folder / "out.1"])


def killed_while_it_fills(fill_and_hang: Callable[..., None], cache: Path, folder: Path, *more: Any) -> Path:
    """A process that calls ``fill_and_hang(cache, marker, *more)`` is killed where it hangs: the
    file whose name it did not come to write.
    """
    process = _started(fill_and_hang, cache, folder / "hangs", *more)
    _await(folder / "hangs", process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (aside,) = cache.rglob("*.aside")
    return aside


def _started(target: Any, *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=_in_threads, args=(torch.get_num_threads(), target, *arguments)
    )
    process.start()
    return process


def _in_threads(threads: int, target: Any, *arguments: Any) -> None:
    # What a network emits may differ in its last bit with the number of threads.
    torch.set_num_threads(threads)
    target(*arguments)


def _await(path: Path, *processes: Any) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def _ended(processes: list[Any], outs: list[Path]) -> bytes:
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode == 0
    one, two = (out.read_bytes() for out in outs)
    assert one == two
    return one
