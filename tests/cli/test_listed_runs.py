"""``fewstep runs``: which runs are below a folder, and how far each is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_kit import called

from fewstep.errors import UserError
from fewstep.studies import list_runs
from fewstep.system.locks import locked

SETTINGS = ("--set", "training.steps=4", "--set", "evaluation.samples=100", "--set", "evaluation.every=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, the same run begun and not finished, a damaged one, and what is no run."""
    folder = tmp_path_factory.mktemp("runs")
    finished = folder / "some" / "finished"
    made = called("distill", "digits-diff-instruct", *SETTINGS, "--out", finished)
    assert made.returncode == 0, made.stderr
    shutil.copytree(finished, folder / "begun")
    (folder / "begun" / "student.safetensors").unlink()
    shutil.copytree(finished, folder / "damaged")
    (folder / "damaged" / "recipe.yaml").write_text("task: [", encoding="utf-8")
    # What a run keeps inside is its own: here a copy of itself.
    shutil.copytree(finished, finished / "kept")
    (folder / "notes").mkdir()
    (folder / "loop").symlink_to(folder)
    return folder


def by_name(found: list[Any]) -> dict[str, Any]:
    return {Path(run.folder).name: run for run in found}


def test_each_run_is_listed_with_how_far_it_is(runs: Path) -> None:
    found = by_name(list_runs(runs))
    assert {name: run.state for name, run in found.items()} == {
        "finished": "finished",
        "begun": "begun",
        "damaged": "unreadable",
    }
    log = [json.loads(line) for line in (runs / "some" / "finished" / "metrics.jsonl").read_text().splitlines()]
    measured = [line["fd"] for line in log if line.get("probe") == "evaluation"]
    run = found["finished"]
    assert (run.method, run.steps, run.at) == ("distribution-matching", 4, 4)
    assert run.evaluations == max(line["evaluations"] for line in log if "stage" in line)
    assert run.distance == measured[-1]
    assert "recipe.yaml" in str(found["damaged"].problem)


def test_a_run_in_which_a_process_works_says_so(runs: Path) -> None:
    with locked(runs / "begun"):
        assert by_name(list_runs(runs))["begun"].state == "works"
    assert by_name(list_runs(runs))["begun"].state == "begun"


def test_the_command_prints_a_line_a_run_and_why_one_cannot_be_read(runs: Path) -> None:
    shown = called("runs", runs)
    assert shown.returncode == 0
    head, *lines = shown.stdout.splitlines()
    assert head.split() == ["run", "method", "state", "step", "evaluations", "distance", "last"]
    assert [line.split()[:4] for line in lines[:2]] == [
        [str(runs / "begun"), "distribution-matching", "begun", "4/4"],
        [str(runs / "some" / "finished"), "distribution-matching", "finished", "4/4"],
    ]
    (problem,) = lines[2:]
    assert problem.startswith(f"unreadable: {runs / 'damaged' / 'recipe.yaml'}")
    listed = json.loads(called("runs", runs, "--json").stdout)["runs"]
    assert [each["state"] for each in listed] == ["begun", "unreadable", "finished"]


def test_a_folder_without_runs_and_a_folder_that_is_not_there_say_so(tmp_path: Path) -> None:
    assert called("runs", tmp_path).stdout == f"{tmp_path}: has no runs that can be read.\n"
    missing = called("runs", tmp_path / "nothing")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith(f"fewstep: {tmp_path / 'nothing'}: there is no such folder")
    with pytest.raises(UserError, match="there is no such folder"):
        list_runs(tmp_path / "nothing")
