"""The commands that serve pages: what they print, how they end, and what they refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cli_kit import ENVIRONMENT, called, failed

from fewstep.runs import distill
from fewstep.studies.preference import AnswerBook, study_at

SMALL = ["training.steps=2", "training.batch=4", "training.health_every=1000", "evaluation.samples=20"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [distill("digits-diff-instruct", [*SMALL, f"training.seed={i}"], folder / f"run-{i}") for i in range(2)]


def begun(*arguments: str | Path) -> tuple[subprocess.Popen[str], str]:
    """A command that serves, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fewstep", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def fetched(address: str) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        content: bytes = answer.read()
        return content


@pytest.mark.usefixtures("usual_signals")
def test_a_study_is_drawn_asked_and_counted(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    process, address = begun("prefer", *runs, "--pairs", "3", "--out", out, "--rater", "ada")
    try:
        assert json.loads(fetched(address + "state"))["total"] == 3
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.splitlines() == [
        "Open this address in a browser of this machine; Ctrl-C ends it.",
        "fewstep: interrupted.",
    ]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "nobody has answered yet" in failed(called("prefer", "--table", out))
    book = AnswerBook(study_at(out), "ada")
    book.add(0, "left")
    book.close()
    table = called("prefer", "--table", out)
    assert table.returncode == 0, table.stderr
    assert "1 answers of 1 raters to 3 pairs" in table.stdout
    assert "no pair has two raters yet" in table.stdout
    found = json.loads(called("prefer", "--table", out, "--json").stdout)
    assert found == json.loads((out / "preferred.json").read_text())
    assert found["models"]["A"]["run"] == str(runs[0])
    # What was drawn and said stays as it is.
    assert all(path.read_bytes() == content for path, content in before.items() if content)


def test_what_a_study_cannot_be_made_of_is_refused(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    for arguments, why in (
        ([*runs, "--out", out], "--rater: is missing"),
        ([runs[0], "--out", out, "--rater", "a"], "RUN_B: is missing"),
        (["--out", out, "--rater", "a"], "holds no pairs"),
        ([*runs, "--out", out, "--rater", "a", "--guidance", "2"], "--guidance: is of the teacher"),
        ([*runs, "--out", out, "--rater", "a", "--json"], "--json: is of --table"),
        ([runs[0], runs[0], "--out", out, "--rater", "a"], "are one model"),
        ([*runs, "--out", out, "--rater", "../a"], "--rater: '../a' is no name"),
        ([*runs, "--table", out], "--table: asks nobody"),
        (["--table", out], "holds no pairs"),
        (["--out", out, "--rater", "a", "--seed", "0"], "--seed: is of the runs"),
        (["--out", out, "--rater", "a", "--pairs", "3"], "--pairs: is of the runs"),
    ):
        assert why in failed(called("prefer", *arguments)), arguments
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused = failed(called("prefer", *runs, "--out", tmp_path / "mine", "--rater", "a"))
    assert "holds 'letter.txt' already" in refused
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_what_cannot_be_played_with_is_refused(runs: list[Path], tmp_path: Path) -> None:
    assert "is not a run folder" in failed(called("play", tmp_path))
    assert "told no prompts" in failed(called("play", runs[0], "--prompt", "a fox"))
    assert "'--port'" in called("play", runs[0], "--port", "70000").stderr


@pytest.mark.usefixtures("usual_signals")
def test_play_serves_until_it_is_ended(runs: list[Path]) -> None:
    process, address = begun("play", runs[0])
    try:
        assert json.loads(fetched(address + "about"))["run"] == "run-0"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == "fewstep: ended by SIGTERM."
