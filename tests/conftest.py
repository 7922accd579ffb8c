"""One thread: small tensors are no faster on two, and several test processes may share the machine.

And what tests share.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _seeded_module() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights that nobody seeds are the same in every order of tests: of forty FastGANs of 256
    pixels, one has a tanh that rounds to 1.
    """
    torch.manual_seed(0)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The signals that end a process do so: under ``nohup``, which ignores SIGHUP, and in the
    background of a shell, which ignores SIGINT, a test's processes would ignore them too.
    """
    before = {
        number: signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
