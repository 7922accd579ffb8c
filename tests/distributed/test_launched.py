"""What torchrun does to a run: a stop is everyone's, and after a worker was killed all go on from
the last whole checkpoint. Either way the end is that of a run that nothing happened to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewstep.training.saving.run_checkpoints import Checkpoints

SETTINGS = {
    "training.steps": 48,
    "training.batch": 8,
    "training.checkpoint_every": 10,
    "training.log_every": 10,
    "training.health_every": 1000,
    "target.nodes": 3,
    "evaluation.samples": 50,
    "evaluation.every": 1000,
}
LIMIT = 240


def launched(run: Path, *more: str, mode: str = "ddp") -> subprocess.Popen[bytes]:
    chosen = [f"--set={key}={value}" for key, value in {**SETTINGS, "distributed.mode": mode}.items()]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--max-restarts=1",
        "--monitor-interval=0.2",
        "-m",
        "fewstep",
        "distill",
        "mixture2d-disback",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(run.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([*command, *chosen, "--out", str(run), *more], stdout=log, stderr=log, env=environment)


def said(run: Path) -> str:
    return run.with_suffix(".log").read_text()[-3000:]


def wait_for(run: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    """Until the run has a checkpoint at or after a step."""
    begin = time.monotonic()
    checkpoints = Checkpoints(run / "checkpoints")
    while not any(int(path.name[5:13]) >= steps for path in checkpoints.paths()):
        assert process.poll() is None, said(run)
        assert time.monotonic() - begin < LIMIT, said(run)
        time.sleep(0.05)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Its children, by their rank."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(part.split("=", 1) for part in (entry / "environ").read_text().split("\0") if "=" in part)
        except (OSError, ValueError):
            continue
        if parent == process.pid and "RANK" in variables:
            found[int(variables["RANK"])] = int(entry.name)
    return [pid for _, pid in sorted(found.items())]


def log_of(run: Path) -> list[dict]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


@pytest.mark.slow
def test_a_stopped_and_then_killed_run_ends_as_an_undisturbed_one(tmp_path):
    """In shards; ``stress/faults.py`` does it many times, in both modes."""
    mode = "fsdp"
    calm, run = tmp_path / "calm", tmp_path / "run"
    undisturbed = launched(calm, mode=mode)
    assert undisturbed.wait(LIMIT) == 0, said(calm)

    process = launched(run, mode=mode)
    wait_for(run, 10, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) != 0
    assert "stopped and saved at step" in said(run)
    assert said(run).count("fewstep: stopped and saved") == 1
    assert not (run / "student.safetensors").exists()

    process = launched(run, "--resume", mode=mode)
    wait_for(run, 30, process)
    pids = workers_of(process)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    assert process.wait(LIMIT) == 0, said(run)
    assert (run / "student.safetensors").read_bytes() == (calm / "student.safetensors").read_bytes()
    assert log_of(run) == log_of(calm)


def test_two_processes_agree_on_what_is_not_theirs(tmp_path):
    """A folder of somebody's own is left as it is; what stands in a run's way is kept, and each is
    said once by the first process.
    """
    run = tmp_path / "run"
    run.mkdir()
    (run / "student.safetensors").write_bytes(b"mine")
    process = launched(run, mode="fsdp")
    assert process.wait(LIMIT) != 0
    assert "run: holds 'student.safetensors', and no run of fewstep's; nothing was written" in said(run)
    assert [path.name for path in run.iterdir()] == ["student.safetensors"]

    (run / "student.safetensors").unlink()
    assert launched(run, "--set=training.steps=20", mode="fsdp").wait(LIMIT) == 0, said(run)
    finished = (run / "student.safetensors").read_bytes()
    (run / "student.safetensors").write_bytes(b"mine")
    last = Checkpoints(run / "checkpoints").paths()[0]
    (last / "manifest.json").write_bytes(b"damaged")
    (last / "notes.txt").write_bytes(b"mine")
    assert launched(run, "--set=training.steps=20", "--resume", mode="fsdp").wait(LIMIT) == 0, said(run)
    assert (run / "student.safetensors").read_bytes() == finished
    assert (run / "student.set-aside.safetensors").read_bytes() == b"mine"
    assert {path.name for path in last.with_name(f"{last.name}.unreadable").iterdir()} >= {"manifest.json", "notes.txt"}
    assert (
        said(run).count("kept as student.set-aside.safetensors")
        == said(run).count(f"kept as {last.name}.unreadable")
        == 1
    )
