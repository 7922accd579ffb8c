"""A run that is killed and resumed is byte-equal to one that is not."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from cli_kit import called, failed, guided_recipe, small_recipe, started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Path]:
    """(recipe, run folder) of a run that nothing disturbed."""
    base = tmp_path_factory.mktemp("undisturbed")
    recipe = small_recipe(base / "small.yaml")
    result = called("distill", recipe, "--out", base / "run")
    assert result.returncode == 0, result.stderr
    return recipe, base / "run"


def lines_of(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def kill_at(recipe: Path, folder: Path, lines: int, number: int = signal.SIGKILL) -> int:
    """Starts or resumes the run, sends it a signal once its log has so many lines, and returns its
    exit code.
    """
    process = started("distill", recipe, "--out", folder, "--resume")
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_bytes().count(b"\n") >= lines:
            os.kill(process.pid, number)
            break
        time.sleep(0.002)
    code = process.wait(timeout=120)
    assert process.stderr is not None
    process.stderr.close()
    return code


def same(folder: Path, reference: Path) -> None:
    assert (folder / "student.safetensors").read_bytes() == (reference / "student.safetensors").read_bytes()
    last = max(p.name for p in (reference / "checkpoints").iterdir())
    ours, theirs = (checkpoint_tensors(f / "checkpoints" / last) for f in (folder, reference))
    assert ours == theirs
    for node in (reference / "path").glob("*.safetensors"):
        assert (folder / "path" / node.name).read_bytes() == node.read_bytes()
    assert lines_of(folder) == lines_of(reference)


def checkpoint_tensors(path: Path) -> dict[str, bytes]:
    from fewstep.system.files import read_tensors

    tensors, _ = read_tensors(path)
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def test_killed_three_times_in_each_stage_the_end_is_byte_equal(undisturbed, tmp_path):
    """Recording ends at line 21 (3 at the start, 18 steps); the first kill comes before the first
    checkpoint.
    """
    recipe, reference = undisturbed
    folder = tmp_path / "run"
    for lines in (5, 11, 18, 24, 31, 39):
        assert kill_at(recipe, folder, lines) == -signal.SIGKILL
        assert not (folder / "student.safetensors").exists()
    result = called("distill", recipe, "--out", folder, "--resume")
    assert result.returncode == 0, result.stderr
    same(folder, reference)


@pytest.mark.slow
def test_a_guided_run_that_is_killed_in_each_stage_ends_byte_equal(tmp_path):
    """Which conditions recording drops, and at which scale the target stands, are functions of the
    place. Recording ends at line 10 (2 at the start, 8 steps).
    """
    recipe = guided_recipe(tmp_path / "guided.yaml")
    result = called("distill", recipe, "--out", tmp_path / "whole")
    assert result.returncode == 0, result.stderr
    for lines in (6, 15):
        assert kill_at(recipe, tmp_path / "killed", lines) == -signal.SIGKILL
    result = called("distill", recipe, "--out", tmp_path / "killed", "--resume")
    assert result.returncode == 0, result.stderr
    same(tmp_path / "killed", tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "path").glob("*.safetensors"))) == 2


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_politely_it_saves_and_the_end_is_byte_equal(undisturbed, tmp_path, number):
    recipe, reference = undisturbed
    folder = tmp_path / "run"
    assert kill_at(recipe, folder, 27, number) == 128 + number
    result = called("distill", recipe, "--out", folder, "--resume")
    assert result.returncode == 0, result.stderr
    same(folder, reference)


def test_a_newest_checkpoint_cut_short_is_passed_over_with_a_warning(undisturbed, tmp_path):
    recipe, reference = undisturbed
    folder = tmp_path / "run"
    assert kill_at(recipe, folder, 33) == -signal.SIGKILL
    newest = max((folder / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    result = called("distill", recipe, "--out", folder, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"is kept as {newest.stem}.unreadable.safetensors: {newest}" in result.stderr
    same(folder, reference)


def test_a_finished_run_resumes_to_itself(undisturbed):
    recipe, reference = undisturbed
    before = (reference / "student.safetensors").read_bytes(), lines_of(reference)
    assert called("distill", recipe, "--out", reference, "--resume").returncode == 0
    assert before == ((reference / "student.safetensors").read_bytes(), lines_of(reference))


def test_steps_may_be_raised_and_nothing_else(undisturbed, tmp_path):
    recipe, _ = undisturbed
    folder = tmp_path / "run"
    assert called("distill", recipe, "--out", folder, "--set", "training.steps=36").returncode == 0
    sentence = failed(called("distill", recipe, "--out", folder, "--set", "training.steps=30", "--resume"))
    assert "'training.steps' is 30" in sentence
    sentence = failed(
        called(
            "distill", recipe, "--out", folder, "--set", "training.batch=16", "--set", "training.steps=36", "--resume"
        )
    )
    assert "'training.batch' differs" in sentence
    result = called("distill", recipe, "--out", folder, "--set", "training.steps=44", "--resume")
    assert result.returncode == 0, result.stderr
    steps = [entry["step"] for entry in lines_of(folder) if "stage" in entry]
    assert steps == list(range(1, 45))
    # The same command again, or without the number, is the same run; less is refused.
    for settings in (["--set", "training.steps=44"], []):
        assert (
            called(
                "distill", recipe if settings else folder / "recipe.yaml", "--out", folder, *settings, "--resume"
            ).returncode
            == 0
        )
    assert "can only be raised" in failed(
        called("distill", recipe, "--out", folder, "--set", "training.steps=40", "--resume")
    )


def test_two_processes_on_one_run_the_second_is_refused(undisturbed, tmp_path):
    recipe, _ = undisturbed
    folder = tmp_path / "run"
    first = started(
        "distill", recipe, "--out", folder, "--set", "training.steps=4000", "--set", "training.checkpoint_every=1000"
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "another fewstep process" in failed(called("distill", recipe, "--out", folder, "--resume"))
    finally:
        first.kill()
        first.wait()
        assert first.stderr is not None
        first.stderr.close()
