"""The host reads what a step reports one step late, but before anything that must not follow a step
that was left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.denoisers import Averaged, HalfLife, copy_of
from fewstep.objectives import Loss, Objective, loss_of
from fewstep.targets import Backtracked, ByDistance, Every, EverySteps, SwitchAtPlateau, decides
from fewstep.training import Diverged, Monitor, Probe, Settings, Stage, Term, Trainer
from fewstep.training.reporting.reports import Report

RARELY = Settings(batch=8, log_every=1000, checkpoint_every=1000)


@dataclass(frozen=True, eq=False)
class BadAt(Objective):
    """The loss of ``inner``, which is no number at step ``bad`` of its stage."""

    inner: Objective
    bad: int

    def __call__(self, step, state) -> Loss:
        loss = loss_of(self.inner, step, state)
        return Loss(loss.total * float("nan") if step.key.step == self.bad else loss.total, loss.terms)


@dataclass(frozen=True, eq=False)
class Plain:
    """A hook that says nothing of itself."""

    def __call__(self, step: int, model: nn.Module) -> None:
        return


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], list[tuple[int, list[int]]]]:
    """Lists what a trainer reads: when (steps that were finished then), and of which steps,
    from 0.
    """
    found: list[tuple[int, list[int]]] = []
    gathered = Report.gathered
    trainers: list[Trainer] = []

    def spying(reports: Any) -> Any:
        if reports:
            found.append((trainers[0].progress.stage_step, [report.steps[0].key.step for report in reports]))
        return gathered(reports)

    monkeypatch.setattr(Report, "gathered", staticmethod(spying))

    def watch(trainer: Trainer) -> list[tuple[int, list[int]]]:
        trainers.append(trainer)
        return found

    return watch


def bad_student(run, at: int, **changes: Any) -> list[Stage]:
    student, fake = run.stages[-1].phases
    phase = replace(student, terms=[Term(BadAt(run.matching, at), run.prior)], **changes)
    return [*run.stages[:-1], replace(run.stages[-1], phases=[phase, fake])]


def equal(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_step_is_read_when_the_next_one_is_queued_and_the_last_at_the_end(small_run, read):
    trainer = small_run(steps=5).trainer(settings=RARELY)
    found = read(trainer)
    trainer.fit()
    assert found == [(2, [0, 0]), (3, [1, 1]), (4, [2, 2]), (5, [3, 3]), (5, [4, 4])]


@pytest.mark.parametrize("settings", [{"log_every": 3}, {"checkpoint_every": 3}])
def test_all_is_read_before_a_line_and_before_a_checkpoint(small_run, read, settings):
    trainer = small_run(steps=4).trainer(settings=replace(RARELY, **settings))
    found = read(trainer)
    trainer.fit()
    assert [of for when, of in found if when <= 3] in ([[0, 0], [1, 1, 2, 2]], [[0, 0], [1, 1], [2, 2]])
    assert found[-1] == (4, [3, 3])


def test_all_is_read_before_a_probe(small_run, read):
    trainer = small_run(steps=4).trainer(settings=RARELY, probes=[Probe("odd", 3, lambda step: {})])
    found = read(trainer)
    trainer.fit()
    assert found == [(2, [0, 0]), (3, [1, 1, 2, 2]), (4, [3, 3])]


def test_a_hook_that_counts_does_not_wait_and_one_that_records_does(small_run, read):
    run = small_run(nodes=3, record=3, steps=2)
    trainer = Trainer(run.folder, [run.stages[0]], run.student, RARELY)
    found = read(trainer)
    trainer.fit()
    # The first line has the number of nodes. One is recorded after steps 3 and 6, when 2 and 5 are
    # finished.
    assert found == [(1, [0]), (2, [1, 2]), (5, [3]), (5, [4, 5])]


def test_a_hook_that_says_nothing_of_itself_waits_after_each_step(small_run, read):
    run = small_run(steps=3)
    student, fake = run.stages[0].phases
    trainer = Trainer(
        run.folder, [replace(run.stages[0], phases=[fake, replace(student, after_step=Plain())])], run.student, RARELY
    )
    found = read(trainer)
    trainer.fit()
    assert found == [(0, [0, 0]), (1, [1, 1]), (2, [2, 2])]


def test_who_decides_when(small_run):
    run = small_run(nodes=4, record=2)
    assert run.path is not None
    recorder = run.path.recorder(EverySteps(3))
    assert [decides(recorder, step) for step in range(1, 7)] == [False, False, True, False, False, True]
    measured = run.path.recorder(ByDistance(0.1, lambda model: torch.ones(1), run.teacher))
    assert all(decides(measured, step) for step in range(1, 7))
    assert decides(Plain(), 1)
    target = Backtracked(run.path, Every(3))
    assert not decides(target.advance, 1)
    target.node, target.steps = 2, 1
    assert not decides(target.advance, 9)
    target.steps = 2
    assert decides(target.advance, 9)
    # It looks at each gap.
    assert SwitchAtPlateau().rule().decides(2, 1)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_step_that_was_left_out_is_named_a_step_late_and_nothing_has_moved_since(small_run, at):
    bad, good = small_run("bad"), small_run("good")
    ended = Trainer(bad.folder, [replace(bad_student(bad, at)[0], until=5)], bad.student, RARELY)
    with pytest.raises(
        Diverged, match=rf"the loss of 'BadAt' in phase 'student' was nan at step {at + 1} \(stage 'distill'\)"
    ):
        ended.fit()
    assert ended.progress.step == min(at + 2, 5)
    whole = Trainer(good.folder, [replace(good.stages[0], until=max(at, 1))], good.student, RARELY)
    if at:
        whole.fit()
    assert equal(bad.student, good.student)
    assert equal(bad.fake, good.fake)
    assert equal(ended.average, whole.average)
    assert not list(bad.folder.glob("checkpoints/*"))


def test_no_line_no_probe_and_no_reading_is_of_a_step_that_was_left_out(small_run):
    run, seen = small_run(), []
    settings = replace(RARELY, log_every=2)
    probes = [Probe("odd", 3, lambda step: seen.append(step) or {}), Monitor([], every=3)]
    with pytest.raises(Diverged, match="at step 3"):
        Trainer(run.folder, bad_student(run, 2), run.student, settings, probes=probes).fit()
    assert seen == [0]
    assert '"step": 3' not in (run.folder / "metrics.jsonl").read_text()


def test_a_node_is_not_recorded_from_a_step_that_was_left_out(small_run):
    """The recorder decides after the third step, which was not finite."""
    run = small_run(nodes=3, record=3)
    record = run.stages[0]
    phase = replace(record.phases[0], terms=[Term(BadAt(run.score_matching, 2), run.prior)])
    with pytest.raises(Diverged, match="at step 3"):
        Trainer(run.folder, [replace(record, phases=[phase])], run.student, RARELY).fit()
    assert run.path is not None
    assert (run.path.last, run.path.steps) == (0, 2)
    assert not list(run.folder.glob("path/node-*"))


def test_advance_has_read_all_when_it_returns(small_run):
    run = small_run()
    trainer = Trainer(run.folder, bad_student(run, 3), run.student, RARELY)
    trainer.advance(3)
    with pytest.raises(Diverged, match="at step 4"):
        trainer.advance(1)


def test_an_average_that_was_loaded_goes_on_at_its_own_pace(small_run):
    """How short its memory still is follows from its count, which is loaded."""
    student = small_run().student
    whole, again = (Averaged(copy_of(student), HalfLife(50.0)) for _ in range(2))
    for _ in range(5):
        whole.update(student)
    again.load_state_dict(whole.state_dict())
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    for average in (whole, again):
        average.update(student, torch.zeros(()))
    assert equal(whole, again)
    assert again.updates == 6
