"""``fewstep evaluate`` under torchrun finds in three processes what one finds, bit for bit, network
evaluations included; one answer is printed, and written. Two are in ``pair``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from pair import EVALUATED, untimed

from fewstep.runs import distill, evaluate


@pytest.mark.slow
def test_three_processes_find_what_one_finds(tmp_path):
    run = distill("mixture2d-diff-instruct", EVALUATED, tmp_path / "run")
    alone = untimed(json.loads(json.dumps(evaluate(run))))
    (run / "evaluation.json").unlink()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=3",
        "-m",
        "fewstep",
        "evaluate",
        str(run),
        "--json",
    ]
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    assert untimed(found) == alone
    assert json.loads((run / "evaluation.json").read_text()) == found
