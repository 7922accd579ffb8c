"""What the code of exported folders' cards draws, in a process without fewstep."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def code_of(folder: Path) -> str:
    """The one block of Python in a folder's card."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return code


def run_cards(parent: Path, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the code of each folder's card makes; ``asked``: for each its ``prompts``, the
    ``latents`` to start from and the ``seed`` of the generators.
    """
    torch.save({name: {**each, "code": code_of(parent / name)} for name, each in asked.items()}, parent / "given.pt")
    script = Path(__file__).with_name("card_script.py")
    surroundings = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [sys.executable, script, "given.pt", "found.pt"],
        cwd=parent,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = torch.load(parent / "found.pt", weights_only=True)
    return found
