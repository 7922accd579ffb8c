"""What ends a command from outside, whenever it falls, is one sentence and 128 + the signal; what
is ignored stays ignored.
"""

from __future__ import annotations

import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from cli_kit import ENVIRONMENT, small_recipe

from fewstep.runs.blocks import _begin
from fewstep.system.ending import SIGNALS, Ended, ended_by_signals, stop_requests
from fewstep.training.saving.run_checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("usual_signals")

# A signal that arrives when a module is about to be imported, and what a console script does.
DURING_IMPORT = """
import os, sys
class Shot:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Shot())
sys.argv = ["fewstep", "plan", "digits-disback"]
from fewstep.start import main
main()
"""
# A command that works for long.
AT_WORK = """
import sys, time
from fewstep.command import entry
def work():
    print("at work", flush=True)
    time.sleep(30)
entry.app = work
from fewstep.start import main
main()
"""


def ran(script: str, **how) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120, **how
    )


def said_of(number: int) -> str:
    return "fewstep: interrupted." if number == signal.SIGINT else f"fewstep: ended by {signal.Signals(number).name}."


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("typer", signal.SIGINT),
        ("fewstep.command.tables", signal.SIGINT),
        ("fewstep.command.entry", signal.SIGTERM),
        ("torch", signal.SIGINT),
        ("torch", signal.SIGHUP),
    ],
)
def test_a_signal_while_python_imports_us_is_a_sentence(module, number):
    def heard() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ended = ran(DURING_IMPORT.format(module=module, number=int(number)), preexec_fn=heard)
    assert (ended.returncode, ended.stderr.strip()) == (128 + number, said_of(number))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_any_command_in_a_sentence(number):
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (128 + number, said_of(number))


def test_what_nohup_ignores_stays_ignored():
    def ignored() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    script = AT_WORK.replace("time.sleep(30)", "import os; os.kill(os.getpid(), 1); print('went on')")
    ended = ran(script, preexec_fn=ignored)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "at work\nwent on\n", "")


WITHOUT_FCNTL = "import sys; sys.modules['fcntl'] = None; sys.argv = ['fewstep', 'recipes']; "


def test_a_system_that_is_no_unix_is_told_so_in_a_sentence():
    ended = ran(WITHOUT_FCNTL + "from fewstep.start import main; main()")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("fewstep: fewstep needs Unix (Linux or macOS)")
    assert len(ended.stderr.strip().splitlines()) == 1
    used = ran(WITHOUT_FCNTL + "import fewstep; fewstep.load")
    assert used.stderr.strip().splitlines()[-1].startswith("ImportError: fewstep needs Unix (Linux or macOS)")


# A Ctrl-C while C runs code by its text, as it does when torch is imported: ``python -m`` remembers
# that, and would end by a signal whichever exit code is asked for.
IN_TEXT = """
import ctypes
from fewstep.command import entry
def interrupt():
    run = ctypes.pythonapi.PyRun_String
    run.restype = ctypes.py_object
    run(b"import os; os.kill(os.getpid(), 2)", 257, ctypes.py_object({}), ctypes.py_object({}))
entry.app = interrupt
from fewstep.start import main
main()
"""


def test_the_exit_code_is_ours_wherever_a_ctrl_c_falls(tmp_path):
    (tmp_path / "interrupted.py").write_text(IN_TEXT)
    script = (
        f"import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.chdir({str(tmp_path)!r}); "
        "os.execv(sys.executable, [sys.executable, '-m', 'interrupted'])"
    )
    ended = ran(script)
    assert (ended.returncode, ended.stderr.strip()) == (130, said_of(signal.SIGINT))


def test_a_worker_leaves_the_answer_to_the_process_that_started_it():
    """Terminals and SLURM signal all processes: a worker that ended first would pass for one that
    had no memory left.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin) as pool:
        worker = pool.submit(os.getpid).result()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker, number)
            assert pool.submit(os.getpid).result() == worker


# The command, in the terminal that its streams are on.
IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "fewstep", *sys.argv[1:]])
"""


def lines_of(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def test_a_run_saves_when_its_terminal_is_closed(tmp_path):
    """The bar and the last sentence have nowhere to go then; the run must reach its checkpoint all
    the same.
    """
    run = tmp_path / "run"
    recipe = small_recipe(tmp_path / "small.yaml", steps=4000, checkpoint_every=100_000)
    command = [sys.executable, "-c", IN_A_TERMINAL, "distill", str(recipe), "--out", str(run)]
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while lines_of(run) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.close(theirs)
        os.close(ours)
    assert lines_of(run) >= 6, "the run did not come to its sixth line"
    assert process.wait(120) == 128 + signal.SIGHUP
    assert len(Checkpoints(run / "checkpoints").paths()) == 1


def _imported_while_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, body: str) -> None:
    (tmp_path / f"{name}.py").write_text(f"import os, time\nos.kill(os.getpid(), {number})\n{body}\ndone = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with ended_by_signals():
        __import__(name)
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_import_is_awaited_before_a_command_ends(tmp_path, monkeypatch, number):
    """An extension that is being imported may answer an exception by ending the process itself."""
    name = f"imported_while_ended_{number}"
    with pytest.raises((Ended, KeyboardInterrupt)):
        _imported_while_ended(tmp_path, monkeypatch, name, number, "")
    assert sys.modules[name].done


WITHOUT_END = """
import os, signal, time
from fewstep.command import entry
from fewstep.system import ending
ending._PATIENCE = 0.2
def work():
    import without_end
entry.app = work
from fewstep.start import main
main()
"""
# What an extension makes of an exception that comes to it.
CATCHES_ALL = """
import os, time
os.kill(os.getpid(), {number})
try:
    time.sleep(30)
except BaseException as error:
    raise ImportError(f"an extension could not begin: {{error}}") from error
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_import_without_end_is_not_awaited(tmp_path, number):
    """Nor is an exception handed to what is being imported, which may make another of it."""
    (tmp_path / "without_end.py").write_text(CATCHES_ALL.format(number=int(number)))
    ended = ran(f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + WITHOUT_END)
    assert (ended.returncode, ended.stderr.strip()) == (128 + number, said_of(number))


# Compiled code that makes an error of its own of whatever comes to it.
OF_ITS_OWN = """
import os
from fewstep.command import entry
def work():
    try:
        os.kill(os.getpid(), {number})
    except BaseException as error:
        raise ValueError("could not determine the shape") from error
entry.app = work
from fewstep.start import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_came_back_as_another_error_is_that_signal(number):
    ended = ran(OF_ITS_OWN.format(number=int(number)))
    assert (ended.returncode, ended.stderr.strip()) == (128 + number, said_of(number))


def _interrupted_twice() -> None:
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ValueError("could not determine the shape") from error


def test_a_second_ctrl_c_that_came_back_as_another_error_is_a_ctrl_c():
    with pytest.raises(KeyboardInterrupt):
        _interrupted_twice()
