"""The scripts in ``benchmarks/`` and ``stress/``: imported as modules, or started as a user starts
them.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

FOLDERS = tuple(Path(__file__).parents[2] / name for name in ("benchmarks", "stress"))


def imported(name: str) -> ModuleType:
    """A script as a module; scripts import their neighbours by name."""
    sys.path += [str(folder) for folder in FOLDERS if str(folder) not in sys.path]
    return importlib.import_module(name)


def started(name: str, *arguments: str) -> str:
    """What a script prints; fails with that and its errors where it ends with an error."""
    script = next(path for folder in FOLDERS if (path := folder / f"{name}.py").is_file())
    command = [sys.executable, str(script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    # Some print what they found amiss and end with 1, others say it on standard error.
    assert ended.returncode == 0, f"{script.name} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout
