"""The first lines of a command.

They import next to nothing: from here on a signal that ends the command is one sentence, also while
Python imports the rest.
"""

from __future__ import annotations

import os
import signal
import sys

from fewstep import NEEDS_UNIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


def _end(number: int, _frame: FrameType | None) -> None:
    # Nothing has begun that must be undone, and an exception could be lost in the import of an
    # extension.
    how = "interrupted." if number == signal.SIGINT else f"ended by {signal.Signals(number).name}."
    os.write(2, f"fewstep: {how}\n".encode())
    os._exit(128 + number)


def main() -> None:
    """``fewstep``: see ``fewstep.command.entry``."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        os.write(2, f"fewstep: {NEEDS_UNIX}\n".encode())
        sys.exit(2)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    # Ignored signals stay ignored.
    taken = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    for number in taken:
        signal.signal(number, _end)
    from fewstep.command.entry import run_command

    for number in taken:
        signal.signal(number, before[number])
    run_command()
