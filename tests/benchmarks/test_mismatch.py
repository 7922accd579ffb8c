"""The mismatch degree while students are distilled (DisBack, Fig. 4), started with a tiny setting;
and by noise level.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_kit import started

from fewstep.studies.mismatch_track import mismatch_over_training, mismatch_track

TINY = ("--set", "training.batch=8", "--set", "evaluation.samples=60", "--set", "evaluation.every=1000000")


@pytest.mark.slow
@pytest.mark.parametrize(("data", "steps", "points"), [("plane", 40, 5), ("digits", 8, 2)])
def test_both_curves_are_drawn_and_a_second_start_repeats_nothing(
    data: str, steps: int, points: int, tmp_path: Path
) -> None:
    where = ("--out", str(tmp_path / "runs"), "--results", str(tmp_path))
    arguments = (
        "--over-training",
        "--data",
        data,
        "--steps",
        str(steps),
        "--points",
        str(points),
        "--seeds",
        "1",
        *where,
        *TINY,
    )
    printed = started("mismatch", *arguments)
    assert "the degree of DisBack is" in printed
    found = json.loads((tmp_path / f"mismatch-over-training-{data}.json").read_text(encoding="utf-8"))
    ends = [found[arm]["evaluations"][-1] for arm in ("DisBack", "Diff-Instruct")]
    assert ends[0] == pytest.approx(ends[1], rel=0.15)
    for arm in found.values():
        assert len(arm["evaluations"]) >= points
        assert all(value > 0 for key in ("over_bound", "norm", "deviation", "bound") for value in arm[key])
        assert all(
            low <= value <= high for low, value, high in zip(arm["low"], arm["over_bound"], arm["high"], strict=True)
        )
    assert (tmp_path / f"mismatch-over-training-{data}.png").read_bytes().startswith(b"\x89PNG")
    folder = next(path for path in (tmp_path / "runs").iterdir() if "-disback-" in path.name)
    track = mismatch_track(folder)
    assert mismatch_over_training(folder) == list(zip(track.steps, track.evaluations, track.over_bound, strict=True))
    assert list(track.evaluations) == found["DisBack"]["evaluations"]
    if data == "digits":
        return
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert started("mismatch", "--runs", str(folder), "--results", str(tmp_path)).count("Eq. 9") == 1
    started("mismatch", *arguments)
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before
