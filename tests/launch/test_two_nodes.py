"""Two machines that are one: two torchruns, each with a process of its own, meet by ``torchrun.sh``
and make the run that one process makes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch_kit import LAUNCH, environment
from safetensors.torch import load_file

from fewstep.runs import distill

SETTINGS = {
    "training.steps": 6,
    "training.batch": 8,
    "training.log_every": 1,
    "training.checkpoint_every": 3,
    "evaluation.samples": 50,
    "evaluation.every": 1000,
    "data.samples": 200,
    # Adam divides by a gradient's size, so that one of nearly nothing, other in its last bit, may
    # be another step; without it rounding stays rounding.
    "method.optimizer": {"kind": "sgd", "lr": 1e-3},
    "method.fake.optimizer": {"kind": "sgd", "lr": 1e-3},
}


@pytest.mark.slow
def test_two_nodes_make_the_run_of_one_process(tmp_path):
    """The same draws, the same log but for its clock, the same student to rounding; and one process
    writes.
    """
    arguments = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {
        "RECIPE": "mixture2d-diff-instruct",
        "PROCESSES": "1",
        "NODES": "2",
        "ENDPOINT": f"localhost:{port}",
        "RESTARTS": "0",
        "PYTHON": sys.executable,
    }
    path = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH", ""), "src") if part)
    nodes = [
        subprocess.Popen(
            ["bash", LAUNCH / "torchrun.sh", *arguments],
            env=environment(OUT=tmp_path / "two", NODE_RANK=str(rank), PYTHONPATH=path, **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert sorted("report.html are there" in text for text in said) == [False, True], (
        "one group of two, of which the first process talks"
    )
    distill(
        "mixture2d-diff-instruct", [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()], tmp_path / "one"
    )
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)
    logs = [_without_clock(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [set(line) for line in logs[0]] == [set(line) for line in logs[1]]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]


def _without_clock(path: Path) -> list[dict[str, object]]:
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in path.read_text().splitlines()
    ]
