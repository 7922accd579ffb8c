"""What of a set was passed over is said by each command that uses it, and recorded with its
results.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fewstep.errors import UserError
from fewstep.runs import distill, evaluate, measure_many, pretrain
from fewstep.runs.sampler import labels_for
from fewstep.training import Silent
from image_kit import picture, png

TINY = [
    "training.steps=2",
    "training.batch=10",
    "training.log_every=1",
    "evaluation.every=2",
    "evaluation.samples=20",
    "evaluation.draws=1",
    "evaluation.teacher_steps=[2]",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten classes of grey digits' size, the last without an image, and a file that is none."""
    for number in range(10):
        place = tmp_path / "set" / str(number)
        place.mkdir(parents=True)
        for seed in range(3 if number < 9 else 0):
            (place / f"{seed}.png").write_bytes(png(picture(10 * number + seed, 8, 8, 1)[:, :, 0]))
    (tmp_path / "set" / "README.md").write_text("no image", encoding="utf-8")
    return tmp_path / "set"


def test_it_is_said_and_recorded_by_each_command(folder, tmp_path):
    data = ["data=" + json.dumps({"kind": "images", "path": str(folder), "channels": 1})]
    said = (
        f"{folder}: passed over 1 files whose suffix is none of .bmp, .jpeg, .jpg, .png, .ppm, .webp (such "
        "as 'README.md'); "
        "1 classes without an image, which keep their numbers (such as '9')."
    )

    def heard(command) -> list[str]:
        watcher = Silent()
        command(watcher)
        return watcher.said

    classifier = heard(
        lambda watcher: pretrain("digits-features", [*TINY[:3], *data], tmp_path / "features", listeners=[watcher])
    )
    run = tmp_path / "run"
    distilled = heard(lambda watcher: distill("digits-diff-instruct", [*TINY, *data], run, listeners=[watcher]))
    evaluated = heard(lambda watcher: evaluate(run, [2], listeners=[watcher]))
    measured = heard(lambda watcher: measure_many(run, 20, metrics=["fd"], listeners=[watcher]))
    for sentences in (classifier, distilled, evaluated, measured):
        assert sentences.count(said) == 1
    for record in (
        tmp_path / "features" / "passed-over.json",
        run / "passed-over.json",
        run / "evaluation.json",
        run / "measured-student-1.json",
    ):
        found = json.loads(record.read_text(encoding="utf-8"))
        assert found["remarks"][0] == said
        assert [entry["count"] for entry in found["passed_over"].values()] == [1, 1]


def test_a_class_that_is_asked_for_is_a_whole_number():
    assert labels_for(2, torch.tensor([3.0, 4.0]), 10).tolist() == [3, 4]
    with pytest.raises(UserError, match="classes must be whole numbers"):
        labels_for(2, torch.tensor([1.7, 4.0]), 10)
