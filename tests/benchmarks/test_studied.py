"""A study goes on from the figures that are kept, where its runs are gone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench_kit import imported

runner = imported("runner")


def options_in(folder: Path, only_show: bool = False, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(results=folder, only_show=only_show, jobs=1, more=more)


def jobs_in(folder: Path, *seeds: int) -> dict[int, Any]:
    return {seed: runner.Job(folder / f"arm-{seed}", "digits-disback", {"training.seed": seed}) for seed in seeds}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were asked for, in order; no run is made."""
    names: list[str] = []

    def run(job: Any, more: Mapping[str, Any]) -> None:
        names.append(job.folder.name)

    monkeypatch.setattr(runner.Job, "run", run)
    return names


def seed_of(job: Any) -> dict[str, int]:
    return {"fd": int(job.folder.name[-1])}


def test_a_study_goes_on_where_the_runs_are_gone(tmp_path: Path, ran: list[str]) -> None:
    results = tmp_path / "results"
    first = runner.studied(jobs_in(tmp_path / "there", 0), options_in(results), seed_of, 1.0, pictures=4)
    # Another machine: other folders, none of them there.
    again = runner.studied(
        jobs_in(tmp_path / "elsewhere" / "there", 0, 1), options_in(results), seed_of, 1.0, pictures=4
    )
    assert first == {0: {"fd": 0}}
    assert again == {0: {"fd": 0}, 1: {"fd": 1}}
    assert ran == ["arm-0", "arm-1"]


@pytest.mark.parametrize(
    ("more", "pictures"), [({"training.batch": 7}, 4), ({}, 5)], ids=["other settings", "measured otherwise"]
)
def test_figures_of_other_settings_are_not_taken(
    tmp_path: Path, ran: list[str], more: dict[str, Any], pictures: int
) -> None:
    results, jobs = tmp_path / "results", jobs_in(tmp_path / "runs", 0)
    runner.studied(jobs, options_in(results), seed_of, 1.0, pictures=4)
    runner.studied(jobs, options_in(results, **more), seed_of, 1.0, pictures=pictures)
    assert ran == ["arm-0", "arm-0"]
    assert len([*results.rglob("*.json")]) == 2


def test_only_what_is_there_is_shown(tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    runner.studied(jobs_in(tmp_path / "runs", 1), options_in(results), seed_of, 1.0)
    assert "1 of 1 runs to do, about 1.0 hours" in capsys.readouterr().out
    shown = runner.studied(jobs_in(tmp_path / "runs", 0, 1, 2), options_in(results, only_show=True), seed_of, 1.0)
    assert shown == {1: {"fd": 1}}
    assert ran == ["arm-1"]
    (file,) = results.rglob("*.json")
    assert json.loads(file.read_text(encoding="utf-8")) == {"fd": 1}
