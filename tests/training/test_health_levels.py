"""Health readings of levels: closed forms, what each warns of, and that a resumed run remembers the
readings before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch

from fewstep.data import InMemory
from fewstep.random import Key
from fewstep.states import State, States, Step
from fewstep.system.files import read_tensors, write_tensors
from fewstep.training import Monitor, Silent
from fewstep.training.health.fake_score_health import FakeScoreMoves
from fewstep.training.health.sample_levels import Contrast, MeanShift, OwnLevels, channel_levels
from fewstep.training.monitors import Check, Reading, Saturation, Spread
from fewstep.training.reporting.log import read_log
from interrupt_kit import Interrupted, Interrupter

STEP = Step(Key(0), 64)
# What a warning names: a figure, the bound, and what to try.
SENTENCE = re.compile(r".*\d.*\(bound:? [^)]*\d[^)]*\).*; .+\.", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Given(States):
    """These samples."""

    x: torch.Tensor

    def draw(self, step: Step) -> State:
        return State(self.x, torch.zeros(len(self.x), dtype=torch.float64))


def latents(rows: int = 64, seed: int = 0) -> InMemory:
    """Samples of two channels at different levels, without a range."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 4, 4, generator=generator) * torch.tensor([1.0, 3.0])[:, None, None]
    x = x + torch.tensor([0.0, -5.0])[:, None, None]
    return InMemory(x, None, 0, -torch.inf, torch.inf)


def taken(data: InMemory) -> torch.Tensor:
    return data.take(torch.arange(len(data)))


def test_levels_are_those_of_all_values_of_a_channel():
    x = torch.tensor([[[1.0, 3.0], [0.0, 8.0]], [[5.0, 7.0], [0.0, 8.0]]])
    mean, deviation = channel_levels(x)
    assert mean.tolist() == [4.0, 4.0]
    assert deviation.tolist() == [5**0.5, 4.0]
    points = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert [each.tolist() for each in channel_levels(points)] == [[1.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 1.0), (-0.7, 1.0), (0.0, 0.5), (0.0, 1.7)])
def test_mean_and_contrast_are_read_in_the_worst_channel(channel, shift, scale):
    data = latents()
    mean, deviation = (each[channel] for each in channel_levels(taken(data)))
    x = taken(data).double()
    x[:, channel] = (x[:, channel] - mean) * scale + mean + shift * deviation
    moved = MeanShift(Given(x), data).read(STEP, {})
    contrast = Contrast(Given(x), data).read(STEP, {})
    assert moved is not None
    assert contrast is not None
    assert moved.value == pytest.approx(abs(shift), abs=1e-6)
    assert contrast.value == pytest.approx(scale, rel=1e-6)
    assert bool(moved.warning) is (shift != 0)
    assert bool(contrast.warning) is (scale != 1)
    assert all(SENTENCE.fullmatch(warning) for each in (moved, contrast) if (warning := each.warning))


def test_what_is_not_a_number_is_warned_of_and_data_without_a_level_is_not_read():
    data = latents()
    broken = Given(taken(data) * torch.nan)
    for check in (MeanShift(broken, data), Contrast(broken, data), Saturation(broken, data)):
        reading = check.read(STEP, {})
        assert reading is not None
        assert bool(reading.warning) is not isinstance(check, Saturation)
    flat = InMemory(torch.ones(8, 2, 4, 4), None, 0, -torch.inf, torch.inf)
    assert MeanShift(Given(taken(flat)), flat).read(STEP, {}) is None
    assert Contrast(Given(taken(flat)), flat).read(STEP, {}) is None


def test_latents_saturate_beyond_the_values_of_the_data():
    data = latents()
    for scale, saturated in ((1.0, False), (4.0, True)):
        reading = Saturation(Given(taken(data) * scale), data).read(STEP, {})
        assert reading is not None
        assert bool(reading.warning) is saturated


@pytest.mark.parametrize("past", [[], [1.0, 1.0], [1.0, 1.02, 0.98, 1.0]])
def test_a_fall_of_the_spread_is_seen_before_it_is_low(past):
    data = latents()
    check = Spread(Given(taken(data) * 0.7), data, low=0.5)
    alone = check.read(STEP, {})
    assert alone is not None
    assert not alone.warning
    (reading,) = Monitor([check]).read(STEP, {}, {"spread_over_data": past})
    assert bool(reading.warning) is (len(past) >= 3)
    if reading.warning:
        assert "diversity falls" in reading.warning
        assert SENTENCE.fullmatch(reading.warning)


@pytest.mark.parametrize(("scale", "word"), [(0.5, "collapsing"), (1.0, ""), (2.0, "scatters")])
def test_without_data_the_run_is_held_against_its_own_readings(scale, word):
    x = taken(latents())
    usual = OwnLevels(Given(x)).read(STEP, {})
    assert usual is not None
    spread, *beside = Monitor([OwnLevels(Given(x * scale))]).read(STEP, {}, {"sample_spread": [usual.value] * 3})
    assert [each.name for each in beside] == ["sample_mean", "sample_deviation"]
    assert spread.value == pytest.approx(scale * usual.value)
    assert bool(spread.warning) is bool(word)
    assert word in spread.warning
    assert not word or SENTENCE.fullmatch(spread.warning)


def test_a_fake_score_that_stands_still_is_seen_and_one_that_moves_is_not():
    network = torch.nn.Linear(3, 2)
    monitor = Monitor([FakeScoreMoves(network)])
    assert monitor.read(STEP, {}) == []
    (first,) = monitor.read(STEP, {"fake.denoising": 1.0})
    norm = sum(float(value.detach().double().square().sum()) for value in network.parameters()) ** 0.5
    assert first.value == pytest.approx(norm)
    assert not first.warning
    (still,) = monitor.read(STEP, {"fake.denoising": 1.0}, {"fake_score_norm": [first.value]})
    assert "the fake score has moved by 0" in still.warning
    assert SENTENCE.fullmatch(still.warning)
    with torch.no_grad():
        network.weight[0, 0] += 1e-5
    (moved,) = monitor.read(STEP, {"fake.denoising": 1.0}, {"fake_score_norm": [first.value]})
    assert not moved.warning


@dataclass(frozen=True, eq=False)
class Counts(Check):
    """Tells how many readings it was shown, and the newest."""

    def read(self, step, recent) -> Reading:
        return Reading("counts", float(step.key.step))

    def against(self, reading, past) -> str:
        return f"{len(past)} before, the newest {past[-1] if past else 'none'}"


@pytest.mark.parametrize("left", [6, 13])
def test_a_resumed_run_remembers_its_readings_and_an_older_checkpoint_has_none(small_run, left):
    def probes():
        return [Monitor([Counts()], every=3, rows=4)]

    whole, apart = small_run("whole"), small_run("apart")
    whole.trainer(probes=probes()).fit()
    with pytest.raises(Interrupted):
        apart.trainer(probes=probes(), listeners=[Interrupter(left)]).fit()
    again = small_run("apart")
    again.trainer(probes=probes()).fit(resume=True)
    logs = [[e for e in read_log(run.folder / "metrics.jsonl") if e.get("probe") == "health"] for run in (whole, again)]
    assert logs[0] == logs[1]
    assert logs[0][-1]["warnings"] == ["8 before, the newest 27.0"]
    path = again.folder / "checkpoints" / "step-00000030.safetensors"
    tensors, state = read_tensors(path)
    assert state.pop("past") == {"counts": [float(step) for step in range(9, 31, 3)]}
    write_tensors(path, tensors, state)
    heard = Silent()
    small_run("apart", steps=36).trainer(probes=probes(), listeners=[heard]).fit(resume=True)
    assert any("0 before" in said for said in heard.said)
