"""What a thread draws ahead is what the step would have drawn, and nothing but time depends on the
thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.condition import Classes
from fewstep.data import InMemory
from fewstep.data.images import open_images
from fewstep.denoisers import NetworkDenoiser, copy_of
from fewstep.errors import UserError
from fewstep.objectives import Denoising, EDMWeight, Loss, Objective
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.solvers import EULER, Solver
from fewstep.states import (
    Constant,
    Dagger,
    ForwardDiffusion,
    Generated,
    Mixture,
    OpenRollout,
    Pairs,
    PerBatch,
    Prior,
    RandomRollout,
    Rollout,
    Started,
    State,
    States,
    Step,
    WithGuidance,
    write_pairs,
)
from fewstep.states.step import Asked
from fewstep.times import LogNormalTimes, RhoGrid
from fewstep.training import Adam, Phase, Settings, Stage, Term, Trainer
from fewstep.training.ahead import Ahead
from fewstep.training.reporting.log import read_log
from interrupt_kit import Interrupted, Interrupter

SCHEDULE = KarrasVE()
PRIOR = Prior(SCHEDULE, (3, 8, 8), 2.5 / 80, conditions=Classes(4))
CPU = torch.device("cpu")
PLACE = Key(3, "stage", 5)


def data() -> InMemory:
    images = Key(0).normal("images", (20, 3, 8, 8))
    return InMemory(images, torch.arange(20) % 4, 4)


def forward() -> ForwardDiffusion:
    return ForwardDiffusion(data(), SCHEDULE, LogNormalTimes(), 0.5)


def pairs(folder: Path) -> Pairs:
    x = Key(0).normal("pairs", (10, 3, 8, 8))
    write_pairs(folder / "pairs.safetensors", x, x.flip(0), torch.arange(10), {})
    return Pairs(folder / "pairs.safetensors", SCHEDULE, PRIOR.time)


def rollout() -> Rollout:
    return Rollout(Solver(None, 1, EULER, RhoGrid()), PRIOR, (PRIOR.time, 0.01))


EARLY = {
    "prior": lambda folder: PRIOR,
    "forward": lambda folder: forward(),
    "guidance": lambda folder: WithGuidance(forward(), 1.0, 3.0),
    "started": lambda folder: Started(forward(), PRIOR),
    "pairs": pairs,
    "mixture": lambda folder: Mixture({"a": PRIOR, "b": forward()}, Constant({"a": 0.5, "b": 0.5})),
    "per batch": lambda folder: PerBatch({"a": PRIOR, "b": forward()}, Constant({"a": 0.5, "b": 0.5})),
}
LATE = {
    "rollout": rollout,
    "open rollout": lambda: OpenRollout(
        Solver(None, 1, EULER, RhoGrid()), PRIOR, (PRIOR.time, 0.01), SCHEDULE, LogNormalTimes()
    ),
    "random rollout": lambda: RandomRollout(Solver(None, 1, EULER, RhoGrid()), PRIOR, {1: (PRIOR.time, 0.01)}),
    "generated": lambda: Generated(Solver(None, 1, EULER, RhoGrid()), PRIOR, (PRIOR.time, 0.0)),
    "dagger": lambda: Dagger(PRIOR, 8, 4, "ring"),
    "guidance": lambda: WithGuidance(rollout(), 1.0, 3.0),
    "mixture": lambda: Mixture({"a": PRIOR, "b": rollout()}, Constant({"a": 0.5, "b": 0.5})),
    "per batch": lambda: PerBatch({"a": PRIOR, "b": rollout()}, Constant({"a": 0.5, "b": 0.5})),
}


def in_a_thread(step: Step, asked: Asked) -> Step:
    thread = threading.Thread(target=step.prepare, args=(asked,))
    thread.start()
    thread.join()
    return step


def same(a: State, b: State) -> bool:
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", EARLY)
def test_states_are_the_same_drawn_in_a_thread_from_any_sample_on(name, tmp_path):
    source = EARLY[name](tmp_path)
    assert source.ahead
    drawn, prepared = Step(PLACE, 6, 2), in_a_thread(Step(PLACE, 6, 2), Asked((source,)))
    assert not prepared.asked
    assert same(prepared.state(source), drawn.state(source))
    # Asked for what was prepared, the step after it is prepared again.
    assert source in prepared.asked.states


@pytest.mark.parametrize("name", LATE)
def test_what_runs_a_network_or_remembers_is_not_drawn_ahead(name):
    assert not LATE[name]().ahead


def test_normals_are_the_same_and_a_wrong_guess_costs_only_time():
    like, other = torch.empty(6, 3, 64, 64), torch.empty(6, 2, dtype=torch.float64)
    drawn = Step(PLACE, 6, 2)
    step = in_a_thread(
        Step(PLACE, 6, 2), Asked((), (("a", (6, 3, 64, 64), CPU), ("b", (5, 2), CPU), ("unasked", (6, 1), CPU)))
    )
    for purpose, x in (("a", like), ("a", like), ("b", other), ("c", like)):
        found = step.noise_like(purpose, x)
        assert torch.equal(found, drawn.noise_like(purpose, x))
        assert found.dtype == x.dtype
    expected = (("a", (6, 3, 64, 64), CPU), ("b", (6, 2), CPU), ("c", (6, 3, 64, 64), CPU))
    assert step.asked.normals == drawn.asked.normals == expected


@dataclass(frozen=True, eq=False)
class Noted(States):
    """Its source's states; notes who draws which step, and fails at step ``fails``."""

    source: States
    drawn: tuple[list[tuple[int, str]], ...]
    fails: int = -1

    @property
    def ahead(self) -> bool:
        return True

    def draw(self, step: Step) -> State:
        self.drawn[0].append((step.key.step, threading.current_thread().name.partition("_")[0]))
        if step.key.step == self.fails:
            raise UserError(f"the picture of step {step.key.step} cannot be read.")
        return self.source.draw(step)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("draws")]


def noted(run, fails: int = -1, steps: int = 6) -> tuple[list[Stage], Noted]:
    states = Noted(run.prior, ([],), fails)
    phases = [
        replace(phase, terms=[replace(term, states=states) for term in phase.terms]) for phase in run.stages[0].phases
    ]
    return [Stage("distill", steps, phases)], states


def test_a_run_draws_all_but_its_first_steps_in_the_thread_which_ends_with_it(small_run):
    run = small_run()
    stages, states = noted(run)
    Trainer(run.folder, stages, run.student, run.settings).fit()
    expected = [(0, "MainThread"), (1, "MainThread"), *((step, "draws") for step in (2, 3, 4, 5))]
    assert sorted(states.drawn[0]) == expected
    assert not threads()


def test_a_draw_that_fails_ends_the_run_in_its_own_sentence_at_its_step(small_run):
    run = small_run()
    stages, states = noted(run, fails=4)
    trainer = Trainer(run.folder, stages, run.student, run.settings)
    with pytest.raises(UserError, match=r"^the picture of step 4 cannot be read\.$"):
        trainer.fit()
    assert trainer.progress.step == 4
    assert (4, "draws") in states.drawn[0]
    assert [line["step"] for line in read_log(run.folder / "metrics.jsonl")] == [2, 4]
    assert not threads()


def test_what_would_fail_after_the_end_does_not(small_run):
    run = small_run()
    stages, _ = noted(run, fails=6)
    Trainer(run.folder, stages, run.student, run.settings).fit()


def test_a_run_that_is_left_leaves_no_thread_and_goes_on_byte_equal(small_run):
    whole, cut = small_run("whole", nodes=3, record=2, steps=12), small_run("cut", nodes=3, record=2, steps=12)
    whole.trainer().fit()
    with pytest.raises(Interrupted):
        cut.trainer(listeners=[Interrupter(8)]).fit()
    assert not threads()
    small_run("cut", nodes=3, record=2, steps=12).trainer().fit(resume=True)
    last = "checkpoints/step-00000016.safetensors"
    assert (cut.folder / last).read_bytes() == (whole.folder / last).read_bytes()


@dataclass(frozen=True, eq=False)
class Fickle(Objective):
    """Asks for other normals in every third step."""

    inner: Objective

    def __call__(self, step, state) -> Loss:
        loss = self.inner(step, state)
        shape = (step.rows, 3 if step.key.step % 3 else 4)
        return Loss(loss.total * (1 + step.noise_like("fickle", torch.empty(shape)).mean().abs()), loss.terms)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}])
def test_a_run_is_the_same_without_the_thread_whatever_was_guessed(small_run, monkeypatch, settings):
    """Phases at their cadences, noises that come and go, portions."""
    found = []
    for name in ("ahead", "not"):
        run = small_run(name)
        student, fake = run.stages[0].phases
        phases = [replace(student, every=3, terms=[Term(Fickle(run.matching), run.prior)]), replace(fake, every=2)]
        if name == "not":
            monkeypatch.setattr(Ahead, "learn", lambda self, stage, steps: None)
        Trainer(run.folder, [Stage("distill", 15, phases)], run.student, replace(run.settings, **settings)).fit()
        found.append((run.folder / "checkpoints" / "step-00000015.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_collection_is_drawn_in_its_step(small_run):
    """It remembers: drawn by the thread it would collect a student's states before the student has
    moved.
    """
    run = small_run()
    dagger = Dagger(Noted(run.prior, ([],)), 16, 8, "ring")
    phase = replace(run.stages[0].phases[1], terms=[Term(run.score_matching, dagger)])
    Trainer(run.folder, [Stage("distill", 5, [phase])], run.student, run.settings).fit()
    assert {name for _, name in dagger.source.drawn[0]} == {"MainThread"}


def test_a_picture_that_cannot_be_decoded_is_named(small_run, tmp_path):
    """Of a set too large to be looked at beforehand."""
    from fewstep.denoisers import EDMInputs
    from fewstep.networks import build
    from fewstep.prediction import EDM

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:02d}.png")
    images = open_images(folder, cached_bytes=0)
    bad = int(Key(0, "train", 3).integers("data-index", 2, 30)[1])
    assert bad not in [int(i) for step in range(3) for i in Key(0, "train", step).integers("data-index", 2, 30)]
    (folder / f"{bad:02d}.png").write_bytes(b"no picture")
    model = NetworkDenoiser(
        build({"kind": "small-unet", "channels": 3, "width": 8, "depth": 1}),
        SCHEDULE,
        EDM(0.5),
        EDMInputs(0.5),
        (3, 8, 8),
    )
    states = ForwardDiffusion(images, SCHEDULE, LogNormalTimes())
    stage = Stage("train", 9, [Phase("train", model, [Term(Denoising(model, EDMWeight()), states)], Adam(1e-4))])
    trainer = Trainer(tmp_path / "run", [stage], copy_of(model), Settings(batch=2))
    with pytest.raises(UserError, match=rf"'{bad:02d}\.png': is no readable PNG"):
        trainer.fit()
    assert trainer.progress.step == 3
