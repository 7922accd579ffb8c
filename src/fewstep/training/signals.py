"""A polite stop: SIGTERM and Ctrl-C ask the run to end at the next step; a second Ctrl-C ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class StopRequest:
    """``signal``: the number of the signal that asked for a stop, 0 for none."""

    signal: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens while inside, in the main thread; elsewhere signals cannot be received and nothing is listened to."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: object) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
