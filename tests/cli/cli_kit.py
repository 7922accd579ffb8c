"""Runs the command line as a user does, in a process of its own or in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import yaml

from fewstep.command import entry
from fewstep.recipes import shipped_text

# Absolute, since some commands run in another folder.
_PATH = os.pathsep.join(
    str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": _PATH, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def fewstep(
    *arguments: str | Path, cwd: Path | None = None, preexec=None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m fewstep ARGUMENTS``, its output captured."""
    command = [sys.executable, "-m", "fewstep", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        preexec_fn=preexec,
        timeout=timeout,
        check=False,
    )


def called(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What ``fewstep`` runs, in this process: starting one takes some seconds."""
    command, out, err = ["fewstep", *map(str, arguments)], io.StringIO(), io.StringIO()
    surroundings = (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.chdir(cwd or Path()),
    )
    with contextlib.ExitStack() as stack:
        for each in (*surroundings, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
            stack.enter_context(each)
        try:
            entry.run_command()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """The same, left running."""
    return subprocess.Popen(
        [sys.executable, "-m", "fewstep", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )


def small_recipe(path: Path, **training: int) -> Path:
    """DisBack on the mixture, small enough for a test: 3 nodes recorded over 18 steps (3, in a run
    too short for that), a line a step, a checkpoint every 4.
    """
    values = yaml.safe_load(shipped_text("mixture2d-disback"))
    record, switch = (6, 5) if training.get("steps", 40) >= 40 else (1, 1)
    values["target"].update(
        nodes=4, record={"kind": "every", "steps": record}, switch={"kind": "every", "steps": switch}
    )
    values["training"].update(
        {"steps": 40, "batch": 32, "log_every": 1, "checkpoint_every": 4, "health_every": 1000, **training}
    )
    values["evaluation"].update(samples=200, draws=2, every=1000, teacher_steps=[5, 1])
    path.write_text(yaml.safe_dump(values))
    return path


def guided_recipe(path: Path) -> Path:
    """Guided DisBack on digits, small enough for a test: 3 nodes recorded over 8 steps, 16 steps of
    distillation, a line a step, a checkpoint every 3.
    """
    values = yaml.safe_load(shipped_text("digits-disback-guided"))
    values["target"].update(
        nodes=3,
        guidance={"kind": "along-path", "scale": 3.0},
        dropout=0.3,
        record={"kind": "every", "steps": 4},
        switch={"kind": "every", "steps": 6},
    )
    values["training"].update(steps=24, batch=8, log_every=1, checkpoint_every=3, health_every=1000)
    values["evaluation"].update(samples=100, draws=1, every=1000, teacher_steps=[1])
    path.write_text(yaml.safe_dump(values))
    return path


def failed(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refused command, having checked that it is one, on stderr, with exit
    code 2 and no traceback.
    """
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fewstep: ")
    return lines[0]
