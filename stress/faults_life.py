"""One life of a run's process, or of the processes of one: begun with a fault, ended by itself or
from outside (see ``faults.py``).

A life of one process is forked from the benchmark, which has the libraries in memory: importing
them takes longer than the whole run. The undisturbed runs, which all others are compared with, and
one stop in five are an interpreter of their own, and so are several processes, by torchrun.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults_entry

LONGEST = 120.0
PROGRESS = re.compile(
    r"[\w -]+: \d+/\d+ steps|step \d+: |passed over a checkpoint|.* is kept as |there is no "
    r"checkpoint|resuming with |.*student.safetensors, "
)


class Forked:
    """A process forked from this one, with what ``subprocess.Popen`` has of use here."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]):
        sys.stdout.flush()
        self._process = multiprocessing.get_context("fork").Process(target=_entered, args=(arguments, environment))
        self._process.start()
        # It has one from its start on.
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of ``Popen``."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As of ``Popen``."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        """As of ``Popen``."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fewstep", timeout or 0.0)


def _entered(arguments: list[str], environment: Mapping[str, str]) -> None:
    import torch

    os.environ.update(environment)
    # The threads were begun in the process that forked this one, which may have had more of them.
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = ["fewstep", *arguments]
    faults_entry.main()


def preload() -> None:
    """Imports what a run needs, before the first fork."""
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # noqa: F401

    import fewstep.report
    import fewstep.runs  # noqa: F401


@dataclass(frozen=True)
class Ended:
    """``code`` of the first process, None where it was killed; what it ``said``; its ``operations``
    on files; whether it was ``stuck`` and had to be ended.
    """

    code: int | None
    said: str
    operations: int
    stuck: bool = False

    @property
    def lines(self) -> list[str]:
        """What it said, without its progress."""
        return [line for line in self.said.splitlines() if line.strip() and not PROGRESS.match(line)]

    @property
    def one_sentence(self) -> bool:
        """Whether it said one sentence, of a user's error or of a stop."""
        return len(self.lines) == 1 and self.lines[0].startswith("fewstep: ") and self.lines[0].isprintable()


class Life:
    """``fewstep ARGUMENTS`` on ``folder`` in one or more processes, with a ``fault`` (see
    ``faults_entry``); what they say goes to ``scratch``. ``plain``: an interpreter of its own.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        scratch: Path,
        processes: int = 1,
        fault: Mapping[str, Any] | None = None,
        plain: bool = False,
    ):
        self.scratch, self.fault = scratch, fault
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self.recipe = folder / "recipe.yaml"
        self.before = _version(self.recipe)
        torchrun = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        )
        source = str(Path(__file__).parents[1] / "src")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": source,
            "COLUMNS": "200",
            "FAULT": json.dumps(fault or {"do": "count"}),
        }
        environment |= {"FAULT_OUT": str(scratch), "FAULT_FOLDER": str(folder)}
        self.process = (
            self._begun(arguments, torchrun, environment) if plain or torchrun else Forked(arguments, environment)
        )
        self.began = time.monotonic()

    def _begun(
        self, arguments: list[str], launcher: list[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with open(self.scratch / "launcher", "wb") as said:
            return subprocess.Popen(
                [sys.executable, *launcher, faults_entry.__file__, *arguments],
                env=environment,
                stdout=said,
                stderr=said,
            )

    def until(self, reached: Callable[[], bool]) -> bool:
        """Waits; False when the process ended before ``reached`` came true."""
        while not reached():
            if self.process.poll() is not None:
                return False
            if time.monotonic() - self.began > LONGEST:
                return False
            time.sleep(0.001)
        return True

    def until_ready(self) -> bool:
        """Waits until the command is about to be called."""
        return self.until((self.scratch / "ready-0").exists)

    def until_working(self) -> bool:
        """Waits until it holds the folder: the first thing that it writes is its recipe."""
        return self.until(lambda: _version(self.recipe) != self.before)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Sends a signal to the process of a rank, or to all that there are and torchrun; nothing
        if they have ended.
        """
        for process in self.all() if rank is None else self.workers()[rank : rank + 1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def all(self) -> list[int]:
        """The processes, the launcher first."""
        return [] if self.process.poll() is not None else [self.process.pid, *_descendants(self.process.pid)]

    def workers(self) -> list[int]:
        """The processes that train, by rank."""
        found = [process for process in self.all() if b"RANK" in _environment(process)]
        return sorted(found, key=lambda process: int(_environment(process)[b"RANK"])) or self.all()[:1]

    def end(self) -> Ended:
        """Waits for its end, and ends it where that does not come."""
        stuck = False
        try:
            self.process.wait(max(1.0, LONGEST - (time.monotonic() - self.began)))
        except subprocess.TimeoutExpired:
            stuck = True
            self.signal(signal.SIGKILL)
            self.process.wait()
        code = _read(self.scratch / "code-0") or (
            str(self.process.returncode) if self.process.returncode not in (1, -signal.SIGKILL) else ""
        )
        said = _read(self.scratch / "said-0") or _read(self.scratch / "launcher")
        return Ended(int(code) if code else None, said, int(_read(self.scratch / "operations-0") or 0), stuck)


def _version(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _descendants(parent: int) -> list[int]:
    """All that a process began and what they began, of those that live."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found, new = [], [parent]
    while new:
        new = [process for process, above in parents.items() if above in new]
        found += new
    return found


def _environment(process: int) -> dict[bytes, bytes]:
    with contextlib.suppress(OSError):
        return dict(
            entry.split(b"=", 1)
            for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if b"=" in entry
        )
    return {}


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
