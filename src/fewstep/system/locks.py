"""One worker a folder: a lock that goes with the process, and the question whether it is held.

The lock is a file named ``lock`` in the folder, which the kernel locks (flock) and which stays
behind. The file means nothing by itself: nobody writes into it, empties it or removes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.files import why_not_written

_NAME = "lock"
# Seconds. Who asks (``in_use``) holds the lock for as long as one call takes, and must not pass for
# a worker: a lock that is refused is asked for again.
_ASKED, _AGAIN = 0.2, 0.01


class InUse(UserError):
    """Another process, or another thread, holds the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process: a second process gets ``InUse``.

    The lock goes with the process however that ends. A thread that holds a folder may lock it
    again, another thread may not.
    """
    with contextlib.ExitStack() as held:

        def hold() -> None:
            held.enter_context(_locked(folder))

        distributed.together(hold)
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder = Path(folder).absolute()
    path = folder / _NAME
    # Of one file there is one lock, which counts for each thread how often it is held. Where the
    # kernel has no lock, a file whose being there is the lock would outlive its process: that is
    # refused. ``filelock`` refuses links; ours leads to what ``in_use`` asks.
    lock = FileLock(os.path.realpath(path), is_singleton=True, thread_local=True, fallback_to_soft=False)
    try:
        lock.acquire(timeout=_ASKED, poll_interval=_AGAIN, blocking=True)
    except Timeout as error:
        raise InUse(f"{folder}: another fewstep process is working in this folder; wait for it or stop it.") from error
    except OSError as error:
        raise UserError(why_not_written(path, error)) from error
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether someone holds the folder by ``locked``, on this machine or on another that shares it.

    Nothing is written; raises ``UserError`` when its lock cannot be read.
    """
    import fcntl

    path = Path(folder) / _NAME
    try:
        with open(path, "rb") as stream:
            # ``filelock`` can only ask by taking the lock, for which it makes the file, needs to
            # write it, and takes it from others who ask. A shared lock needs a file that can be
            # read, and two who ask do not see each other. It is held for as long as the call takes.
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); put an empty file in its place."
        ) from error
    return False
