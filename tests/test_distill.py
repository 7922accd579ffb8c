"""End to end on digits: a short distillation moves the one-step student far towards the data, and
the health readings see a student that collapses.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import fewstep as fs
from fewstep.command.tables.evaluations import quality_table
from fewstep.condition import Classes
from fewstep.random import Key
from fewstep.recipes import load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.solvers import Renoise
from fewstep.states import Generated, Prior, State, States, Step
from fewstep.training.health.fake_score_health import Gap
from fewstep.training.monitors import Saturation, Spread
from fewstep.training.reporting.log import read_log

SHORT = ["training.batch=32", "evaluation.samples=1000", "training.health_every=1000", "training.average.steps=10"]


def distances(folder) -> list[float]:
    return [entry["fd"] for entry in read_log(folder / "metrics.jsonl") if entry.get("probe") == "evaluation"]


def test_sixty_steps_of_disback_leave_less_than_a_third_of_the_distance(tmp_path):
    folder = fs.distill(
        "digits-disback",
        [*SHORT, "training.steps=60", "target.record.steps=2", "target.switch.steps=3"],
        tmp_path / "run",
    )
    first, *_, last = distances(folder)
    assert last < first / 3
    sampler = fs.load(folder)
    samples = sampler(200, seed=1)
    assert samples.shape == (200, 1, 8, 8)
    correct = fs.zoo.digit_features()(samples).argmax(1) == torch.arange(200) % 10
    assert float(correct.double().mean()) > 0.9


def test_evaluate_gives_both_readings_of_the_mismatch_degree(tmp_path):
    folder = fs.distill("digits-diff-instruct", [*SHORT, "training.steps=2"], tmp_path / "run")
    result = fs.evaluate(folder, teacher_steps=[2], draws=1)
    mismatch = result["mismatch"]
    assert (
        len(mismatch["levels"]) == len(mismatch["training"]) == len(mismatch["assessed"]) == len(mismatch["reliable"])
    )
    # Fig. 11: on an untrained student's samples the teacher is further from the true score than on
    # data, most of all at low noise.
    assert any(mismatch["reliable"])
    assert mismatch["assessed_mean"] > 1.1 * mismatch["training_mean"]
    assert mismatch["assessed_norm"]["mean"] > mismatch["training_norm"]["mean"] > 0
    assert mismatch["assessed_norm"]["deviation"] > 0
    assert [len(each["mean"]) for each in mismatch["norms"].values()] == [len(mismatch["levels"])] * 2
    table = quality_table(result).splitlines()
    (shown,) = [line for line in table if line.startswith("on the student's samples")]
    assert f"{mismatch['assessed_mean']:.3f}" in shown
    assert f"{mismatch['assessed_norm']['mean']:.3g} +- {mismatch['assessed_norm']['deviation']:.2g}" in shown
    excess = [a - t for a, t in zip(mismatch["assessed"], mismatch["training"], strict=True)]
    assert min(excess) > 0
    assert max(excess) == excess[0]


def test_monitors_see_collapse_and_saturation():
    data = fs.data.digit_images()
    prior = Prior(fs.zoo.digits().schedule, (1, 8, 8), 0.03, conditions=Classes(10))
    step = Step(Key(0), 256)

    class Student(torch.nn.Module):
        """Gives samples of the data with their spread within the class scaled, or everything
        scaled.
        """

        def __init__(self, spread: float, scale: float):
            super().__init__()
            self.spread, self.scale = spread, scale

        def forward(self, x, t, condition):
            means = torch.stack([data.samples[data.labels == k].mean(0) for k in range(10)])
            picks = torch.stack([data.samples[data.labels == k][i % 170] for i, k in enumerate(condition.labels)])
            centre = means[condition.labels]
            return (centre + self.spread * (picks - centre)) * self.scale

    for spread, scale, collapsed, saturated in (
        (1.0, 1.0, False, False),
        (0.3, 1.0, True, False),
        (1.0, 1.3, False, True),
    ):
        samples = Generated(Renoise(Student(spread, scale), prior.schedule, Key(0)), prior, (prior.time, 0.0))
        assert bool(Spread(samples, data).read(step, {}).warning and spread < 1) is collapsed
        assert bool(Saturation(samples, data).read(step, {}).warning) is saturated


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_an_even_handed_error_at_the_ends_of_the_range_is_no_saturation(shift):
    """49 of 100 of the digits' pixels stand at -1 and 9 at 1: noise of a tenth of the range puts a
    sixth of all outside, evenly. What is moved outwards is another matter.
    """
    data = fs.data.digit_images()
    step = Step(Key(0), 256)

    @dataclass(frozen=True, eq=False)
    class Noisy(States):
        def draw(self, step: Step) -> State:
            x = data.take(torch.arange(256))
            return State(x + shift * x + 0.2 * step.noise_like("error", x), torch.zeros(256))

    reading = Saturation(Noisy(), data).read(step, {})
    assert reading is not None
    assert reading.value > 0.15
    assert bool(reading.warning) is (shift > 0)
    advised = Saturation(Noisy(), data, limit=-1.0, advice="a lower guidance scale helps").read(step, {})
    assert advised is not None
    assert advised.warning.endswith("the student saturates; a lower guidance scale helps.")


@pytest.mark.parametrize(
    ("name", "overrides", "advice"),
    [
        ("digits-disback", [], "thresholding ('reflected') helps"),
        ("digits-disback", ["reflected={kind: static}"], ""),
        ("digits-lcm", [], "a lower guidance scale or thresholding ('reflected') helps"),
        ("digits-fastgan-disback", [], ""),
    ],
)
def test_advice_against_saturation_names_what_the_recipe_has(name, overrides, advice, tmp_path):
    monitor = build_distillation(load_recipe(name, overrides), tmp_path).monitor
    (check,) = (check for check in monitor.checks if isinstance(check, Saturation))
    assert check.advice == advice
    (gap,) = [check.advice for check in monitor.checks if isinstance(check, Gap)] or ["a lower rate helps"]
    assert "path" not in gap
