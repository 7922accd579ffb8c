"""The processes in which cases run, and what came of them (see ``hostile.py``): one that lives long
and is started as ``python hostile_worker.py``, and others for a case alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

REPOSITORY = Path(__file__).parents[1]
LIMIT_SECONDS, LIMIT_WAITING, LIMIT_MIB = 60.0, 300.0, 1024
LIFE = 100


def work() -> None:
    """The long-lived process: a line of arguments in, a line of what came of them out."""
    from fewstep.command import entry

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        os.chdir(job["folder"])
        sys.argv = ["fewstep", *job["arguments"]]
        # Descriptors and not only sys.stderr: libraries write there too.
        with open("stdout", "w+b") as out, open("stderr", "w+b") as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            Path("/proc/self/clear_refs").write_text("5")
            code, trace = _called(entry.run_command)
            sys.stdout.flush()
            sys.stderr.flush()
            err.seek(0)
            said = err.read().decode("utf-8", "replace")
        print(
            json.dumps({"code": code, "trace": trace, "said": said, "mib": status("self", "VmHWM")}),
            file=answers,
            flush=True,
        )


def _called(main: Any) -> tuple[int, str]:
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0), ""
    except BaseException:  # noqa: BLE001 (whatever escapes is what is counted)
        return 1, traceback.format_exc()
    return 0, ""


def status(process: int | str, field: str) -> int:
    """A figure of a process in MiB; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) // 1024
    return 0


def processor_time(process: int) -> float:
    """The seconds that a process has used; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Worker:
    """The long-lived process, begun when it is needed."""

    def __init__(self, errors: TextIO):
        self.errors = errors
        self.process: subprocess.Popen[str] | None = None
        self.served = 0

    def run(self, arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
        """What came of the command: code, trace, what it said, MiB; ``ended`` where it was stopped
        or died.
        """
        if self.process is None or self.served >= LIFE:
            self.stop()
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=environment(),
            )
            self.served = 0
        self.served += 1
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, "folder": str(folder)}) + "\n")
        self.process.stdin.flush()
        ended = watched(self.process, lambda: ready(self.process))
        answer = self.process.stdout.readline() if not ended else ""
        if not answer:
            self.stop()
            return {"code": -1, "trace": "", "said": "", "mib": 0, "ended": ended or "crashes"}
        return json.loads(answer)

    def stop(self) -> None:
        """Ends it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None


def ready(process: subprocess.Popen[str] | None) -> bool:
    """Whether it has answered, or ended."""
    import select

    assert process is not None
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0.05)[0])


def watched(process: subprocess.Popen[Any], finished: Any) -> str:
    """Waits; "" when the command is finished, else why it was stopped."""
    began, used = time.monotonic(), processor_time(process.pid)
    while not finished():
        if time.monotonic() - began > LIMIT_WAITING or processor_time(process.pid) - used > LIMIT_SECONDS:
            process.kill()
            return "hangs"
        # Well above the limit: the machine is spared, the case counts either way.
        if status(process.pid, "VmRSS") > 2 * LIMIT_MIB:
            process.kill()
            return "over memory"
    return ""


def alone(arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "w+b") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "fewstep", *arguments],
            stdout=out,
            stderr=err,
            env=environment() | left_behind(folder),
            cwd=folder,
        )
        usage: list[int] = []

        def finished() -> bool:
            time.sleep(0.05)
            done, code, used = os.wait4(process.pid, os.WNOHANG)
            if done:
                process.returncode = os.waitstatus_to_exitcode(code)
                usage.append(used.ru_maxrss // 1024)
            return bool(done)

        ended = watched(process, finished)
        code = process.wait()
        err.seek(0)
        said = err.read().decode("utf-8", "replace")
    trace = said if "Traceback" in said else ""
    return {
        "code": code,
        "trace": trace,
        "said": said,
        "mib": usage[0] if usage else 2 * LIMIT_MIB,
        **({"ended": ended or "crashes"} if ended or code < 0 else {}),
    }


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY / "src"),
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }


def left_behind(folder: Path) -> dict[str, str]:
    """What a case's folder says of the environment."""
    file = folder / "environment"
    return dict(pair.split("=", 1) for pair in file.read_text(encoding="utf-8").split("\0")) if file.is_file() else {}


if __name__ == "__main__":
    work()
