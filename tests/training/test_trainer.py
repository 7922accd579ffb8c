"""The loop: what a step costs, that runs are a function of their settings, and what stops them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch

from fewstep.condition import Condition
from fewstep.denoisers import HalfLife
from fewstep.errors import Stopped, UserError
from fewstep.objectives import Loss, Objective
from fewstep.random import GENERATOR
from fewstep.targets import Backtracked
from fewstep.training import Diverged, Phase, Probe, Settings, Silent, Stage, Term, Trainer
from fewstep.training.reporting.log import read_log


def equal(a, b) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_one_node_is_diff_instruct_bit_for_bit(small_run):
    fixed, backtracked = small_run("fixed"), small_run("one", nodes=1)
    for run in (fixed, backtracked):
        run.trainer().fit()
    assert equal(fixed.student, backtracked.student)
    assert equal(fixed.fake, backtracked.fake)
    assert not equal(fixed.student, fixed.teacher)


def test_two_nodes_are_the_warm_ablation_bit_for_bit(small_run):
    """The ablation by hand: fit the fake score to the untrained student, then Diff-Instruct from
    there.
    """
    warm = small_run("warm", nodes=2, record=6)
    warm.trainer().fit()
    by_hand = small_run("hand")
    phase = Phase(
        "degrade", by_hand.fake, [Term(by_hand.score_matching, by_hand.prior)], warm.stages[0].phases[0].optimizer
    )
    stages = [Stage("record", 6, [phase]), *by_hand.stages]
    Trainer(by_hand.folder, stages, by_hand.student, by_hand.settings).fit()
    assert equal(warm.student, by_hand.student)
    assert equal(warm.fake, by_hand.fake)


def test_disback_walks_the_path_back_and_differs(small_run):
    run = small_run("disback", nodes=4, record=2, switch=3, steps=20)
    run.trainer().fit()
    assert run.path is not None
    assert [node["step"] for node in run.path.nodes] == [2, 4, 6]
    nodes = [(e["step"], e["target_node"]) for e in read_log(run.folder / "metrics.jsonl") if "target_node" in e]
    changes = [entry for before, entry in zip([(0, -1), *nodes], nodes, strict=False) if entry[1] != before[1]]
    # Recording took 6 steps; the target starts at N - 1 = 2 and moves every 3 steps.
    assert changes == [(7, 2), (9, 1), (12, 0)]
    plain = small_run("plain")
    plain.trainer().fit()
    assert not equal(run.student, plain.student)


def test_same_seed_same_run_other_seed_other_run(small_run):
    first, second, third = small_run("a"), small_run("b"), small_run("c", seed=1)
    for run in (first, second, third):
        run.trainer().fit()
    assert equal(first.student, second.student)
    assert not equal(first.student, third.student)
    assert (first.folder / "metrics.jsonl").read_text().count("\n") == 15


def test_evaluations_count_what_the_steps_cost(small_run):
    run = small_run("cost", nodes=3, record=2, steps=5, batch=8)
    trainer = run.trainer()
    trainer.fit()
    # A recording step: student forward 1, fake forward and backward 3; a distilling step: 3 + 1 + 1
    # for the student, 3 for the fake score.
    assert trainer.progress.evaluations == 8 * (4 * 4 + 5 * 8)


def test_cadence_runs_the_student_every_other_step(small_run):
    run = small_run("cadence")
    student, fake = run.stages[0].phases
    trainer = Trainer(run.folder, [Stage("distill", 7, [replace(student, every=2), fake])], run.student, run.settings)
    trainer.fit()
    assert trainer.average.updates == 4
    assert trainer.progress.evaluations == 8 * (4 * 8 + 3 * 4)


def test_average_follows_the_student_by_its_decay(small_run):
    run = small_run("average")
    trainer = Trainer(run.folder, run.stages, run.student, run.settings, HalfLife(0.0))
    assert equal(trainer.fit(), run.student)


@dataclass(frozen=True, eq=False)
class Broken(Objective):
    """Gives a loss that is not a number at its third step."""

    inner: Objective

    def __call__(self, step, state) -> Loss:
        loss = self.inner(step, state)
        return Loss(loss.total * float("nan") if step.key.step == 2 else loss.total)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(small_run):
    run = small_run("nan")
    phase = Phase("fake", run.fake, [Term(Broken(run.score_matching), run.prior, name="score of the student")])
    trainer = Trainer(run.folder, [Stage("distill", 9, [phase])], run.student, Settings(batch=8, checkpoint_every=2))
    with pytest.raises(Diverged, match=r"'score of the student' in phase 'fake' was nan at step 3"):
        trainer.fit()
    assert [p.name for p in (run.folder / "checkpoints").iterdir()] == ["step-00000002.safetensors"]


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_and_stops_and_the_rest_is_bit_for_bit(small_run, number):
    whole, cut = small_run("whole"), small_run("cut")
    whole.trainer().fit()

    def shoot(step: int) -> dict[str, float]:
        if step == 13:
            os.kill(os.getpid(), number)
        return {}

    with pytest.raises(Stopped, match="step 13") as stopped:
        cut.trainer(probes=[Probe("shoot", 1, shoot)]).fit()
    assert stopped.value.signal == number
    again = small_run("cut")
    trainer = again.trainer(probes=[Probe("shoot", 1, lambda step: {})])
    trainer.fit(resume=True)
    assert equal(whole.student, again.student)
    assert equal(whole.fake, again.fake)


def test_probes_run_at_the_start_at_their_cadence_and_once_at_the_end(small_run):
    run = small_run("probes", steps=10)
    seen: list[tuple[str, int]] = []

    def note(name: str, every: int) -> Probe:
        return Probe(name, every, lambda step: seen.append((name, step)) or {"value": 1.0})

    run.trainer(probes=[note("four", 4), note("five", 5)]).fit()
    assert sorted(seen) == [("five", 0), ("five", 5), ("five", 10), ("four", 0), ("four", 4), ("four", 8), ("four", 10)]


def test_two_trainers_on_one_folder_are_refused_across_threads(small_run):
    import threading

    run, other = small_run("shared"), small_run("shared")
    errors: list[str] = []

    def intrude(step: int) -> dict[str, float]:
        if step == 5:

            def fit() -> None:
                try:
                    other.trainer().fit()
                except UserError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=fit)
            thread.start()
            thread.join()
        return {}

    run.trainer(probes=[Probe("intrude", 5, intrude)]).fit()
    assert len(errors) == 1
    assert "another fewstep process" in errors[0]


def test_a_switch_changes_what_the_target_answers(small_run):
    run = small_run("switch", nodes=4, record=2, switch=1, steps=4)
    run.trainer().fit()
    assert run.path is not None
    target = Backtracked(run.path, run.target.switch)
    x, t = torch.ones(3, 2), torch.full((3,), 0.01, dtype=torch.float64)
    answers = []
    for _ in range(3):
        answers.append(target.denoiser(x, t, Condition()).clone())
        target.advance(0, None)
    assert target.denoiser is run.teacher
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[1], answers[2])


def test_bf16_trains_close_to_fp32_and_keeps_fp32_weights(small_run):
    exact, short = small_run("fp32", steps=5), small_run("bf16", steps=5)
    exact.trainer().fit()
    short.trainer(settings=replace(short.settings, precision="bf16")).fit()
    for (name, a), b in zip(exact.student.named_parameters(), short.student.parameters(), strict=True):
        assert b.dtype == torch.float32, name
        torch.testing.assert_close(a, b, atol=2e-2, rtol=0)
    assert not equal(exact.student, short.student)


def test_stages_are_checked_when_built(small_run):
    run = small_run("checks")
    phase = run.stages[0].phases[0]
    for build, sentence in (
        (lambda: Phase("p", run.fake, []), "at least one term"),
        (lambda: replace(phase, every=0), "'every' must be at least 1"),
        (lambda: Stage("s", 0, [phase]), "at least 1 step"),
        (lambda: Stage("s", 1, []), "at least one phase"),
        (lambda: Stage("s", 1, [phase, phase]), "two phases have the same name"),
    ):
        with pytest.raises(UserError, match=sentence):
            build()


def test_a_folder_that_holds_a_run_is_not_overwritten(small_run):
    run = small_run("kept", steps=6)
    run.trainer().fit()
    before = (run.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a run already"):
        small_run("kept", steps=6).trainer().fit()
    assert (run.folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "content", ['{"epoch": 3}\n', "notes\n", '{"step": 3, "stage": "distill", "evaluations": 8}\n']
)
def test_a_log_that_is_another_runs_or_no_log_is_not_cut(small_run, content):
    run = small_run("mine", steps=2)
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl: is the log of a run already, or somebody's own"):
        run.trainer().fit()
    assert (run.folder / "metrics.jsonl").read_text() == content
    assert not (run.folder / "checkpoints").exists()


@pytest.mark.parametrize("name", ["step-00000004.safetensors", "step-00000004"])
def test_where_no_checkpoint_can_be_read_nothing_is_begun_or_renamed(small_run, name):
    run = small_run("mine", steps=2)
    path = run.folder / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for resume, sentence in ((False, "holds a run already"), (True, "none of its 1 checkpoints can be gone on from")):
        with pytest.raises(UserError, match=sentence):
            run.trainer().fit(resume)
        assert path.read_text() == "mine"


def test_resuming_with_other_threads_warns(small_run):
    run = small_run("threads", steps=6)
    run.trainer().fit()
    again, watcher = small_run("threads", steps=8), Silent()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again.trainer(listeners=[watcher]).fit(resume=True)
    finally:
        torch.set_num_threads(threads)
    assert any(f"threads {threads + 1}" in sentence for sentence in watcher.said)


@pytest.mark.parametrize("then", [GENERATOR, GENERATOR - 1])
def test_resuming_says_whether_the_draws_change(small_run, monkeypatch, then):
    with monkeypatch.context() as patch:
        patch.setattr("fewstep.training.saving.snapshots.GENERATOR", then)
        small_run("draws", steps=6).trainer().fit()
    watcher = Silent()
    small_run("draws", steps=8).trainer(listeners=[watcher]).fit(resume=True)
    said = [sentence for sentence in watcher.said if "other noise" in sentence]
    assert len(said) == (then != GENERATOR)
    assert all(f"generator {then}, this version's from generator {GENERATOR}" in sentence for sentence in said)


def test_a_run_folder_that_is_removed_meanwhile_is_one_sentence(small_run):
    import shutil

    run = small_run("gone")

    def remove(step: int) -> dict[str, float]:
        if step == 5:
            shutil.rmtree(run.folder)
        return {}

    with pytest.raises(UserError, match=r"metrics.jsonl: could not be written: it, or its folder, has been removed"):
        run.trainer(probes=[Probe("remove", 5, remove)]).fit()
