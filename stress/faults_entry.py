"""The command line with a fault in it: what ``faults.py`` starts in place of ``python -m fewstep``,
alone or by torchrun.

The fault is JSON in the environment (``FAULT``). Most act on operations, which is what the process
does to files of the folder it works in (``FAULT_FOLDER``): opening to write, each half of a write,
sync, rename, removal, making a folder. ``{"do": "die", "at": 17}`` is SIGKILL before operation 17;
``{"do": "fail", "at": 17, "errno": 28, "lasting": true}`` an error of the disk there, or from there
on; ``{"do": "count"}`` counts them. ``{"do": "clock", "seed": 3}`` lets all clocks jump, ``{"do":
"limit", "bytes": 5000}`` limits the size of files. ``ranks`` are the processes that it is for, all
unless given.

What the process says goes to ``said-RANK`` in the folder ``FAULT_OUT``, its exit code to
``code-RANK``, the number of its operations to ``operations-RANK``. Nothing of this is in fewstep
itself: the patches are to ``os``, ``io`` and ``time``.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_JUMP = 1e6


class Operations:
    """Counts the operations below ``folder`` and does at one of them what the fault says."""

    def __init__(self, folder: str, fault: dict[str, Any]):
        self.folder = folder
        self.fault = fault
        self.done = 0

    def __call__(self) -> None:
        """One more is about to happen."""
        self.done += 1
        at, lasting = self.fault.get("at", 0), self.fault.get("lasting", False)
        if not at or (self.done < at if lasting else self.done != at):
            return
        if self.fault["do"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.fault["errno"], os.strerror(self.fault["errno"]))

    def is_ours(self, path: Any) -> bool:
        """Whether a path (not a descriptor) is in the folder."""
        return not isinstance(path, int) and os.path.abspath(os.fspath(path)).startswith(self.folder)

    def before(self, function: Callable[..., Any], mind: Callable[..., bool]) -> Callable[..., Any]:
        """The function, with an operation before each call that ``mind`` says is one."""

        def patched(*arguments: Any, **named: Any) -> Any:
            if mind(*arguments):
                self()
            return function(*arguments, **named)

        return patched

    def install(self) -> None:
        """Puts itself before the interpreter's ways to change files."""
        opened: set[int] = set()
        plain_open, plain_fdopen, plain_io = os.open, os.fdopen, io.open

        def open_low(path: Any, *arguments: Any, **named: Any) -> int:
            if self.is_ours(path):
                self()
            handle = plain_open(path, *arguments, **named)
            (opened.add if self.is_ours(path) else opened.discard)(handle)
            return handle

        def open_stream(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not self.is_ours(path) or not set(mode) & set("wax+"):
                return plain_io(path, mode, *arguments, **named)
            self()
            return Torn(plain_io(path, mode, *arguments, **named), self)

        def open_descriptor(handle: int, *arguments: Any, **named: Any) -> Any:
            stream = plain_fdopen(handle, *arguments, **named)
            return Torn(stream, self) if handle in opened else stream

        for module, name, own in (
            (os, "open", open_low),
            (os, "fdopen", open_descriptor),
            (builtins, "open", open_stream),
            (io, "open", open_stream),
        ):
            setattr(module, name, own)
        os.fsync = self.before(os.fsync, lambda *_: True)
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir"):
            setattr(os, name, self.before(getattr(os, name), lambda path, *_: self.is_ours(path)))


class Torn:
    """A stream that writes in two halves, so that a process can end between them."""

    def __init__(self, stream: Any, operation: Operations):
        self._stream = stream
        self._operation = operation

    def write(self, content: Any) -> int:
        middle = len(content) // 2
        for part in (content[:middle], content[middle:]):
            self._operation()
            self._stream.write(part)
            self._stream.flush()
        return len(content)

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def let_clocks_jump(seed: int) -> None:
    """Each clock goes back or forth by up to eleven days at one of five readings; of several
    processes the wall's only: the others never jump in earnest, and what torch does to wait for
    another process relies on that (one try of one did not end).
    """
    chance, offset = random.Random(seed), [0.0]

    def jumping(clock: Callable[[], Any], unit: float) -> Callable[[], Any]:
        def read() -> Any:
            if chance.random() < 0.2:
                offset[0] = chance.uniform(-LONGEST_JUMP, LONGEST_JUMP)
            now = clock()
            return type(now)(now + offset[0] * unit)

        return read

    for name in ("time",) if "RANK" in os.environ else ("time", "monotonic", "perf_counter"):
        setattr(time, name, jumping(getattr(time, name), 1.0))
        setattr(time, f"{name}_ns", jumping(getattr(time, f"{name}_ns"), 1e9))


def main() -> None:
    fault, out, rank = json.loads(os.environ["FAULT"]), Path(os.environ["FAULT_OUT"]), os.environ.get("RANK", "0")
    said = os.open(out / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    if fault.get("ranks") is not None and int(rank) not in fault["ranks"]:
        fault = {"do": "nothing"}
    if fault["do"] == "clock":
        let_clocks_jump(fault["seed"])
    elif fault["do"] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], resource.RLIM_INFINITY))
    from fewstep.command import entry

    operations = Operations(os.environ["FAULT_FOLDER"], fault)
    (out / f"ready-{rank}").touch()
    operations.install()
    code: Any = 1
    try:
        entry.run_command()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
        raise
    finally:
        operations.fault, count = {"do": "nothing"}, operations.done
        (out / f"operations-{rank}").write_text(str(count))
        (out / f"code-{rank}").write_text(str(code))


if __name__ == "__main__":
    main()
