"""Stages: what is trained, what follows it, what actions write and cost, and that all of it is in
the checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import small_teacher
from fewstep import cost
from fewstep.condition import Condition, Conditions
from fewstep.denoisers import Averaged, HalfLife, NetworkDenoiser, adapter_of, copy_of, in_network
from fewstep.networks import AdaptedBase, AdaptedNetwork, Form
from fewstep.objectives import L1, EndpointRegression, Loss, Objective, SquaredL2
from fewstep.random import Key
from fewstep.resumable import Resumable, untouched
from fewstep.schedule import KarrasVE
from fewstep.solvers import RULES, FlowMap, Solver
from fewstep.states import Pairs, Prior, State, States, Step
from fewstep.system.files import read_tensors
from fewstep.training import Adam, Copy, Phase, Settings, Stage, Term, Trainer
from fewstep.training.actions import Action, MakePairs
from fewstep.training.phase import build_optimizers, named_networks
from interrupt_kit import Interrupted, Interrupter


def regression(student: nn.Module, teacher: NetworkDenoiser, steps: int = 1) -> EndpointRegression:
    return EndpointRegression(student, SquaredL2(), Solver(teacher, steps))


def prior_of(teacher: NetworkDenoiser) -> Prior:
    return Prior(teacher.schedule, teacher.shape, float(teacher.schedule.time_at_sigma(2.5)))


def settings(**changes: Any) -> Settings:
    return Settings(**{"batch": 8, "log_every": 1, "checkpoint_every": 2, **changes})


def clone(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@dataclass(frozen=True, eq=False)
class Write(Action):
    """Fills a network with a number and calls another."""

    network: nn.Module
    value: float
    called: NetworkDenoiser | None = None
    rows: int = 5

    @torch.no_grad()
    def run(self) -> None:
        for parameter in self.network.parameters():
            parameter.fill_(self.value)
        if self.called is not None:
            self.called(torch.zeros(self.rows, 2), torch.full((self.rows,), 0.01))

    @property
    def writes(self) -> Sequence[nn.Module]:
        return (self.network,)


def test_of_a_role_on_a_base_the_adapter_alone_is_trained(tmp_path):
    teacher = small_teacher()
    kept = clone(teacher)
    student = in_network(teacher, AdaptedNetwork.fresh(AdaptedBase(teacher.network), Form(2, 2.0)))
    before = clone(student)
    phase = Phase("student", student, [Term(regression(student, teacher, 2), prior_of(teacher))], Adam(1e-2))
    optimizers = build_optimizers(Stage("s", 1, [phase]))
    assert {id(p) for group in optimizers["student"].param_groups for p in group["params"]} == {
        id(p) for p in adapter_of(student).parameters()
    }
    Trainer(tmp_path, [Stage("s", 4, [phase])], student, settings()).fit()
    assert moved(student, before) == set(before)
    assert not moved(teacher, kept)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def leaving(after: int) -> list[Interrupter]:
    """Who leaves a run after so many steps; nobody for 0."""
    return [Interrupter(after)] if after else []


def noted(history, step, model) -> None:
    history.append(clone(model))


def followed(
    folder: Path, steps: int = 6, leave: int = 0
) -> tuple[Trainer, NetworkDenoiser, list[Averaged], list[dict[str, Tensor]]]:
    """A run with two averages of its own, and the student's weights after each step."""
    teacher = small_teacher()
    student = copy_of(teacher)
    averages = [Averaged(student, HalfLife(0.0)), Averaged(student, HalfLife(2.0, ramp=0.0))]
    history: list[dict[str, Tensor]] = []
    phase = Phase(
        "student",
        student,
        [Term(regression(student, teacher, 3), prior_of(teacher))],
        Adam(1e-2),
        after_step=partial(noted, history),
        averages=averages,
    )
    return (
        Trainer(folder, [Stage("s", steps, [phase])], student, settings(), listeners=leaving(leave)),
        student,
        averages,
        history,
    )


def test_averages_follow_their_phase_by_their_own_decay(tmp_path):
    trainer, student, (at_once, slow), history = followed(tmp_path)
    start = clone(slow.average)
    trainer.fit()
    assert not moved(at_once.average, student.state_dict())
    assert (at_once.updates, slow.updates, len(history)) == (6, 6, 6)
    # A half-life of 2 steps: a <- a + (1 - 2^(-1/2)) (theta - a).
    expected = start
    for weights in history:
        expected = {name: value + (1 - 0.5**0.5) * (weights[name] - value) for name, value in expected.items()}
    for name, value in slow.average.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_averages_are_in_the_checkpoint_and_come_back(tmp_path):
    whole, _, averages, _ = followed(tmp_path / "whole")
    whole.fit()
    cut, _, _, _ = followed(tmp_path / "cut", leave=5)
    with pytest.raises(Interrupted):
        cut.fit()
    again, _, restored, _ = followed(tmp_path / "cut")
    again.fit(resume=True)
    for ours, theirs in zip(restored, averages, strict=True):
        assert not moved(ours, theirs.state_dict())
        assert ours.updates == 6


def written(folder: Path, leave: int = 0) -> tuple[Trainer, NetworkDenoiser]:
    """A first stage that trains, and a second that begins by writing a frozen slot, which it then
    learns from.
    """
    teacher = small_teacher()
    student, slot = copy_of(teacher), copy_of(teacher).requires_grad_(False)
    terms = (
        [Term(regression(student, teacher, 2), prior_of(teacher))],
        [Term(regression(student, slot, 3), prior_of(teacher))],
    )
    first, second = (Phase("student", student, term, Adam(1e-2)) for term in terms)
    stages = [Stage("one", 3, [first]), Stage("two", 5, [second], [Copy(student, slot)])]
    return Trainer(folder, stages, student, settings(), listeners=leaving(leave)), slot


def test_what_an_action_writes_is_in_the_checkpoint(tmp_path):
    """A run interrupted in the second stage does not run the action again, whose source has moved
    on.
    """
    whole, slot = written(tmp_path / "whole")
    assert any(network is slot for network in named_networks(whole.stages).values())
    whole.fit()
    cut, _ = written(tmp_path / "cut", leave=7)
    with pytest.raises(Interrupted):
        cut.fit()
    again, restored = written(tmp_path / "cut")
    again.fit(resume=True)
    assert not moved(restored, slot.state_dict())
    assert moved(restored, again.model.state_dict())
    assert not moved(again.model, whole.model.state_dict())


def test_every_network_is_named_once_and_those_of_two_phases_must_differ_in_name():
    teacher = small_teacher()
    student, other = copy_of(teacher), copy_of(teacher)
    average = Averaged(student, HalfLife(1.0))
    phase = Phase("student", student, [Term(regression(student, teacher), prior_of(teacher))], averages=[average])
    stages = [
        Stage("one", 1, [phase]),
        Stage("two", 1, [phase], [Copy(student, other), Write(student, 0.0), Write(other, 0.0)]),
    ]
    assert list(named_networks(stages).values()) == [student, average, other]
    twin = Phase("student", other, [Term(regression(other, teacher), prior_of(teacher))])
    with pytest.raises(Exception, match="two networks are trained by phases named 'student'"):
        named_networks([stages[0], Stage("two", 1, [twin])])


def test_actions_run_once_before_the_first_step_and_their_evaluations_count(tmp_path):
    teacher = small_teacher()
    student = copy_of(teacher)
    phase = Phase("student", student, [Term(regression(student, teacher, 1), prior_of(teacher))], Adam(1e-2))
    plain = Trainer(tmp_path / "plain", [Stage("s", 3, [phase])], student, settings())
    plain.fit()
    student.load_state_dict(teacher.state_dict())
    acted = Trainer(
        tmp_path / "acted",
        [Stage("s", 3, [phase], [Write(copy_of(teacher), 0.0, teacher, rows=5)])],
        student,
        settings(),
    )
    acted.fit()
    assert acted.progress.evaluations == plain.progress.evaluations + 5
    pairs = MakePairs(
        Solver(teacher, 4, RULES["euler"]), prior_of(teacher), 10, tmp_path / "pairs.safetensors", batch=4
    )
    made = Trainer(tmp_path / "made", [Stage("s", 3, [phase], [pairs])], student, settings())
    made.fit()
    # Four steps, the last to t = 0, for each of ten pairs.
    assert made.progress.evaluations == plain.progress.evaluations + 40


def test_pairs_made_twice_have_equal_bytes_and_are_a_function_of_their_seed_and_purpose(tmp_path):
    teacher = small_teacher()

    def bytes_of(name: str, **changes: Any) -> bytes:
        MakePairs(
            Solver(teacher, 3), prior_of(teacher), 10, tmp_path / name, **{"seed": 1, "purpose": "a", **changes}
        ).run()
        return (tmp_path / name).read_bytes()

    assert bytes_of("one") == bytes_of("one") == bytes_of("two")
    tensors, _ = read_tensors(tmp_path / "one")
    for changes in ({"seed": 2}, {"purpose": "b"}):
        bytes_of("three", **changes)
        assert not torch.isclose(read_tensors(tmp_path / "three")[0]["x"], tensors["x"]).any()
    # In other portions the same pairs, up to a rounding of the networks.
    bytes_of("four", batch=3)
    for name, value in read_tensors(tmp_path / "four")[0].items():
        torch.testing.assert_close(value, tensors[name])
    state = Pairs(tmp_path / "one", teacher.schedule, prior_of(teacher).time).draw(Step(Key(0), 6))
    assert all(any(torch.equal(x, start) for start in tensors["x"]) for x in state.x)
    with torch.no_grad():
        ends = Solver(teacher, 3)(state.x, prior_of(teacher).time, 0.0)
    assert state.x0 is not None
    torch.testing.assert_close(state.x0, ends)


@dataclass(frozen=True)
class Spoken(Conditions):
    """Five texts, whose embedding is their number: a condition holds no number."""

    count, identity = 5, ""

    def of(self, numbers: Tensor | None) -> Condition:
        assert numbers is not None
        return Condition(context={"text": numbers[:, None].float()})

    def null(self, condition: Condition) -> Condition:
        return Condition(context={"text": torch.zeros_like(condition.context["text"])})

    def sketch(self, rows: int) -> Condition:
        return Condition(context={"text": torch.zeros(rows, 1)})


@dataclass(frozen=True, eq=False)
class Saying(FlowMap):
    """Ends where its text says."""

    def __call__(self, x: Tensor, t: Any, s: Any, condition: Any = None) -> Tensor:
        said: Tensor = condition.context["text"].expand_as(x)
        return said

    def at(self, key: Key, start: int = 0) -> Saying:
        return self


def test_a_pair_of_a_prompt_is_asked_with_the_prompt_that_it_was_made_of(tmp_path):
    prior = Prior(KarrasVE(), (2,), 0.5, conditions=Spoken())
    MakePairs(Saying(), prior, 40, tmp_path / "pairs", batch=7).run()
    state = Pairs(tmp_path / "pairs", prior.schedule, prior.time, prior.conditions).draw(Step(Key(0), 30))
    assert state.x0 is not None
    assert len(state.x0.unique()) == 5
    assert torch.equal(state.x0, state.condition.context["text"].expand_as(state.x0))
    # The same as the prior's own draw, in one portion as in several.
    whole = prior.draw(Step(Key(0, "pairs"), 7))
    stored = read_tensors(tmp_path / "pairs")[0]["labels"]
    assert torch.equal(whole.condition.context["text"][:, 0], stored[:7].float())


@dataclass(frozen=True, eq=False)
class Remembering(States, Resumable):
    """Adds to each draw the sum of all draws before it; its memory is a list of one tensor, and a
    count.
    """

    source: States
    memory: list[Any]

    def draw(self, step: Step) -> State:
        state = step.state(self.source)
        self.memory[0], self.memory[1] = self.memory[0] + state.x, self.memory[1] + 1
        return State(state.x + 0.01 * self.memory[0], state.t, state.condition)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.memory[1]}

    def load_state_dict(self, state: Any) -> None:
        self.memory[1] = state["count"]

    def tensors(self) -> dict[str, Tensor]:
        return {"sum": self.memory[0]}

    def load_tensors(self, tensors: Any) -> None:
        self.memory[0] = tensors["sum"]


def test_tensors_that_an_object_remembers_come_back(tmp_path):
    def make(name: str, leave: int = 0) -> tuple[Trainer, list[Any]]:
        teacher = small_teacher()
        student, memory = copy_of(teacher), [torch.zeros(8, 2), 0]
        phase = Phase(
            "student",
            student,
            [Term(regression(student, teacher, 2), Remembering(prior_of(teacher), memory))],
            Adam(1e-2),
        )
        return Trainer(tmp_path / name, [Stage("s", 7, [phase])], student, settings(), listeners=leaving(leave)), memory

    whole, expected = make("whole")
    whole.fit()
    cut, _ = make("cut", leave=5)
    with pytest.raises(Interrupted):
        cut.fit()
    again, memory = make("cut")
    again.fit(resume=True)
    assert memory[1] == expected[1] == 7
    assert torch.equal(memory[0], expected[0])
    assert not moved(again.model, whole.model.state_dict())


def test_what_is_drawn_untouched_is_forgotten_whatever_ends_it():
    states = Remembering(prior_of(small_teacher()), [torch.ones(8, 2), 3])
    first = Step(Key(0), 8).state(states).x
    kept = states.memory[0].clone()
    for error in (None, KeyError):
        with contextlib.suppress(KeyError), untouched([states]):
            Step(Key(0, step=1), 8).state(states)
            states.memory[0].mul_(2)
            if error is not None:
                raise error
        assert states.memory[1] == 4
        assert torch.equal(states.memory[0], kept)
    assert not torch.equal(first, kept)


@dataclass(frozen=True, eq=False)
class Push(Objective):
    """A loss on the student's samples, made by ``Step.run`` as terms of one phase share them;
    remembers what it was handed.
    """

    student: NetworkDenoiser
    handed: list[Tensor]
    factor: float = 1.0

    def __call__(self, step: Step, state: State) -> Loss:
        x0 = step.run(self.student, state)
        self.handed.append(x0)
        return Loss(self.factor * x0.square().mean(), {})


def test_terms_of_a_phase_share_the_students_graph_and_the_next_phase_makes_its_own(tmp_path):
    """The second phase trains the student again: with the first one's graph, which its backward
    freed, that would raise, or use weights that have moved.
    """
    teacher = small_teacher()
    student = copy_of(teacher)
    prior, handed = prior_of(teacher), []
    first = Phase(
        "first",
        student,
        [Term(Push(student, handed), prior, name="a"), Term(Push(student, handed, 0.5), prior, 2.0, "b")],
        Adam(1e-2, clip=1.0),
    )
    second = Phase("second", student, [Term(Push(student, handed), prior)], Adam(1e-2, clip=1.0))
    with cost.metered() as meter:
        Trainer(tmp_path, [Stage("s", 1, [first, second])], student, settings()).fit()
    a, b, c = handed
    assert a is b
    assert c is not a
    assert not torch.equal(a, c)
    # Forward and backward, counted as three, once a phase.
    assert meter.evaluations == 2 * 3 * 8
    by_hand = copy_of(teacher)
    optimizers = [Adam(1e-2).build(by_hand.parameters()) for _ in range(2)]
    state = prior.draw(Step(Key(0, "s", 0), 8))
    for optimizer, weight in zip(optimizers, (2.0, 1.0), strict=True):
        optimizer.zero_grad()
        (weight * by_hand(state.x, state.t, state.condition).square().mean()).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name])


def test_weights_of_terms_are_factors_of_their_gradients(tmp_path):
    teacher = small_teacher()

    def gradients(weights: Sequence[float]) -> dict[str, Tensor]:
        student = copy_of(teacher)
        objectives = [EndpointRegression(student, distance, Solver(teacher, 2)) for distance in (SquaredL2(), L1())]
        phase = Phase(
            "student",
            student,
            [Term(o, prior_of(teacher), w) for o, w in zip(objectives, weights, strict=True)],
            Adam(1e-9),
        )
        Trainer(tmp_path / str(weights), [Stage("s", 1, [phase])], student, settings()).fit()
        return {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}

    both, one, other = gradients((2.0, 0.5)), gradients((1.0, 0.0)), gradients((0.0, 1.0))
    assert both
    for name, value in both.items():
        torch.testing.assert_close(value, 2 * one[name] + 0.5 * other[name])
