"""``--track``: a run that is followed from the command line."""

from __future__ import annotations

import pytest
from cli_kit import called, failed, small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep.training.reporting.log import read_log

LITTLE = ("--set", "evaluation.every=10", "--set", "training.health_every=10")


def test_a_run_is_followed_and_a_finished_one_goes_on_in_the_same_track(tmp_path):
    recipe, run = small_recipe(tmp_path / "small.yaml", steps=20), tmp_path / "run"
    assert called("distill", recipe, "--out", run, "--track", "tensorboard", *LITTLE).returncode == 0
    more = ("--set", "training.steps=24", "--resume", "--track", "tensorboard")
    assert called("distill", recipe, "--out", run, *more, *LITTLE).returncode == 0
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    lines = read_log(run / "metrics.jsonl")
    gaps = [(line["step"], line["student.gap"]) for line in lines if "student.gap" in line]
    shown = found.Scalars("student/gap")
    assert [event.step for event in shown] == [step for step, _ in gaps]
    assert [event.value for event in shown] == pytest.approx([gap for _, gap in gaps], rel=1e-6)
    assert {image.step for image in found.Images("samples")} == {0, 10, 20, 24}
    assert {"evaluation/fd", "path_nodes", "target_node", "health/spread_over_data"} <= set(found.Tags()["scalars"])
    checked = called("doctor", run)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("command", [("distill", "digits-disback"), ("pretrain", "digits-teacher")])
def test_an_unknown_track_is_refused_before_anything_is_written(command, tmp_path):
    sentence = failed(called(*command, "--out", tmp_path / "run", "--track", "papyrus"))
    assert "there is no 'papyrus'; give tensorboard or wandb" in sentence
    assert not (tmp_path / "run").exists()
