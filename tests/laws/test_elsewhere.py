"""Networks on another device than their callers: the same numbers and gradients, each thing carried
once, and calls of several networks begun before any is brought back (``networks.elsewhere``).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from law_kit import normals, randomised, tiny_denoiser
from torch import Tensor, nn

from device_kit import CARD, SECOND, Mixed, Move, at_work
from fewstep.condition import Classes, Condition
from fewstep.denoisers import (
    Averaged,
    Boundary,
    FrozenTrunk,
    Generator,
    Guided,
    HalfLife,
    Headed,
    freeze,
    trajectory_of,
)
from fewstep.networks import LatentMLP
from fewstep.networks.critics.critic import FeatureHead
from fewstep.networks.elsewhere import given_place, placed_on
from fewstep.objectives import DiffInstructWeight, DistributionMatching
from fewstep.objectives.games.adversarial import CleanCritic
from fewstep.objectives.scores.passes import PASSES
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.states import Prior, Step
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes
from fewstep.training import Phase, Term
from fewstep.training.reporting.reports import Report, Soundness

CPU = torch.device("cpu")
SCHEDULE = KarrasVE()
ROWS = 6


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Condition]:
    x = normals(ROWS, 2, dtype=torch.float32).to(device).requires_grad_(True)
    return x, torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64), Condition((torch.arange(ROWS) % 2).to(device))


def head() -> nn.Module:
    return randomised(FeatureHead(8, 2, 8), 4)


class Judging(nn.Module):
    """Clean samples and classes to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        assert condition.labels is not None
        return self.layer(x).squeeze(1) * (1 + condition.labels)


def a_generator() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Generator(LatentMLP(2, 2, 16, 1, 2), (2,), (2,), 2)


def a_critic() -> CleanCritic:
    return CleanCritic(randomised(Judging(), 2))


Asked = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]


def called(model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return model(x, t, condition)


def judged(model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return model.logits(x, t, condition)


KINDS: dict[str, tuple[Callable[[], nn.Module], Asked]] = {
    "denoiser": (lambda: tiny_denoiser(SCHEDULE, 2, 1), called),
    "guided": (lambda: Guided(tiny_denoiser(SCHEDULE, 2, 1), 2.0, Classes(2)), called),
    "boundary": (lambda: Boundary(tiny_denoiser(SCHEDULE, 2, 1)), called),
    "trajectory": (lambda: randomised(trajectory_of(tiny_denoiser(SCHEDULE, 2, 1)), 5), called),
    "average": (lambda: Averaged(tiny_denoiser(SCHEDULE, 2, 1), HalfLife()), called),
    "generator": (a_generator, called),
    "headed": (lambda: Headed(tiny_denoiser(SCHEDULE, 2, 1), head()), judged),
    "clean critic": (a_critic, judged),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_elsewhere_gives_the_same_with_the_same_gradients(kind, monkeypatch):
    """To x and to its parameters, bit for bit, and what it gives is where x is."""
    make, ask = KINDS[kind]
    here = make()
    x, t, condition = inputs(CPU)
    expected = ask(here, x, t, condition)
    expected.square().sum().backward()
    with at_work(monkeypatch):
        there = placed_on(make(), SECOND)
        assert given_place(there) == SECOND
        away, _, told = inputs(CARD)
        found = ask(there, away, t, told)
        assert found.device == CARD
        found.square().sum().backward()
        assert torch.equal(found.detach().cpu(), expected.detach())
        assert torch.equal(away.grad.cpu(), x.grad)
        for own, other in zip(here.parameters(), there.parameters(), strict=True):
            if own.grad is not None:
                assert other.grad.device == SECOND
                assert torch.equal(other.grad.cpu(), own.grad)


def test_a_head_on_a_frozen_trunk_is_where_the_trunk_is(monkeypatch):
    """Logits travel, features do not."""
    x, t, condition = inputs(CPU)
    expected = FrozenTrunk(freeze(tiny_denoiser(SCHEDULE, 2, 1)), head()).logits(x, t, condition)
    with at_work(monkeypatch) as card:
        critic = FrozenTrunk(placed_on(freeze(tiny_denoiser(SCHEDULE, 2, 1)), SECOND), head().to(SECOND))
        assert given_place(critic) == SECOND
        away, _, told = inputs(CARD)
        card.moves.clear()
        found = critic.logits(away, t, told)
        assert torch.equal(found.detach().cpu(), expected.detach())
    assert [move.shape for move in card.moves if move.goal == CARD and move.source == SECOND] == [(ROWS,)]


def test_a_derivative_along_a_direction_goes_through_a_door():
    """Forwards, where both sides are one device: the device that is made up knows no tangents."""
    x, t, condition = inputs(CPU)
    along = torch.ones_like(x).detach(), torch.ones_like(t)
    step, plain = Step(Key(0, "s"), ROWS), tiny_denoiser(SCHEDULE, 2, 1)
    expected = step.jvp(plain, x.detach(), t, condition, along)
    found = step.jvp(placed_on(tiny_denoiser(SCHEDULE, 2, 1), CPU), x.detach(), t, condition, along)
    for own, other in zip(expected, found, strict=True):
        assert torch.equal(own.detach(), other.detach())


def test_what_was_not_placed_is_not_called_from_elsewhere(monkeypatch):
    """A network that is by mistake on another device is an error, and no silent transfer."""
    with at_work(monkeypatch):
        denoiser = tiny_denoiser(SCHEDULE, 2, 1).to(SECOND)
        assert given_place(denoiser) is None
        with pytest.raises(Mixed, match="on both cards"):
            denoiser(*inputs(CARD))


class Noted(nn.Module):
    """A network that notes when it is called."""

    def __init__(self, network: nn.Module, name: str, notes: list[Move | str]):
        super().__init__()
        self.network = network
        self.name, self.notes = name, notes

    def forward(self, *inputs: object) -> Tensor:
        self.notes.append(self.name)
        return self.network(*inputs)


def test_both_estimates_are_begun_before_either_is_brought_back(monkeypatch):
    """What is sent, what is called and what is brought back, in this order for both networks."""
    with at_work(monkeypatch) as card:
        models = {}
        for seed, (name, place) in enumerate((("teacher", CPU), ("fake", SECOND))):
            models[name] = tiny_denoiser(SCHEDULE, 2, seed)
            models[name].network = Noted(models[name].network, name, card.moves)  # type: ignore[arg-type]
            placed_on(freeze(models[name]), place)
        student = placed_on(tiny_denoiser(SCHEDULE, 2, 7), CARD)
        times = LogNormalTimes()
        matching = DistributionMatching(
            student, models["fake"], Fixed(models["teacher"]), times, DiffInstructWeight(), PASSES["separate"]
        )
        step = Step(Key(0, "s"), ROWS, device=CARD)
        state = step.state(Prior(SCHEDULE, (2,), 0.8, conditions=Classes(2)))
        step.run(student, state)
        card.moves.clear()
        matching(step, state)
    row = (ROWS, 2)
    seen = [
        note if isinstance(note, str) else "back" if note.goal == CARD else "sent"
        for note in card.moves
        if isinstance(note, str)
        or (note.shape == row and {note.source, note.goal} != {CPU, CARD})
        or (isinstance(note, Move) and note.shape == row and note.source == CARD)
    ]
    assert [each for each in seen if each != "sent"][:2] == ["fake", "teacher"]
    assert seen.index("back") > seen.index("teacher")
    assert seen.count("sent") == 2


def test_a_phase_elsewhere_gets_states_and_samples_once(monkeypatch):
    prior = Prior(SCHEDULE, (2,), 0.8, conditions=Classes(2))
    alone = Step(Key(0, "s"), ROWS)
    expected = alone.sample(tiny_denoiser(SCHEDULE, 2, 7), alone.state(prior))
    with at_work(monkeypatch) as card:
        student = placed_on(tiny_denoiser(SCHEDULE, 2, 7), CARD)
        step = Step(Key(0, "s"), ROWS, device=CARD)
        there = step.on(SECOND)
        assert step.on(CARD) is step
        state = there.state(prior)
        assert (state.x.device, step.state(prior).x.device) == (SECOND, CARD)
        assert there.named("a").state(prior) is state
        samples = there.sample(student, state)
        assert samples.device == SECOND
        assert torch.equal(samples.cpu(), expected)
        card.moves.clear()
        assert there.named("b").sample(student, state) is samples
        assert step.sample(student, step.state(prior)).device == CARD
        assert not card.moves
        noise = there.noise_like("n", samples)
        assert noise.device == SECOND
        assert torch.equal(noise.cpu(), alone.noise_like("n", expected))


def test_a_student_elsewhere_keeps_its_samples_where_they_were_made(monkeypatch):
    prior = Prior(SCHEDULE, (2,), 0.8)
    with at_work(monkeypatch) as card:
        student = placed_on(tiny_denoiser(SCHEDULE, 0, 7), SECOND)
        step = Step(Key(0, "s"), ROWS, device=CARD)
        there = step.on(SECOND)
        state = there.state(prior)
        made = there.run(student, state)
        card.moves.clear()
        assert torch.equal(there.sample(student, state), made.detach())
        assert not card.moves
        assert torch.equal(step.sample(student, step.state(prior)).cpu(), made.detach().cpu())
        assert [move.goal for move in card.moves if move.source == SECOND] == [CARD, CPU]


def test_what_is_not_finite_on_a_device_stops_the_phases_of_all(tmp_path, monkeypatch):
    """The flag of each device knows of the others', and no number is fetched."""
    with at_work(monkeypatch) as card:
        soundness = Soundness()

        def flag(value: float, device: torch.device) -> Tensor:
            student = tiny_denoiser(SCHEDULE, 0, 1)
            fixed = Fixed(student)
            matching = DistributionMatching(student, student, fixed, LogNormalTimes(), DiffInstructWeight())
            report = Report(Phase("p", student, [Term(matching, Prior(SCHEDULE, (2,), 0.8))]), [])
            report.add([torch.full((), value, device=device)], {}, {})
            report.end(torch.ones((), device=device))
            return soundness.judge(report)

        flags = [
            flag(value, device)
            for value, device in ((1.0, CARD), (1.0, SECOND), (float("nan"), SECOND), (1.0, CARD), (1.0, CPU))
        ]
        assert card.fetched == 0
        assert [each.device for each in flags] == [CARD, SECOND, SECOND, CARD, CPU]
        assert [float(each) for each in flags] == [0.0, 0.0, 1.0, 1.0, 1.0]
