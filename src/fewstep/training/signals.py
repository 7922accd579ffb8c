"""A polite stop: SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C ask the run to end at the next step;
a second Ctrl-C ends it at once.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from fewstep.system.ending import SIGNALS, handled


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
