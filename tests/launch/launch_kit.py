"""The launch files, started on this machine: with a recorder in place of Python or of SLURM's
commands, or for real.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
# What a script would take from a shell that happens to have it.
_SETTINGS = (
    "RECIPE",
    "OUT",
    "MODE",
    "PROCESSES",
    "NODES",
    "NODE_RANK",
    "ENDPOINT",
    "RUN_ID",
    "RESTARTS",
    "PYTHON",
    "LAUNCH",
    "OMP_NUM_THREADS",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
)


def environment(**settings: str | Path) -> dict[str, str]:
    """This process's environment without settings of the scripts but those given."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in _SETTINGS and not key.startswith(("SLURM_", "PET_"))
    }
    return {**clean, **{key: str(value) for key, value in settings.items()}}


def executable(path: Path, text: str) -> Path:
    """A script at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def recorder(path: Path) -> Path:
    """A program that prints its arguments and the environment as JSON."""
    return executable(
        path,
        f"#!{sys.executable} -S\nimport json, os, sys\nprint(json.dumps({{'arguments': sys.argv[1:], "
        "'environment': dict(os.environ)}))\n",
    )


def recorded(line: str) -> tuple[list[str], Mapping[str, str]]:
    """What a recorder printed."""
    found = json.loads(line)
    return found["arguments"], found["environment"]
