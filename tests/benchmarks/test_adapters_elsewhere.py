"""The script that adds a distilled adapter to other models, on a run of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_kit import started

from fewstep.runs import distill

TINY = [
    "training.steps=6",
    "training.batch=4",
    "evaluation.samples=12",
    'evaluation.reference={"kind": "teacher", "samples": 12, "steps": 2}',
    "evaluation.teacher_steps=[2]",
    "student.rank=2",
    "method.fake.rank=2",
]


@pytest.mark.slow
def test_a_distilled_adapter_is_added_to_the_model_to_a_style_and_to_a_fine_tune(tmp_path: Path) -> None:
    run = distill("scenes-disback-lora", TINY, out=tmp_path / "run")
    small = ("--steps", "2", "--pictures", "12", "--teacher-steps", "2")
    printed = started("added_adapters", "--run", str(run), *small, "--results", str(tmp_path))
    found = json.loads((tmp_path / "added-adapters.json").read_text())
    rows = {row["model"]: row for row in found["rows"]}
    assert list(rows) == [
        "model",
        "model, distilled",
        "model, style",
        "model, distilled and style",
        "fine-tune",
        "fine-tune, distilled",
        "fine-tune in one step",
    ]
    assert all(0 <= row[share] <= 1 for row in rows.values() for share in ("dark", "light", "accuracy"))
    # As a few-step student wherever it is added, and as the model is sampled elsewhere.
    assert [row["steps"] for row in rows.values()] == [2, 1, 2, 1, 2, 1, 1]
    assert rows["fine-tune, distilled"] != rows["fine-tune in one step"]
    assert printed.count("\n") == len(rows) + 1
