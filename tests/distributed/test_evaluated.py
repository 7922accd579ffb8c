"""``fewstep evaluate`` under torchrun: the same numbers in two and three processes as in one, bit for bit, evaluations included; one file, one answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.runs import distill, evaluate

# Three blocks of samples a draw: equally many for three processes, two and one for two.
SETTINGS = ("training.steps=2", "training.batch=8", "evaluation.samples=1200", "evaluation.draws=2", "evaluation.every=1000", "training.health_every=1000", "evaluation.teacher_steps=[2]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill("mixture2d-diff-instruct", SETTINGS, tmp_path_factory.mktemp("evaluated") / "run")


def untimed(found: Any) -> Any:
    """All but what a clock says."""
    return {key: untimed(value) for key, value in found.items() if key != "ms_per_image"} if isinstance(found, dict) else found


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_finds_the_same_bit_for_bit(run, processes):
    alone = untimed(json.loads(json.dumps(evaluate(run))))
    (run / "evaluation.json").unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "fewstep", "evaluate", str(run), "--json"]
    ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    assert untimed(found) == alone
    assert json.loads((run / "evaluation.json").read_text()) == found
