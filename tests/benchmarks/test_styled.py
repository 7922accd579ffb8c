"""The script that teaches a few-step student a style, on runs of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_kit import imported, started
from test_adapters_elsewhere import TINY


@pytest.mark.slow
def test_a_style_is_taught_in_four_ways(tmp_path: Path) -> None:
    settings = [part for each in TINY for part in ("--set", each)]
    small = ("--seeds", "1", "--style-steps", "2", "--steps", "2", "--pictures", "12", "--teacher-steps", "2")
    where = ("--out", str(tmp_path / "runs"), "--results", str(tmp_path))
    printed = started("style_student", *small, *where, *settings)
    found = json.loads((tmp_path / "style-student.json").read_text())
    (row,) = found["rows"]
    assert row.keys() == {"seed", "teacher", "teacher, style", "before", "added", "distilled", "naive"}
    distances = [row[way]["fd"] for way in ("before", "added", "distilled", "naive")]
    assert all(distance > 0 for distance in distances)
    assert len(set(distances)) == 4
    assert set(found["over before"]) == {"added", "distilled", "naive"}
    assert "before" in printed
    # All that was made is there, and is read when the script is called again.
    assert started("style_student", *small, *where, *settings) == printed


def test_a_styles_ground_is_none_that_the_model_draws() -> None:
    style_student, taught_scenes = imported("style_student"), imported("taught_scenes")
    numbers = torch.linspace(0, 1, 5)
    browns, greys = style_student.browns(numbers), taught_scenes.greys(-0.9, 0.3)(numbers)
    assert ((browns[:, 0] - browns[:, 2]) > style_student.LEAST).all()
    assert (greys[:, 0] == greys[:, 2]).all()
    pictures = browns[:, :, None, None].expand(-1, 3, 32, 32).clone()
    pictures[:, :, 8:24, 8:24] = 1.0
    torch.testing.assert_close(taught_scenes.ground_of(pictures), browns)
