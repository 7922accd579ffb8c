"""Nothing that is not finite is stepped, averaged, recorded or saved, and where a run goes on from
then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.denoisers import Averaged, HalfLife, copy_of
from fewstep.errors import NotFinite, UserError
from fewstep.objectives import Loss, Objective, loss_of
from fewstep.system import files
from fewstep.system.files import read_tensors, write_tensors
from fewstep.targets import Backtracked, DegradationPath, SwitchAtPlateau
from fewstep.training import SGD, Adam, Diverged, Phase, Probe, Settings, Silent, Stage, Term, Trainer
from fewstep.training.optimizer import step_unless
from fewstep.training.reporting.log import read_log


@dataclass(frozen=True, eq=False)
class BadGradient(Objective):
    """The loss of ``inner``, to the last bit, whose gradient is no number at step ``bad`` of its
    stage.
    """

    inner: Objective
    network: nn.Module
    bad: int

    def __call__(self, step, state) -> Loss:
        loss = loss_of(self.inner, step, state)
        if step.key.step != self.bad:
            return loss
        output = self.network(state.x, state.t, state.condition)
        # sqrt has no slope at 0, and 0 is what is added.
        return Loss(loss.total + (output - output.detach()).square().sum().sqrt(), loss.terms)


@dataclass(frozen=True, eq=False)
class Overflow:
    """A hook that stands for a finite step out of the range of numbers."""

    after: int

    def __call__(self, step: int, model: nn.Module) -> None:
        if step == self.after:
            with torch.no_grad():
                next(model.parameters()).fill_(float("inf"))


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def poisoned(run, at: int, optimizer=None) -> list[Stage]:
    """The stages of a small run, its student's gradient no number at step ``at``."""
    student, fake = run.stages[-1].phases
    phase = replace(
        student,
        terms=[Term(BadGradient(run.matching, run.student, at), run.prior)],
        optimizer=optimizer or student.optimizer,
    )
    return [*run.stages[:-1], replace(run.stages[-1], phases=[phase, fake])]


def diverge(run, at: int, resume: bool = False, **changes: Any) -> str:
    """The sentence with which the run ends."""
    settings = changes.pop("settings", Settings(batch=8, checkpoint_every=3, keep=9))
    with pytest.raises(Diverged) as raised:
        Trainer(run.folder, poisoned(run, at), run.student, settings, **changes).fit(resume)
    return str(raised.value)


def names(run) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").glob("*"))


@pytest.mark.parametrize("optimizer", [Adam(0.1, weight_decay=0.1, betas=(0.9, 0.99)), SGD(0.1, 0.1)])
def test_a_step_that_is_left_out_changes_no_bit_of_weights_and_moments(optimizer):
    weight = nn.Parameter(torch.randn(5))
    built = optimizer.build([weight])
    weight.grad = torch.randn(5)
    step_unless(built, torch.zeros(()))
    before, moments = weight.detach().clone(), {k: v.clone() for k, v in built.state[weight].items() if v is not None}
    for gradient in (torch.full((5,), torch.nan), torch.randn(5)):
        weight.grad = gradient
        step_unless(built, torch.ones(()))
        assert torch.equal(weight, before)
        assert equal({k: v for k, v in built.state[weight].items() if v is not None}, moments)
    step_unless(built, torch.zeros(()))
    assert not torch.equal(weight, before)


def test_an_optimizer_that_cannot_look_at_the_flag_is_not_called():
    weight = nn.Parameter(torch.ones(2))
    built = torch.optim.RMSprop([weight], lr=0.1)
    weight.grad = torch.full((2,), torch.nan)
    step_unless(built, torch.ones(()))
    assert weight.tolist() == [1.0, 1.0]
    weight.grad = torch.ones(2)
    step_unless(built, torch.zeros(()))
    assert weight.tolist() != [1.0, 1.0]


def test_an_average_that_is_left_out_stays_and_does_not_count(small_run):
    student = small_run().student
    average, plain = Averaged(student, HalfLife(1.0)), Averaged(student, HalfLife(1.0))
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    average.update(student, torch.zeros(()))
    plain.update(student)
    assert equal(average.state_dict(), plain.state_dict())
    with torch.no_grad():
        next(student.parameters()).fill_(float("nan"))
    average.update(student, torch.ones(()))
    assert equal(average.state_dict(), plain.state_dict())


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}])
@pytest.mark.parametrize("optimizer", [Adam(1e-3, betas=(0.9, 0.999)), SGD(1e-3)])
def test_a_step_whose_gradient_is_no_number_leaves_everything_as_it_was(small_run, optimizer, settings):
    """The run that ends in its third step is the run of two steps, in its weights, its averages,
    its switch and its log.
    """
    bad, good = small_run("bad", nodes=3, record=2), small_run("good", nodes=3, record=2)
    for run in (bad, good):
        assert run.path is not None
        run.target = Backtracked(run.path, SwitchAtPlateau(window=2, min_steps=9, max_steps=9).rule())
        student = run.stages[-1].phases[0]
        run.matching = replace(run.matching, target=run.target)
        run.stages[-1] = replace(
            run.stages[-1], phases=[replace(student, after_step=run.target.advance), run.stages[-1].phases[1]]
        )
    settings = Settings(batch=8, log_every=1, **settings)
    ended = Trainer(bad.folder, poisoned(bad, 2, optimizer), bad.student, settings)
    with pytest.raises(
        Diverged,
        match=r"the gradient of 'BadGradient' in phase 'student' was not finite at step 7 \(stage 'distill'\), "
        r"though the loss was",
    ):
        ended.fit()
    stages = poisoned(good, 99, optimizer)
    whole = Trainer(good.folder, [stages[0], replace(stages[1], until=2)], good.student, settings)
    whole.fit()
    assert equal(bad.student.state_dict(), good.student.state_dict())
    assert equal(bad.fake.state_dict(), good.fake.state_dict())
    assert equal(ended.average.state_dict(), whole.average.state_dict())
    assert bad.target.state_dict() == good.target.state_dict()
    assert len(bad.target.state_dict()["switch"]["sums"]) == 2
    lines = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(run.folder / "metrics.jsonl")]
        for run in (bad, good)
    ]
    assert lines[0] == lines[1]


def test_the_term_whose_gradient_is_no_number_is_named_among_several(small_run):
    run = small_run("terms")
    terms = [
        Term(run.score_matching, run.prior, name="first"),
        Term(BadGradient(run.score_matching, run.fake, 1), run.prior, name="second"),
    ]
    with pytest.raises(Diverged, match=r"the gradient of 'second' in phase 'fake' was not finite at step 2"):
        Trainer(run.folder, [Stage("s", 4, [Phase("fake", run.fake, terms)])], run.student, Settings(batch=8)).fit()


def test_the_sentence_says_where_to_go_on_or_that_there_is_nowhere_yet(small_run):
    assert "there is no checkpoint yet to go on from" in diverge(small_run("early"), 1)
    run = small_run("late")
    assert f"go on from {run.folder / 'checkpoints' / 'step-00000003.safetensors'} with --resume" in diverge(run, 4)
    assert names(run) == ["step-00000003.safetensors"]


def test_a_checkpoint_from_which_a_run_ends_at_once_is_set_aside_for_the_one_before_it(small_run):
    sentence = diverge(small_run("run"), 7)
    assert "step-00000006.safetensors with --resume" in sentence
    kept = (small_run("run").folder / "checkpoints" / "step-00000006.safetensors").read_bytes()
    sentence = diverge(small_run("run"), 7, resume=True)
    assert "set aside as step-00000006.not-finite.safetensors: go on from" in sentence
    assert "step-00000003.safetensors with --resume" in sentence
    run = small_run("run")
    assert names(run) == ["step-00000003.safetensors", "step-00000006.not-finite.safetensors"]
    assert (run.folder / "checkpoints" / "step-00000006.not-finite.safetensors").read_bytes() == kept
    # From the older one the same numbers follow; nothing is set aside twice, and the sentence says
    # what is left to do.
    diverge(small_run("run"), 7, resume=True)
    assert "as it will whenever it goes on: lower the learning rate" in diverge(small_run("run"), 7, resume=True)
    assert names(run) == [
        "step-00000003.safetensors",
        "step-00000006.not-finite.safetensors",
        "step-00000006.safetensors",
    ]


def poison(path: Path, monkeypatch) -> None:
    """What an older version could write: a whole checkpoint with a weight that is no number."""
    tensors, state = read_tensors(path)
    name = next(name for name in tensors if name.startswith("network/student"))
    tensors[name].view(-1)[0] = float("nan")
    with monkeypatch.context() as patch:
        patch.setattr(files, "first_not_finite", lambda tensors: "")
        write_tensors(path, tensors, state)


def test_a_checkpoint_of_values_that_are_not_finite_is_passed_over_and_kept(small_run, monkeypatch):
    whole, run = small_run("whole", steps=8), small_run("run", steps=8)
    for each in (whole, run):
        each.trainer().fit()
    poison(run.folder / "checkpoints" / "step-00000008.safetensors", monkeypatch)
    again, watcher = small_run("run", steps=8), Silent()
    again.trainer(listeners=[watcher]).fit(resume=True)
    assert any(
        "is kept as step-00000008.not-finite.safetensors: " in said
        and "'network/student" in said
        and "not finite" in said
        for said in watcher.said
    )
    assert equal(again.student.state_dict(), whole.student.state_dict())
    assert names(run) == [
        "step-00000005.safetensors",
        "step-00000008.not-finite.safetensors",
        "step-00000008.safetensors",
    ]


def test_where_no_checkpoint_is_finite_a_run_does_not_begin_anew(small_run, monkeypatch):
    run = small_run("run", steps=4)
    run.trainer().fit()
    poison(run.folder / "checkpoints" / "step-00000004.safetensors", monkeypatch)
    with pytest.raises(UserError, match="no checkpoint is left whose values are finite"):
        small_run("run", steps=4).trainer().fit(resume=True)
    assert names(run) == ["step-00000004.safetensors"]


@pytest.mark.parametrize("kind", ["file", "shards", "background"])
def test_weights_that_are_not_finite_are_not_saved(small_run, kind):
    run = small_run("run")
    student, fake = run.stages[0].phases
    stages = [Stage("distill", 9, [fake, replace(student, after_step=Overflow(4))])]
    with pytest.raises(
        Diverged,
        match=r"'network/student/[^']+' held values that are not finite after step 4 .*go on from .*step-00000002",
    ) as raised:
        Trainer(run.folder, stages, run.student, Settings(batch=8, checkpoint_every=2, checkpoints=kind)).fit()
    assert "nothing of that step was kept" in str(raised.value)
    assert [name.removesuffix(".safetensors") for name in names(run)] == ["step-00000002"]


def test_a_node_and_a_file_of_values_that_are_not_finite_are_not_written(small_run, tmp_path):
    run = small_run("run")
    path = DegradationPath(tmp_path / "path", run.teacher)
    model = copy_of(run.teacher)
    Overflow(1)(1, model)
    with pytest.raises(
        NotFinite,
        match=r"node-1.safetensors: was not written, because 'network\.[^']+' holds values that are not finite",
    ):
        path.record(model, 1)
    assert path.last == 0
    assert not list(tmp_path.glob("path/*"))


def test_a_node_that_is_not_finite_ends_the_run_in_a_sentence(small_run):
    run = small_run("run", nodes=3, record=2)
    record = run.stages[0]
    stages = [Stage("spoil", 1, [replace(record.phases[0], after_step=Overflow(1))]), *run.stages]
    with pytest.raises(Diverged, match=r"'network/degrade/[^']+' held values that are not finite after step 1"):
        Trainer(run.folder, stages, run.student, Settings(batch=8)).fit()
    assert run.path is not None
    assert run.path.last == 0


def test_a_figure_that_is_not_finite_is_said_once_and_left_out_of_the_log(small_run):
    run, watcher = small_run("run", steps=4), Silent()
    student, fake = run.stages[0].phases
    stages = [Stage("distill", 4, [replace(student, terms=[Term(Unmeasured(run.matching), run.prior)]), fake])]
    probe = Probe("odd", 2, lambda step: {"fd": float("nan"), "other": 1.0})
    Trainer(run.folder, stages, run.student, run.settings, probes=[probe], listeners=[watcher]).fit()
    text = (run.folder / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "student.odd" not in text
    assert sum("the figure 'student.odd' was nan at step 1" in said for said in watcher.said) == 1
    assert any("'fd' of the probe 'odd' was not finite" in said for said in watcher.said)
    assert all(line["other"] == 1.0 for line in read_log(run.folder / "metrics.jsonl") if "probe" in line)


@dataclass(frozen=True, eq=False)
class Unmeasured(Objective):
    """Reports a figure that is no number."""

    inner: Objective

    def __call__(self, step, state) -> Loss:
        loss = loss_of(self.inner, step, state)
        return Loss(loss.total, {**loss.terms, "odd": torch.tensor(float("nan"))})
