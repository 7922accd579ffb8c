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
from types import FrameType, TracebackType
from typing import Any, NoReturn

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


def end_at_once(number: int) -> NoReturn:
    """Ends the process in the sentence and with the exit code of signal ``number``, where an
    exception could be lost. Nothing needs to be undone: files are written aside.
    """
    how = "interrupted." if number == signal.SIGINT else str(Ended(number))
    # A progress bar may have hidden the cursor.
    os.write(2, (b"\x1b[?25h" if os.isatty(2) else b"") + f"fewstep: {how}\n".encode())
    os._exit(128 + number)


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


class _Raised(contextlib.AbstractContextManager[None]):
    """What ends the block inside by an exception of a signal, which stays that exception.

    Compiled code through which it comes may make an error of its own of it: pydantic a
    ``SchemaError``, torch a ``ValueError``.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def raise_for(self, number: int) -> NoReturn:
        self.number = number
        raise self._error(number)

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.number is not None and error is not None and not isinstance(error, (Ended, KeyboardInterrupt)):
            raise self._error(self.number) from error

    @staticmethod
    def _error(number: int) -> BaseException:
        return _Interrupted() if number == signal.SIGINT else Ended(number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, each of ``SIGNALS`` raises ``Ended``, and SIGINT a ``KeyboardInterrupt``, where
    Python would; but for an import, whose end is awaited for ``_PATIENCE`` seconds, after which
    the process ends at once.

    An exception that comes to an extension while it is being imported may end the process by C++'s
    own means, with an abort and pages of frames.
    """
    first: dict[int, float] = {}
    raised = _Raised()

    def end(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            if time.monotonic() - first.setdefault(number, time.monotonic()) > _PATIENCE:
                end_at_once(number)
            again = threading.Timer(_PAUSE, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        raised.raise_for(number)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with raised, handled((*SIGNALS, signal.SIGINT) if usual else SIGNALS, end):
        yield


@dataclass
class StopRequest:
    """``signal``: the number of the signal that asked for a stop, 0 for none."""

    signal: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens while inside, in the main thread; elsewhere signals cannot be received and nothing is
    listened to.
    """
    request, raised = StopRequest(), _Raised()

    def ask(number: int, _frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raised.raise_for(number)
        request.signal = number

    with raised, handled((*SIGNALS, signal.SIGINT), ask):
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
