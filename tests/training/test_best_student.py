"""The best student: no luck of a draw is promised, and a run that was left ends with the same
student.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.condition import LABELS
from fewstep.data import InMemory
from fewstep.denoisers import Averaged, HalfLife
from fewstep.metrics.quality import Evaluator
from fewstep.random import Key
from fewstep.runs.probing.student_figures import best_measure
from fewstep.system.files import read_tensors
from fewstep.training import Silent, Trainer
from fewstep.training.reporting.log import read_log
from fewstep.training.saving.best_student import BestStudent, Draw, StudentMeasure
from interrupt_kit import Interrupted, Interrupter

RUNS, STUDENTS = 4000, 12
MOVED = 0.25


def kept_of(figures: dict[Draw, list[float]], least: bool = True, patience: int | None = None) -> BestStudent:
    """What is kept of students with these figures on each draw, measured one after another."""
    model = nn.Linear(1, 1, bias=False)
    average = Averaged(model, HalfLife(0.0))
    now = 0
    best = BestStudent(
        average,
        StudentMeasure("fd", "Frechet distance", least, lambda draw: figures[draw][now]),
        lambda student, said: None,
        1,
        patience,
    )
    best.begin_last_stage()
    for now in range(len(figures["proposes"])):
        nn.init.constant_(model.weight, now)
        average.update(model)
        best.probe.measure(now)
    return best


def test_the_told_figure_of_equal_students_has_no_bias_and_that_of_a_minimum_has_its_closed_form():
    """Of n independent normals the least has the expectation -c_n; c_2 = 1 / sqrt(pi), c_3 = 3 / (2
    sqrt(pi)).
    """
    noise = np.random.default_rng(0).standard_normal((RUNS, 3, STUDENTS))
    bound = 4 / math.sqrt(RUNS)
    for n, expected in ((2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))):
        assert abs(noise[:, 0, :n].min(1).mean() + expected) < bound
    kept = [
        kept_of({"proposes": list(a), "decides": list(b), "tells": list(c)}).kept
        for a, b, c in noise[: RUNS // 4].tolist()
    ]
    means = {
        name: np.mean([asdict(each)[name] for each in kept if each is not None])
        for name in ("first", "second", "figure")
    }
    assert abs(means["figure"]) < 4 / math.sqrt(RUNS // 4)
    # Both draws that choose promise too much: neither may be told.
    assert means["first"] < -0.3
    assert means["second"] < -0.3


def test_the_second_draw_decides_and_noise_that_is_the_same_for_all_prefers_nobody():
    lucky = kept_of({"proposes": [3.0, 1.0, 2.5], "decides": [3.0, 3.1, 2.5], "tells": [3.0, 9.0, 2.6]}).kept
    assert lucky is not None
    assert (lucky.step, lucky.first, lucky.second, lucky.figure) == (2, 2.5, 2.5, 2.6)
    shared = kept_of({draw: [2.0 + shift] * 5 for draw, shift in (("proposes", -1), ("decides", 1), ("tells", 0))}).kept
    assert shared is not None
    assert (shared.step, shared.figure) == (0, 2.0)


def test_what_is_more_may_be_better_and_what_is_not_finite_is_never_kept():
    values = [math.nan, 0.2, math.inf, 0.3, -math.inf, 0.1]
    best = kept_of({"proposes": values, "decides": values, "tells": values}, least=False)
    assert best.kept is not None
    assert (best.kept.step, best.kept.figure) == (3, 0.3)
    assert float(best.model.weight) == 3.0
    assert kept_of({"proposes": [math.nan] * 3, "decides": [], "tells": []}).kept is None


def test_a_student_that_was_not_trained_since_is_not_measured_again():
    best = kept_of({draw: [1.0] for draw in ("proposes", "decides", "tells")}, patience=1)
    assert best.probe.measure(1) == {}
    assert not best.out_of_patience


def with_best(run: Any, patience: int | None = None, every: int = 4, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A trainer that keeps the student whose weights have moved by ``MOVED``, which it reaches and
    passes, and what was written last.
    """
    written: dict[str, Any] = {}
    settings = {**settings, "settings": settings.get("settings", run.settings)}
    average = Averaged(run.student, HalfLife(0.0))
    for phase in (phase for stage in run.stages for phase in stage.phases if phase.network is run.student):
        object.__setattr__(phase, "averages", [average])
    began = [value.clone() for value in run.student.state_dict().values()]

    def take(draw: Draw) -> float:
        moved = zip(began, average.average.state_dict().values(), strict=True)
        return abs(math.sqrt(sum(float((value - first).square().sum()) for first, value in moved)) - MOVED)

    def write(student: nn.Module, said: Any) -> None:
        written.update(weights={k: v.clone() for k, v in student.state_dict().items()}, said=said)

    best = BestStudent(average, StudentMeasure("fd", "Frechet distance", True, take), write, every, patience)
    return Trainer(run.folder, run.stages, average, best=best, **settings), written


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["said"] == other["said"] and all(torch.equal(v, other["weights"][k]) for k, v in one["weights"].items())


@pytest.mark.parametrize("left", [3, 6, 11, 22, 29])
def test_a_run_that_was_left_and_resumed_keeps_the_same_student(small_run, left):
    whole, apart = small_run("whole"), small_run("apart")
    undisturbed, expected = with_best(whole)
    undisturbed.fit()
    broken, _ = with_best(apart, listeners=[Interrupter(left)])
    with pytest.raises(Interrupted):
        broken.fit()
    again = small_run("apart")
    resumed, found = with_best(again)
    resumed.fit(resume=True)
    assert same(found, expected)
    last = "checkpoints/step-00000030.safetensors"
    (one, state), (other, state_of_other) = (read_tensors(run.folder / last) for run in (whole, again))
    assert state["stateful"] == state_of_other["stateful"]
    assert state["stateful"]["best"]["kept"] == {
        key: value for key, value in expected["said"]["best"].items() if key != "measure"
    }
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(name.startswith("network/best/") for name in one)
    untimed = [
        [{k: v for k, v in e.items() if k != "seconds"} for e in read_log(r.folder / "metrics.jsonl")]
        for r in (whole, again)
    ]
    assert untimed[0] == untimed[1]


def test_the_kept_student_is_the_one_of_its_step(small_run):
    whole = small_run("whole")
    trainer, written = with_best(whole)
    trainer.fit()
    step = written["said"]["best"]["step"]
    entries = [entry for entry in read_log(whole.folder / "metrics.jsonl") if entry.get("probe") == "best"]
    assert [entry["step"] for entry in entries] == [*range(0, 30, 4), 30]
    assert [entry["step"] for entry in entries if entry["kept"]][-1] == step
    assert 0 < step < 28
    short = small_run("short", steps=step)
    until, _ = with_best(short)
    until.fit()
    assert all(torch.equal(value, until.average.average.state_dict()[k]) for k, value in written["weights"].items())


def test_keeping_the_best_changes_nothing_of_the_run(small_run):
    plain, kept = small_run("plain"), small_run("kept")
    plain.trainer(decay=HalfLife(0.0)).fit()
    with_best(kept)[0].fit()
    assert all(torch.equal(v, kept.student.state_dict()[k]) for k, v in plain.student.state_dict().items())


def test_patience_ends_the_last_stage_and_a_finished_run_stays_ended(small_run):
    """A rate of nearly nothing at one stage makes no better student; recording before it, in which
    no student is trained, costs no patience.
    """
    run = small_run("run", nodes=3, record=6, steps=400)
    heard = Silent()
    trainer, written = with_best(run, patience=2, listeners=[heard])
    trainer.fit()
    entries = [entry for entry in read_log(run.folder / "metrics.jsonl") if entry.get("probe") == "best"]
    ended = trainer.progress.step
    assert ended < 412
    assert ended == entries[-1]["step"]
    assert [entry["ends"] for entry in entries if "ends" in entry][-1] == 1
    kept = written["said"]["best"]["step"]
    assert ended == kept + 2 * 4
    # While the path is recorded the student stays as it is, and is measured once.
    assert sum("first" in entry for entry in entries if entry["step"] <= 12) == 1
    (sentence,) = [said for said in heard.said if "patience" in said]
    assert f"the last 2 measurements found no better student than that of step {kept} " in sentence
    again, found = with_best(small_run("run", nodes=3, record=6, steps=400), patience=2)
    again.fit(resume=True)
    assert again.progress.step == ended
    assert same(found, written)


class Noise:
    """A sampler whose samples are the noise of the place where it is asked."""

    low, high, classes, owner = -10.0, 10.0, 0, LABELS

    def draw(self, key: Key, rows: int, numbers: Any, steps: int) -> Tensor:
        return key.normal("noise", (rows, 2))


def test_each_draw_has_noise_of_its_own_and_none_is_that_of_an_evaluation():
    """Of a figure that changes with the noise alone, the first number of the first sample."""
    data = InMemory(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), None, 0)
    evaluator = Evaluator(data, lambda x: x, samples=40, seed=3, conditional=False)
    noise = Noise()
    for name in ("fd", "diversity"):
        measure = best_measure(name, evaluator, lambda: noise, 1)
        figures = [measure.take(draw) for draw in ("proposes", "decides", "tells")]
        assert len(set(figures)) == 3
        assert figures == [measure.take(draw) for draw in ("proposes", "decides", "tells")]
    taken = [best_measure("fd", evaluator, lambda: noise, 1).take(draw) for draw in get_args(Draw)]
    evaluated = evaluator.measure(lambda key, n, labels: noise.draw(key, n, labels, 1), 3)
    assert evaluated.fd is not None
    each = [evaluator.distance(noise.draw(Key(3, "evaluation", draw), 40, None, 1)) for draw in range(3)]
    assert evaluated.fd == pytest.approx(sum(each) / 3)
    assert not set(taken) & set(each)
