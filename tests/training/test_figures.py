"""A step that is worked off in portions is the step of the whole batch: its figures, its weights
and what it costs.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.objectives import FieldOfSamples, Largest, Loss, Mean, Objective, RootMeanSquare
from fewstep.random import Key
from fewstep.states import Step
from fewstep.training import Phase, Settings, Stage, Term, Trainer
from fewstep.training.reporting.log import read_log
from fewstep.training.reporting.reports import Report

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "step.py"


@dataclass(frozen=True, eq=False)
class Measured(Objective):
    """Reports a figure of each kind of the values that each sample draws."""

    inner: Objective

    def __call__(self, step, state) -> Loss:
        loss, values = self.inner(step, state), step.noise_like("measured", torch.empty(step.rows, 1))
        figures = {"mean": values.mean(), "rms": values.square().mean().sqrt(), "most": values.max()}
        return Loss(
            loss.total, {**loss.terms, **figures}, {**loss.reductions, "rms": RootMeanSquare(), "most": Largest()}
        )


def logged(run, accumulate: int) -> list[dict[str, float]]:
    student, fake = run.stages[0].phases
    phase = replace(student, terms=[Term(Measured(run.matching), run.prior)])
    settings = Settings(batch=8, log_every=1, accumulate=accumulate)
    Trainer(run.folder, [Stage("distill", 3, [phase, fake])], run.student, settings).fit()
    return [
        {key: value for key, value in line.items() if "." in key or key == "evaluations"}
        for line in read_log(run.folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("accumulate", [2, 8])
def test_figures_of_portions_are_those_of_the_whole_batch(small_run, accumulate):
    """Root mean squares of portions were averaged: of two equal and independent parts that is less
    than the whole's.
    """
    whole, parts = logged(small_run("whole"), 1), logged(small_run("parts"), accumulate)
    assert {
        "student.gradient",
        "student.rms",
        "student.most",
        "student.mean",
        "student.gradient_norm",
        "fake.denoising",
    } < set(whole[0])
    for a, b in zip(whole, parts, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    drawn = Step(Key(0, "distill", 0), 8).named("Measured").noise_like("measured", torch.empty(8, 1))
    assert parts[0]["student.most"] == pytest.approx(float(drawn.max()))
    assert parts[0]["student.rms"] == pytest.approx(float(drawn.square().mean().sqrt()))


def test_figures_of_processes_are_reduced_as_those_of_portions_are(small_run, monkeypatch):
    """Two processes' reports, stacked as an exchange gives them."""
    run = small_run()
    reports = []
    for values in ([3.0, 1.0], [4.0, 7.0]):
        report = Report(run.stages[0].phases[0], [])
        report.add(
            [torch.tensor(1.0)],
            {"rms": torch.tensor(values[0]), "most": torch.tensor(values[1]), "mean": torch.tensor(values[0])},
            {"rms": RootMeanSquare(), "most": Largest()},
        )
        report.end(torch.tensor(2.0))
        reports.append(report)
    monkeypatch.setattr(
        "fewstep.system.distributed.gathered", lambda values: torch.stack([report.values for report in reports])
    )
    (found,) = Report.gathered(reports[:1])
    assert found.figures == {"rms": pytest.approx(12.5**0.5), "most": 7.0, "mean": 3.5}
    assert (found.losses, found.norm) == ([1.0], 2.0)


def test_reductions_are_their_formulas():
    values = torch.tensor([1.0, -7.0, 2.0])
    assert float(Mean().of(values)) == pytest.approx(-4 / 3)
    assert float(RootMeanSquare().of(values)) == pytest.approx(18**0.5)
    assert float(Largest().of(values)) == 2.0


def test_a_field_of_samples_has_one_set_of_references_for_all_portions(small_run):
    """Equal weights to rounding, at equal cost: the fresh references are made once a step, not once
    a portion.
    """
    ended = []
    for name, accumulate in (("whole", 1), ("parts", 4)):
        run = small_run(name)
        match = replace(run.matching, fake=FieldOfSamples(run.student, run.prior, 6))
        stage = Stage(
            "distill", 3, [Phase("student", run.student, [Term(match, run.prior)], run.stages[0].phases[0].optimizer)]
        )
        trainer = Trainer(run.folder, [stage], run.student, Settings(batch=8, accumulate=accumulate))
        trainer.fit()
        ended.append((run.student.state_dict(), trainer.progress.evaluations))
    (whole, cost), (parts, parts_cost) = ended
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=0)
    # Student forward and backward 3, teacher 1, for each sample; 5 references.
    assert cost == parts_cost == 3 * (8 * 4 + 5)


def test_steps_made_from_outside_are_those_of_a_run(small_run):
    whole, by_hand = small_run("whole", steps=6), small_run("by-hand", steps=6)
    whole.trainer().fit()
    trainer = by_hand.trainer()
    trainer.advance(2)
    trainer.advance(4)
    assert all(
        torch.equal(value, by_hand.student.state_dict()[name]) for name, value in whole.student.state_dict().items()
    )
    assert trainer.progress.step == 6
    assert not (by_hand.folder / "checkpoints").exists()
    with pytest.raises(fs.errors.UserError, match="holds a run already"):
        small_run("whole").trainer().advance(1)


def test_the_benchmark_of_a_step_runs_to_its_end(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("step_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", ["step.py", "--pairs", "1", "--block", "1", "--results", str(tmp_path)])
    monkeypatch.setattr(module, "BATCH", 4)
    module.main()
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["ratio"] > 0
    assert set(found["ms"]) == {"by hand", "fewstep"}
