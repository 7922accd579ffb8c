"""The studies of the path, started with tiny settings: their tables, and that a second start
repeats nothing.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
from bench_kit import imported, started

SMALL = ("--set", "evaluation.samples=200", "--set", "training.batch=8", "--jobs", "2")


@pytest.mark.slow
def test_the_plane_is_compared_at_equal_evaluations_and_goes_on_where_it_was(tmp_path: Path) -> None:
    cell = "mean -1.2, constant rate"
    settings = [
        "--study",
        "plane",
        "--out",
        str(tmp_path),
        "--results",
        str(tmp_path),
        "--cells",
        cell,
        "--seeds",
        "2",
        "--steps",
        "400",
        *SMALL,
    ]
    printed = started("disback", *settings)
    assert "6 of 6 runs to do" in printed
    found = json.loads((tmp_path / "disback-plane.json").read_text())
    rows = {row["arm"]: row for row in found["rows"]}
    assert set(rows) == {"diff-instruct", "disback", "warm"}
    for row in rows.values():
        assert row["seeds"] == [201, 202]
        assert row["evaluations"] == pytest.approx([400 * 6 * 8] * 2, rel=0.01)
        assert len(row["mismatch_over_training"][0]) >= 10
    assert rows["disback"]["gain_end"]["pairs"] == 2
    assert (tmp_path / "disback-plane.png").is_file()
    assert "0 of 6 runs to do" in started("disback", *settings)


def test_a_foreign_teacher_is_exactly_that_of_the_other_digits(tmp_path: Path) -> None:
    """The script measures it and ends where it is not so."""
    studies = imported("disback_studies")
    for name in ("inverted", "rotated"):
        assert studies.foreign_teacher(name, tmp_path).is_file()


def test_every_arm_of_a_cell_costs_as_much_as_diff_instruct() -> None:
    """Each distilling step costs 6 evaluations of a sample in the plane, each step of recording
    4.
    """
    disback = imported("disback")
    options = Namespace(steps=None, more={}, out=Path())
    study = disback.study_of("plane", options)
    for cell in study.cells:
        for arm in cell.arms:
            steps = disback.settings_of(study, cell, arm, 201, options)["training.steps"]
            nodes = arm.target.get("target.nodes", 1)
            recorded = arm.target.get("target.record.steps", 0) * (nodes - 1)
            assert 4 * recorded + 6 * (steps - recorded) == pytest.approx(1400 * 6, abs=3)
