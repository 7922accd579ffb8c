"""The scripts in ``benchmarks/``: imported as modules, or started as a user starts them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "benchmarks"


def imported(name: str) -> ModuleType:
    """A script as a module; scripts import their neighbours by name."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


def started(name: str, *arguments: str) -> str:
    """What a script prints; fails with its errors where it ends with an error."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
