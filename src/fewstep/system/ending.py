"""The signals that ask a command to end: what batch systems, terminals and shells send, besides
Ctrl-C.

A run that trains takes them for requests to save and stop at the next step (``stop_requests``); a
second Ctrl-C ends it at once. Any other command ends at once: they are raised as ``Ended``, so that
what is open is closed and one sentence is said.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType

_PATIENCE, _PAUSE = 5.0, 0.05
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Ended(BaseException):
    """The command was ended by signal number ``signal``; no ``except Exception`` holds it up."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}.")
        self.signal = number


class _Interrupted(KeyboardInterrupt):
    """A Ctrl-C. After one of Python's own kind that came through code which C runs by name, as
    torch's beginnings do, Python kills itself by SIGINT at its end, whatever the exit code.
    """


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, these signals go to ``handler``; a signal that is ignored stays ignored (SIGHUP under
    nohup).

    Only the main thread can receive signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_a_lost_terminal()
        handler(number, frame)

    # SIGINT of a job in the background is ignored by the shell's choice, not by the user's.
    heard = [number for number in numbers if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ended_by_signals() -> contextlib.AbstractContextManager[None]:
    """Inside, each of ``SIGNALS`` raises ``Ended``, and SIGINT a ``KeyboardInterrupt``, where
    Python would; but for an import, whose end is awaited for ``_PATIENCE`` seconds.

    An exception that comes to an extension while it is being imported may end the process by C++'s
    own means, with an abort and pages of frames.
    """
    first: dict[int, float] = {}

    def end(number: int, frame: FrameType | None) -> None:
        if _imports(frame) and time.monotonic() - first.setdefault(number, time.monotonic()) < _PATIENCE:
            again = threading.Timer(_PAUSE, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        if number == signal.SIGINT:
            raise _Interrupted
        raise Ended(number)

    return handled(
        (*SIGNALS, signal.SIGINT) if signal.getsignal(signal.SIGINT) is signal.default_int_handler else SIGNALS, end
    )


@dataclass
class StopRequest:
    """``signal``: the number of the signal that asked for a stop, 0 for none."""

    signal: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens while inside, in the main thread; elsewhere signals cannot be received and nothing is
    listened to.
    """
    request = StopRequest()

    def ask(number: int, _frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    with handled((*SIGNALS, signal.SIGINT), ask):
        yield request


def _imports(frame: FrameType | None) -> bool:
    """Whether Python is importing a module."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave_a_lost_terminal() -> None:
    """What is still said goes nowhere: a write to a terminal that has hung up fails, and would end
    a run before it has saved.
    """
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
