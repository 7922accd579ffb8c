"""Roles on devices of their own (``training.placement``): a placed run is the run on one device bit
for bit, and what travels is no larger than a batch, on devices that are made up (``device_kit``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from test_combinations import VARIANTS, tiny

from device_kit import CARD, SECOND, Card, Move, at_work
from fewstep.errors import UserError
from fewstep.networks.adapters import bases_of
from fewstep.networks.elsewhere import given_place
from fewstep.planning.plan import plan_recipe
from fewstep.planning.rehearsal import Rehearsal
from fewstep.planning.twin import twin
from fewstep.recipes import DistillRecipe, config, load_recipe
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.building.placement import place_roles
from fewstep.runs.distill import distill, pretrain
from fewstep.system.files import read_tensors
from fewstep.training import Silent, Trainer
from fewstep.training.reporting.log import read_log
from fewstep.training.turns import Turns
from interrupt_kit import Interrupted, Interrupter

CPU = torch.device("cpu")
NAMED = {"cpu": CPU, "cuda:0": CARD, "cuda:1": SECOND}
TINY = ("training.steps=12", "training.batch=8", "training.checkpoint_every=5", "training.health_every=4")
MEASURED = ("evaluation.every=6", "evaluation.samples=64", "evaluation.draws=1", "evaluation.teacher_steps=[2]")
APART = {"teacher": "cuda:1", "fake": "cuda:1"}
BATCH = 8
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")


def set_to(places: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"training.placement.{role}={name}" for role, name in places.items())


@pytest.fixture
def cards(monkeypatch) -> Iterator[Card]:
    """Inside, a run works on the first of two cards, and names mean them."""

    def devices(section: config.Placement) -> dict[config.PlacedRole, torch.device]:
        named = {role: getattr(section, role) for role in get_args(config.PlacedRole)}
        return {role: NAMED[name] for role, name in named.items() if name is not None}

    monkeypatch.setattr(config.Placement, "devices", devices)
    for module in ("fewstep.recipes.building.distillation", "fewstep.runs.distill"):
        monkeypatch.setattr(sys.modules[module], "resolve_device", lambda _: CARD)
    with at_work(monkeypatch) as card:
        yield card


def on_one_device(name: str, folder: Path, *settings: str) -> Path:
    # Inside, so that measurements are put together of the same operations.
    with Card():
        return distill(name, (*TINY, *MEASURED, "training.device=cpu", *settings), folder)


def logged(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder / "metrics.jsonl")]


def assert_same(one: Path, other: Path) -> None:
    """The same student, the same log, and the same checkpoints byte for byte."""
    assert (one / "student.safetensors").read_bytes() == (other / "student.safetensors").read_bytes()
    assert logged(one) == logged(other)
    here, there = ({path.name: path.read_bytes() for path in (each / "checkpoints").iterdir()} for each in (one, other))
    assert len(here) > 1
    assert here == there


RUNS = [
    ("mixture2d-diff-instruct", APART),
    ("mixture2d-diff-instruct", {"student": "cuda:1"}),
    ("mixture2d-disback", APART),
    ("mixture2d-disback", {"teacher": "cpu", "fake": "cuda:1"}),
    ("mixture2d-dmd2-4step", APART),
    ("mixture2d-dmd2-ddil", {"teacher": "cpu", "student": "cuda:1"}),
    ("mixture2d-sid", {"teacher": "cuda:1", "fake": "cpu"}),
    ("mixture2d-add", {"teacher": "cuda:1"}),
    ("mixture2d-pd", {"teacher": "cuda:1"}),
    ("mixture2d-cd", {"student": "cuda:1"}),
    ("mixture2d-ctm", {"teacher": "cuda:1"}),
    ("mixture2d-kd", {"teacher": "cpu", "student": "cuda:1"}),
    ("mixture2d-stf", {"student": "cuda:1"}),
    ("mixture2d-disback-lora", {"teacher": "cuda:1", "fake": "cuda:1", "student": "cuda:1"}),
]


@pytest.mark.parametrize(("name", "places"), RUNS, ids=[f"{name}-{'-'.join(places)}" for name, places in RUNS])
def test_a_placed_run_is_the_run_on_one_device_bit_for_bit(name, places, tmp_path, request):
    """Student, log and checkpoints, through recording, switches, critics, stages and averages."""
    here = on_one_device(name, tmp_path / "here")
    request.getfixturevalue("cards")
    assert_same(here, distill(name, (*TINY, *MEASURED, *set_to(places)), tmp_path / "there"))


def test_a_placed_run_keeps_the_same_best_student(tmp_path, request):
    keep = ("training.keep_best={}", "evaluation.every=2")
    here = on_one_device("mixture2d-disback", tmp_path / "here", *keep)
    request.getfixturevalue("cards")
    there = distill("mixture2d-disback", (*TINY, *MEASURED, *set_to(APART), *keep), tmp_path / "there")
    assert_same(here, there)
    best = "student.best.safetensors"
    assert (here / best).read_bytes() == (there / best).read_bytes()


IMAGES = [
    ("digits-dmd2", {**APART, "features": "cpu"}),
    ("digits-ctm", {"student": "cuda:1", "features": "cuda:1"}),
    ("digits-pcm", {"teacher": "cuda:1"}),
    ("digits-fastgan-disback", {"student": "cuda:1"}),
    ("digits-sid-lsg", {"fake": "cuda:1"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "places"), IMAGES, ids=[name for name, _ in IMAGES])
def test_a_placed_run_on_images_is_the_run_on_one_device(name, places, tmp_path, request):
    """Critics on features, generators, perceptual distances, guided fake scores."""
    here = on_one_device(name, tmp_path / "here")
    request.getfixturevalue("cards")
    assert_same(here, distill(name, (*TINY, *MEASURED, *set_to(places)), tmp_path / "there"))


def trained(recipe: DistillRecipe, folder: Path, device: torch.device) -> Distillation:
    parts = build_distillation(recipe, folder)
    settings = replace(build_settings(recipe.training), device=device)
    Trainer(folder, parts.stages, parts.average, settings, listeners=[Silent()]).fit()
    return parts


@pytest.mark.parametrize("name", VARIANTS)
def test_every_method_may_be_placed(name, tmp_path, request):
    """No network that a method builds is forgotten, wherever the student is: what it trains is on
    the device of its role, and no bit is another.
    """
    stages = build_distillation(tiny(VARIANTS[name]), tmp_path / "looked at").stages
    terms = [term for stage in stages for phase in stage.phases for term in phase.terms]
    if any(term.objective.full_precision for term in terms):
        pytest.skip("differentiates forwards, which the devices that are made up do not")
    with Card():
        alone = trained(tiny(VARIANTS[name]), tmp_path / "alone", CPU)
    request.getfixturevalue("cards")
    parts = trained(tiny(VARIANTS[name], placement={"student": "cuda:1"}), tmp_path / "placed", CARD)
    for phase in (phase for stage in parts.stages for phase in stage.phases):
        place = SECOND if phase.network is parts.student else CARD
        assert given_place(phase.network) == place
        assert {value.device for value in phase.trained.parameters()} == {place}
    expected, found = (each.average.average.state_dict() for each in (alone, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key].cpu()) for key, value in expected.items())


@pytest.mark.parametrize("name", ["distribution-matching, low rank", "distribution-matching, low rank, fake trunk"])
def test_an_adapter_on_a_path_of_copies_goes_with_its_own_base(name, tmp_path, request):
    """The base of the fake score is a copy of the teacher's network, and is where the score is."""
    with Card():
        alone = trained(tiny(VARIANTS[name], target="backtracked"), tmp_path / "alone", CPU)
    request.getfixturevalue("cards")
    recipe = tiny(VARIANTS[name], target="backtracked", placement={"fake": "cuda:1"})
    parts = trained(recipe, tmp_path / "placed", CARD)
    assert parts.fake is not None
    assert {value.device for base in bases_of(parts.fake) for value in base.parameters()} == {SECOND}
    assert {value.device for value in parts.teacher.parameters()} == {CARD}
    expected, found = (each.average.average.state_dict() for each in (alone, parts))
    assert all(torch.equal(value, found[key].cpu()) for key, value in expected.items())


def test_a_critic_on_networks_of_its_own_may_be_placed(tmp_path, request):
    asked = ("method.adversarial={kind: classifier-features}", "states.kind=usual")
    here = on_one_device("digits-dmd2", tmp_path / "here", *asked)
    request.getfixturevalue("cards")
    places = set_to({"critic": "cuda:1", "student": "cpu"})
    assert_same(here, distill("digits-dmd2", (*TINY, *MEASURED, *asked, *places), tmp_path / "there"))


@pytest.mark.parametrize("placed_first", [True, False])
def test_a_placed_run_goes_on_unplaced_and_the_reverse(placed_first, tmp_path, request):
    name, settings = "mixture2d-disback", (*TINY, *MEASURED)
    whole = on_one_device(name, tmp_path / "whole")
    request.getfixturevalue("cards")
    first, then = (APART, {}) if placed_first else ({}, APART)
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        distill(name, (*settings, *set_to(first)), folder, listeners=[Interrupter(7)])
    distill(name, (*settings, *set_to(then)), folder, resume=True)
    assert_same(whole, folder)


class Watched:
    """What went from one device to another in each turn, by the name of its phase."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, card: Card):
        self.turns: list[tuple[str, list[Move]]] = []
        take = Turns.take

        def watched(turns: Turns, phase, *rest):
            begun = len(card.moves)
            report = take(turns, phase, *rest)
            self.turns.append((phase.name, card.moves[begun:]))
            return report

        monkeypatch.setattr(Turns, "take", watched)

    def between_cards(self, turn: int) -> list[tuple[int, ...]]:
        """The shapes of what went from card to card in a turn."""
        _, moves = self.turns[turn]
        return sorted(move.shape for move in moves if {move.source, move.goal} == {CARD, SECOND})


def test_what_travels_in_a_step_is_counted_by_hand(tmp_path, monkeypatch, cards):
    """Of the student's turn: x_t to both networks, both estimates back, and the flag of what is not
    finite. Of the fake score's: the state and its noise, the student's samples, and the flag.
    Nothing else, and no weight.
    """
    seen = Watched(monkeypatch, cards)
    distill("mixture2d-diff-instruct", (*TINY, *set_to(APART)), tmp_path / "run")
    assert [name for name, _ in seen.turns[:5]] == ["student", "fake", "fake", "student", "fake"]
    row = (BATCH, 2)
    assert seen.between_cards(3) == [(), *[row] * 4]
    assert seen.between_cards(4) == [(), *[row] * 3]
    for number, _ in enumerate(seen.turns):
        assert set(seen.between_cards(number)) <= {(), row}


def built(name: str, folder: Path, places: Mapping[str, str]) -> Distillation:
    recipe = load_recipe(name, [*TINY, *set_to(places)])
    assert isinstance(recipe, DistillRecipe)
    return build_distillation(recipe, folder)


def test_networks_and_moments_are_on_the_device_of_their_role(tmp_path, monkeypatch, cards):
    places = {"teacher": "cpu", "fake": "cuda:1"}
    parts = built("mixture2d-disback", tmp_path / "built", places)
    assert [given_place(each) for each in (parts.teacher, parts.fake, parts.student, parts.average)] == [
        NAMED["cpu"],
        SECOND,
        CARD,
        CARD,
    ]
    moments: dict[str, set[torch.device]] = {}
    take = Turns.take

    def watched(turns: Turns, phase, steps, optimizer, rate):
        report = take(turns, phase, steps, optimizer, rate)
        tensors = [value for entry in optimizer.state.values() for value in entry.values() if value.ndim]
        gradients = [parameter.grad for parameter in phase.network.parameters()]
        moments.setdefault(phase.name, set()).update(value.device for value in (*tensors, *gradients))
        return report

    monkeypatch.setattr(Turns, "take", watched)
    distill("mixture2d-disback", (*TINY, *set_to(places)), tmp_path / "run")
    assert moments == {"degrade": {SECOND}, "student": {CARD}, "fake": {SECOND}}


def test_files_of_a_placed_run_say_nothing_of_devices(tmp_path, cards):
    folder = distill("mixture2d-diff-instruct", (*TINY, *set_to(APART)), tmp_path / "run")
    tensors, metadata = read_tensors(folder / "student.safetensors")
    assert {value.device.type for value in tensors.values()} == {"cpu"}
    assert "cuda" not in str(metadata)


def recipe_of(name: str, *settings: str) -> DistillRecipe:
    recipe = load_recipe(name, settings)
    assert isinstance(recipe, DistillRecipe)
    return recipe


CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        (
            "digits-add",
            ("training.placement.fake=cuda:1",),
            (
                r"'training\.placement\.fake' is 'cuda:1', and this recipe has no network of that role; leave it out, "
                r"or place one of its roles: teacher, student, features\."
            ),
        ),
        (
            "digits-dmd2",
            ("training.placement.critic=cuda:1",),
            r"'training\.placement\.critic' is 'cuda:1', .*: teacher, fake, student, features\.",
        ),
        (
            "digits-dmd2",
            ("training.placement.fake=cuda:1", "training.offload=true"),
            r"'training\.placement' and 'training\.offload: true' cannot be combined: .*; leave one of both out\.",
        ),
        (
            "mixture2d-disback-lora",
            ("training.placement.teacher=cuda:1", "training.placement.fake=cuda:1"),
            (
                r"'training\.placement' has 'student' on 'cuda:0' and 'teacher' on 'cuda:1', and here 'student' is an "
                r"adapter on the teacher's network; place both on one device\."
            ),
        ),
        (
            "mixture2d-disback-lora",
            ("training.placement.fake=cuda:1",),
            r"'training\.placement' has 'fake' on 'cuda:1' and 'teacher' on 'cuda:0', and here 'fake' is an adapter",
        ),
        (
            "digits-dmd2",
            ("training.placement.fake=cuda:2",),
            (
                r"'training\.placement\.fake' is 'cuda:2', which needs a GPU of that number, and torch finds 2 "
                r"GPU\(s\) on this machine; name one of these: 'cuda:0', 'cuda:1', or 'cpu'\."
            ),
        ),
    ],
)
def test_what_cannot_be_placed_is_refused_in_a_sentence(name, settings, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=f"^{sentence}"):
        place_roles(recipe_of(name, *settings), CUDA)


@pytest.mark.parametrize("given", ["mps", "cuda", "cuda:01", "cuda:-1", "cuda:1x", "cuda:256", "CPU", ""])
def test_what_is_no_device_is_refused_when_the_recipe_is_read(given):
    sentence = rf"in 'training\.placement\.teacher' '{given}' is no place for networks; use 'cpu', or a GPU by its "
    with pytest.raises(UserError, match=sentence):
        load_recipe("digits-dmd2", [f"training.placement.teacher='{given}'"])


def test_several_processes_have_a_device_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("fewstep.recipes.building.placement.distributed.size", lambda: 4)
    with pytest.raises(UserError, match=r"^'training\.placement' divides .* this run has 4 processes, .* torchrun\.$"):
        place_roles(recipe_of("digits-dmd2", "training.placement.fake=cuda:1"), CUDA)
    assert place_roles(recipe_of("digits-dmd2"), CUDA) == {}


def test_a_pretraining_has_no_roles_to_place(tmp_path):
    with pytest.raises(UserError, match=r"^'training\.placement\.teacher' is for a distillation, .*'training\.device'"):
        pretrain("digits-teacher", ["training.placement.teacher=cpu"], tmp_path / "run")


def test_a_recipe_says_a_placement_only_where_it_has_one(tmp_path):
    plain, placed = recipe_of("digits-dmd2"), recipe_of("digits-dmd2", "training.placement.fake=cuda:1")
    assert "placement" not in plain.model_dump(mode="json")["training"]
    assert placed.model_dump(mode="json")["training"]["placement"] == {"fake": "cuda:1"}
    assert twin(placed).training.placement == config.Placement()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal that costs nothing."""
    monkeypatch.setattr(
        "fewstep.planning.plan.rehearse",
        lambda recipe: Rehearsal(dict.fromkeys(("record", "distill"), 8.0), {}, 1.0, 0.8),
    )


@pytest.mark.usefixtures("counted")
def test_a_plan_counts_the_state_of_each_device_by_hand():
    """Student and average on one, teacher and fake score on the other: a gradient and two moments
    beside the weights of each that is trained.
    """
    alone = plan_recipe("mixture2d-diff-instruct", [])
    plan = plan_recipe("mixture2d-diff-instruct", list(set_to(APART)), memory_gb=80.0)
    weights = {part.role: part.bytes for part in plan.parts}
    training = {part.role: 3 * 4 * part.parameters for part in plan.parts}
    assert plan.by_device == {
        "cuda:0": weights["student"] + weights["average of student (distill)"] + training["student"],
        "cuda:1": weights["teacher"] + weights["fake score"] + training["fake score"],
    }
    assert sum(plan.by_device.values()) == alone.settings[0].state
    assert {part.role: part.device for part in plan.parts} == {
        "teacher": "cuda:1",
        "fake score": "cuda:1",
        "student": "cuda:0",
        "average of student (distill)": "cuda:0",
    }
    assert {(setting.mode, setting.gpus, setting.state) for setting in plan.settings} == {
        ("placed", 2, max(plan.by_device.values()))
    }
    assert {setting.batch for setting in plan.settings} == {alone.batch}
    assert not alone.by_device
    assert {part.device for part in alone.parts} == {""}


@pytest.mark.usefixtures("counted")
def test_a_plan_counts_the_best_student_where_the_student_is():
    for places in (APART, {"student": "cuda:1"}):
        kept = plan_recipe("mixture2d-diff-instruct", [*set_to(places), "training.keep_best={}"], memory_gb=80.0)
        plain = plan_recipe("mixture2d-diff-instruct", list(set_to(places)), memory_gb=80.0)
        parts = {part.role: part for part in kept.parts}
        assert parts["best student"].device == parts["student"].device == places.get("student", "cuda:0")
        more = {name: kept.by_device[name] - plain.by_device[name] for name in plain.by_device}
        assert more == {name: parts["student"].bytes * (name == parts["student"].device) for name in more}


@pytest.mark.usefixtures("counted")
def test_the_card_that_holds_most_decides_whether_a_plan_fits():
    """A GPU of the state and the activations of one device, and one of a byte less."""
    places = list(set_to(APART))
    exact = plan_recipe("mixture2d-diff-instruct", places).settings[0].memory
    for lacking, fits in ((0, True), (2**20, False)):
        plan = plan_recipe("mixture2d-diff-instruct", places, memory_gb=(exact - lacking) / 2**30)
        assert plan.settings[0].fits(exact - lacking) == fits
    slot = plan_recipe("mixture2d-disback", [*places, "training.placement.teacher=cpu"])
    assert {part.role: part.device for part in slot.parts}["target's slot"] == "cpu"
    assert slot.settings[0].state == max(size for name, size in slot.by_device.items() if name != "cpu")
