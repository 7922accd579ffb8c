"""Networks that wait in the host's memory: no bit of a run changes, and each use finds what it
needs on the device and no more, on a device that is made up (``device_kit``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_diverged import BadGradient
from torch import Tensor, nn

from device_kit import CARD, Card, at_work
from fewstep.denoisers import EDMInputs, NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.objectives import DiffInstructWeight, DistributionMatching, EDMWeight, ScoreMatching
from fewstep.planning.waiting import where_idle_waits
from fewstep.prediction import EDM
from fewstep.runs.distill import distill
from fewstep.system.files import read_tensors
from fewstep.targets import Fixed
from fewstep.targets.path_probes import Probes
from fewstep.targets.record import RecordByDistance
from fewstep.times import LogNormalTimes
from fewstep.training import SGD, Adam8bit, Diverged, Phase, Probe, Settings, Stage, Term, Trainer
from fewstep.training.health.fake_score_health import FakeScoreLag
from fewstep.training.layout import units
from fewstep.training.monitors import Monitor
from fewstep.training.offload import Tight, build_room, check_offload
from fewstep.training.reporting.log import read_log
from fewstep.training.turns import Turns
from interrupt_kit import Interrupted, Interrupter

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")


@pytest.fixture
def card(monkeypatch):
    with at_work(monkeypatch) as card:
        yield card


def places(*models: nn.Module) -> list[str]:
    """Where models are: "card", "host", or both."""
    found = ({value.device for value in (*model.parameters(), *model.buffers())} for model in models)
    return ["card" if each == {CARD} else "host" if each == {CPU} else "both" for each in found]


def figure(model: nn.Module) -> dict[str, float]:
    """A number of a denoiser of points, computed where it is."""
    place = next(model.parameters()).device
    with torch.no_grad():
        x = torch.linspace(-1, 1, 12).view(6, 2).to(place)
        return {f"on_{place.type}": float(model(x, torch.full((6,), 0.5, dtype=torch.float64)).sum().cpu())}


def trainer_of(run, listeners=(), **changes) -> Trainer:
    """A trainer that measures a network, whatever there is, and the run's health."""
    made: list[Trainer] = []
    probes = [
        Probe("teacher", 4, lambda _: figure(run.teacher), [run.teacher]),
        Probe("any", 6, lambda _: figure(made[0].average)),
        Monitor([FakeScoreLag(run.score_matching, run.prior)], 5, 8),
    ]
    made.append(Trainer(run.folder, run.stages, run.student, replace(run.settings, **changes), None, probes, listeners))
    return made[0]


WAITING = {"device": CARD, "offload": True}


def logged(run) -> list[dict]:
    """The log but for its times, with measurements wherever they were made."""
    lines = [
        {key.replace(f"on_{CARD.type}", "on_cpu"): value for key, value in line.items() if key != "seconds"}
        for line in read_log(run.folder / "metrics.jsonl")
    ]
    return lines


def saved(run) -> dict[str, Tensor]:
    """The tensors of the last checkpoint."""
    return read_tensors(sorted((run.folder / "checkpoints").iterdir())[-1])[0]


def same(first, second) -> None:
    assert logged(first) == logged(second)
    one, other = saved(first), saved(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def path_of_three(small_run, name):
    return small_run(name, nodes=3, steps=8)


def portions(small_run, name):
    run = small_run(name, nodes=1, steps=7)
    run.settings = replace(run.settings, accumulate=2)
    return run


def gradient_descent(small_run, name):
    run = small_run(name, nodes=3, steps=8)
    run.stages = [
        replace(stage, phases=[replace(phase, optimizer=SGD(1e-3), every=2) for phase in stage.phases])
        for stage in run.stages
    ]
    return run


def by_distance(small_run, name):
    """A path whose nodes are measured against the teacher, when the first is looked for."""
    run = small_run(name, nodes=3, steps=8)
    probes = Probes(run.student, run.prior, LogNormalTimes(), run.teacher, 8)
    rule = RecordByDistance(distance=1e-3, max_steps=5).rule(probes, run.teacher)
    record = run.stages[0]
    phase = replace(record.phases[0], after_step=run.path.recorder(rule))
    run.stages[0] = replace(record, phases=[phase])
    return run


def adapters(small_run, name):
    """Student and fake score are adapters on the teacher."""
    run = small_run(name)
    base = AdaptedBase(run.teacher.network)

    def role(seed: int) -> NetworkDenoiser:
        adapted = AdaptedNetwork.fresh(base, Form(2, 2.0), seed)
        return NetworkDenoiser(adapted, run.teacher.schedule, EDM(1.0), EDMInputs(1.0), (2,))

    run.student, run.fake, times = role(0), role(1), LogNormalTimes()
    run.score_matching = ScoreMatching(run.fake, run.student, times, EDMWeight(1.0))
    matching = DistributionMatching(run.student, run.fake, Fixed(run.teacher), times, DiffInstructWeight())
    phases = [
        Phase("student", run.student, [Term(matching, run.prior)]),
        Phase("fake", run.fake, [Term(run.score_matching, run.prior)]),
    ]
    run.stages = [Stage("distill", 8, phases)]
    return run


RUNS = [path_of_three, portions, gradient_descent, by_distance, adapters]


@pytest.mark.parametrize("made", RUNS)
def test_a_run_whose_idle_networks_wait_is_the_run_bit_for_bit(small_run, made, monkeypatch):
    """Checkpoints, averages, the log, and what was measured meanwhile."""
    here = made(small_run, "here")
    trainer_of(here).fit()
    there = made(small_run, "there")
    with at_work(monkeypatch):
        waiting = trainer_of(there, **WAITING)
        waiting.fit()
        assert places(waiting.average) == ["card"]
        # What was measured was on the card, whoever said that it uses it, and whoever did not.
        assert not any("on_cpu" in line for line in read_log(there.folder / "metrics.jsonl"))
    same(here, there)


def test_moments_of_8_bits_wait_as_others_do(small_run, monkeypatch):
    pytest.importorskip("bitsandbytes", reason="the extra 'bitsandbytes' is not installed")
    runs = [small_run(name, nodes=3, steps=6, width=64) for name in ("here", "there")]
    for run in runs:
        run.stages = [
            replace(stage, phases=[replace(phase, optimizer=Adam8bit(1e-3)) for phase in stage.phases])
            for stage in run.stages
        ]
    trainer_of(runs[0]).fit()
    with at_work(monkeypatch):
        waiting = trainer_of(runs[1], **WAITING)
        waiting.fit()
    same(*runs)
    for optimizer in waiting._optimizers.values():
        maps = [entry["qmap1"] for entry in optimizer.state.values() if "qmap1" in entry]
        assert len(maps) > len({id(value) for value in maps}) == 1


def test_a_run_goes_on_with_what_waited_and_without(small_run, monkeypatch):
    whole = path_of_three(small_run, "whole")
    trainer_of(whole).fit()
    for name, again in (("with", WAITING), ("without", {})):
        with at_work(monkeypatch):
            with pytest.raises(Interrupted):
                trainer_of(path_of_three(small_run, name), [Interrupter(11)], **WAITING).fit()
            last = path_of_three(small_run, name)
            if again:
                trainer_of(last, **again).fit(resume=True)
        if not again:
            trainer_of(last).fit(resume=True)
        same(whole, last)


class Seen:
    """What was where in each turn, as it ended."""

    def __init__(self, monkeypatch, run, trainer: Callable[[], Trainer]):
        self.turns: list[tuple[str, dict[str, str]]] = []
        self.held: list[int] = []
        self.waiting_gradients = 0
        take = Turns.take

        def watched(turns: Turns, phase: Phase, *rest):
            report = take(turns, phase, *rest)
            models = {"student": run.student, "fake": run.fake, "teacher": run.teacher}
            if run.path is not None and run.target._slot is not None:
                models["slot"] = run.target._slot
            found = dict(zip(models, places(*models.values()), strict=True))
            for name, optimizer in trainer()._optimizers.items():
                moments = [v for entry in optimizer.state.values() for v in entry.values() if v.ndim]
                found[f"moments of {name}"] = "+".join(
                    sorted({"card" if v.device == CARD else "host" for v in moments})
                )
            self.turns.append((phase.name, found))
            self.held.append(self._bytes(trainer()))
            idle = [p for name, model in models.items() if model is not phase.network for p in model.parameters()]
            self.waiting_gradients += sum(value.grad is not None for value in idle)
            return report

        monkeypatch.setattr(Turns, "take", watched)

    @staticmethod
    def _bytes(trainer: Trainer) -> int:
        """Bytes on the card of networks, gradients and moments."""
        assert isinstance(trainer._room, Tight)
        weights = {id(v): v for unit in trainer._room._units for v in (*unit.parameters(), *unit.buffers())}
        gradients = [v.grad for v in weights.values() if v.grad is not None]
        moments = [
            v for each in trainer._optimizers.values() for e in each.state.values() for v in e.values() if v.ndim
        ]
        there = [v for v in (*weights.values(), *gradients, *moments) if v.device == CARD]
        return sum(v.numel() * v.element_size() for v in there)


def test_each_turn_finds_what_it_uses_and_no_more(small_run, monkeypatch):
    run = small_run(nodes=3, record=2, switch=3, steps=5)
    made: list[Trainer] = []
    expected = where_idle_waits(run.stages, run.student, run.trainer().average, [[run.teacher]])
    with at_work(monkeypatch):
        made.append(Trainer(run.folder, run.stages, run.student, replace(run.settings, **WAITING)))
        seen = Seen(monkeypatch, run, lambda: made[0])
        made[0].fit()
    assert seen.turns[0] == (
        "degrade",
        {"student": "card", "fake": "card", "teacher": "host", "slot": "host"} | {"moments of degrade": "card"},
    )
    first, second = seen.turns[4], seen.turns[5]
    assert first == (
        "student",
        {"student": "card", "fake": "card", "teacher": "host", "slot": "card", "moments of student": "card"}
        | {"moments of fake": ""},
    )
    assert second == (
        "fake",
        {"student": "card", "fake": "card", "teacher": "host", "slot": "host", "moments of student": "host"}
        | {"moments of fake": "card"},
    )
    assert seen.turns[-2][1]["teacher"] == "card"
    assert seen.turns[-1][1]["teacher"] == "host"
    assert seen.waiting_gradients == 0
    assert max(seen.held) == expected.state


@pytest.mark.parametrize("made", [portions, by_distance, adapters])
def test_a_plan_counts_the_bytes_that_are_there(small_run, made, monkeypatch):
    run = made(small_run, "run")
    expected = where_idle_waits(run.stages, run.student, run.trainer().average, [[run.teacher]])
    trainers: list[Trainer] = []
    with at_work(monkeypatch):
        trainers.append(Trainer(run.folder, run.stages, run.student, replace(run.settings, **WAITING)))
        seen = Seen(monkeypatch, run, lambda: trainers[0])
        trainers[0].fit()
    assert max(seen.held) == expected.state


def test_what_is_carried_is_counted_by_hand(small_run):
    """Student and fake score take turns: the student's average and its target come and go, and so
    do the moments of both.
    """
    run = small_run()
    one = sum(value.numel() * value.element_size() for value in run.teacher.parameters())
    buffers = sum(value.numel() * value.element_size() for value in run.teacher.buffers())
    found = where_idle_waits(run.stages, run.student, run.trainer().average, [])
    assert found.carried == 2 * (2 * (one + buffers) + 2 * 2 * one)
    assert found.state == 4 * (one + buffers) + 3 * one


def test_a_phase_alone_carries_nothing_and_a_stage_that_holds_more_counts(small_run):
    run = small_run(nodes=3)
    average = run.trainer().average
    assert where_idle_waits(run.stages[:1], run.student, average, []).carried == 0
    both, last = (where_idle_waits(stages, run.student, average, []).state for stages in (run.stages, run.stages[1:]))
    assert both == last


def test_the_term_whose_gradient_is_no_number_is_found_though_its_networks_wait(small_run, monkeypatch):
    """They are looked for when the next phase has had its turn, in which the teacher is not
    used.
    """
    run = small_run()
    terms = [
        Term(run.matching, run.prior, name="first"),
        Term(BadGradient(run.matching, run.student, 1), run.prior, name="second"),
    ]
    fake = run.stages[0].phases[1]
    stages = [Stage("s", 4, [Phase("student", run.student, terms), fake])]
    settings = Settings(batch=8, log_every=50, **WAITING)
    with at_work(monkeypatch), pytest.raises(Diverged, match=r"the gradient of 'second' in phase 'student' was not"):
        Trainer(run.folder, stages, run.student, settings).fit()


def test_networks_that_share_weights_come_and_go_together(card):
    first, second, other = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(2, 2)
    second.weight = first.weight
    room = Tight(CARD)
    room.settle([first, second, other])
    assert places(first, second, other) == ["host"] * 3
    room.take_in(second)
    assert places(second, other) == ["card", "host"]
    assert second.weight is first.weight
    room.take_in(other)
    assert places(first, second, other) == ["host", "host", "card"]
    room.take_in_all()
    assert places(first, second, other) == ["card"] * 3


def test_what_is_around_networks_is_always_at_work(small_run, card):
    run = small_run()
    average = run.trainer().average
    room = Tight(CARD)
    room.settle([average, freeze(run.teacher)])
    assert average.count.device == CARD
    assert {value.device for value in average.average.parameters()} == {CPU}


def test_nothing_waits_where_there_is_nowhere_to_wait(small_run, monkeypatch):
    run = small_run()
    with pytest.raises(
        UserError,
        match=r"^'training\.offload: true' needs a GPU, and this run works on the CPU, .*; set 'training\.offload' to "
        r"false, or 'training\.device' to 'cuda'\.$",
    ):
        run.trainer(settings=replace(run.settings, offload=True))
    monkeypatch.setattr("fewstep.training.offload.dist.is_initialized", lambda: True)
    with pytest.raises(UserError, match=r"is for one process: 'distributed\.mode: fsdp' has divided weights"):
        check_offload("fsdp", CARD)
    with pytest.raises(UserError, match=r"is for one process: 'distributed\.mode: ddp' keeps gradients on the GPU"):
        build_room(True, "ddp", CARD)
    assert not isinstance(build_room(False, "ddp", CARD), Tight)


def test_a_recipe_that_asks_for_it_on_the_cpu_is_refused_before_anything_is_opened(tmp_path):
    asked = ["training.offload=true", "training.device=cpu", "teacher={kind: file, path: /nowhere.safetensors}"]
    with pytest.raises(UserError, match=r"^'training\.offload: true' needs a GPU"):
        distill("mixture2d-diff-instruct", asked, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


TINY = ("training.steps=12", "training.batch=8", "training.checkpoint_every=5", "training.health_every=4")
MEASURED = ("evaluation.every=6", "evaluation.samples=64", "evaluation.draws=1", "evaluation.teacher_steps=[2]")


@pytest.mark.parametrize("name", ["mixture2d-disback-lora"])
def test_a_recipes_networks_are_built_in_the_hosts_memory_and_its_results_are_the_same(name, tmp_path, monkeypatch):
    settings = (*TINY, *MEASURED)
    # Inside, so that measurements are put together of the same operations.
    with Card():
        here = distill(name, settings, tmp_path / "here")
    for module in ("fewstep.recipes.building.distillation", "fewstep.runs.distill"):
        monkeypatch.setattr(sys.modules[module], "resolve_device", lambda _: CARD)
    settle = Tight.settle
    built: list[str] = []

    def watched(room: Tight, modules):
        found = list(modules)
        built.extend(places(*units(found)))
        settle(room, found)

    monkeypatch.setattr(Tight, "settle", watched)
    with at_work(monkeypatch):
        there = distill(name, (*settings, "training.offload=true"), tmp_path / "there")
    assert len(built) > 4
    assert set(built) == {"host"}
    for file in ("student.safetensors", "adapter.safetensors"):
        if (here / file).is_file():
            (one, _), (other, _) = read_tensors(here / file), read_tensors(there / file)
            assert all(torch.equal(value, other[key]) for key, value in one.items())
    lines = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder / "metrics.jsonl")]
        for folder in (here, there)
    ]
    assert lines[0] == lines[1]
    assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in there.iterdir())
