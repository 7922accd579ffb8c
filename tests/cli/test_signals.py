"""What ends a command from outside, whenever it falls, is one sentence and 128 + the signal; what is ignored stays ignored."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from cli_kit import ENVIRONMENT

from fewstep.ending import SIGNALS

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
from fewstep import entry
def work():
    print("at work", flush=True)
    time.sleep(30)
entry.app = work
from fewstep.start import main
main()
"""


def ran(script: str, **how) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120, **how)


def said_of(number: int) -> str:
    return "fewstep: interrupted." if number == signal.SIGINT else f"fewstep: ended by {signal.Signals(number).name}."


@pytest.mark.parametrize(
    ("module", "number"), [("typer", signal.SIGINT), ("fewstep.tables", signal.SIGINT), ("fewstep.entry", signal.SIGTERM), ("torch", signal.SIGINT), ("torch", signal.SIGHUP)]
)
def test_a_signal_while_python_imports_us_is_a_sentence(module, number):
    def heard() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ended = ran(DURING_IMPORT.format(module=module, number=int(number)), preexec_fn=heard)
    assert (ended.returncode, ended.stderr.strip()) == (128 + number, said_of(number))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_any_command_in_a_sentence(number):
    process = subprocess.Popen([sys.executable, "-c", AT_WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
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
