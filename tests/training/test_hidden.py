"""What hides its state from checkpoints is refused when a phase or a stage is built, by name."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.objectives import DistributionMatching, Loss, Objective
from fewstep.resumable import Resumable, check_open, find_resumable
from fewstep.states import Prior, States
from fewstep.states.dagger import Dagger
from fewstep.targets import Backtracked, Every, Fixed, StopRule, Target
from fewstep.training import Adam, Phase, Stage, Term
from fewstep.training.actions import Action


class Counter(Resumable):
    """Remembers a number."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: int, model: object) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state) -> None:
        self.count = state["count"]


class UndecoratedMatching(DistributionMatching):
    """Inherits its fields and adds an attribute."""

    def remember(self) -> UndecoratedMatching:
        object.__setattr__(self, "counter", Counter())
        return self


class UndecoratedPlain(DistributionMatching):
    """Adds nothing yet; nothing says that it will not."""


class OwnInit(Objective):
    """Is no dataclass of its own, and has an ``__init__``."""

    def __init__(self, inner: Objective):
        object.__setattr__(self, "inner", inner)

    def __call__(self, step, state) -> Loss:
        return self.inner(step, state)


class Slotted:
    """Hides in a slot."""

    __slots__ = ("counter",)

    def __init__(self) -> None:
        self.counter = Counter()

    def __call__(self, step: int, model: object) -> None:
        self.counter(step, model)


@dataclass(frozen=True, eq=False)
class Beside(Objective):
    """A dataclass with an attribute beside its fields."""

    inner: Objective

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", {})

    def __call__(self, step, state) -> Loss:
        return self.inner(step, state)


@dataclass(frozen=True, eq=False)
class Holding(Objective):
    """A dataclass that declares all that it has."""

    inner: Objective
    held: Any = None

    @cached_property
    def computed(self) -> list[int]:
        return [1]

    def __call__(self, step, state) -> Loss:
        return self.inner(step, state)


class UndecoratedPrior(Prior):
    """A state source that counts its draws."""

    def draw(self, step):
        object.__setattr__(self, "draws", 1)
        return super().draw(step)


class Restless(Target):
    """A target that is no dataclass and remembers."""

    def __init__(self, teacher) -> None:
        self.teacher = teacher

    @property
    def denoiser(self):
        return self.teacher

    def observe(self, log_snr, gap) -> None:
        return


class CountingDagger(Dagger):
    """A stateful source whose further state nothing saves."""

    def more(self) -> CountingDagger:
        object.__setattr__(self, "more_rows", [1])
        return self


class SharedList(StopRule):
    """A stop rule whose class holds what changes."""

    seen: list[int] = []  # noqa: RUF012 (what is to be found)

    def finished(self, steps: int) -> bool:
        return False

    @property
    def total(self) -> int | None:
        return None


class OwnAction(Action):
    """An action with an attribute of its own."""

    def __init__(self) -> None:
        object.__setattr__(self, "done", False)

    def run(self) -> None:
        return


class Wrapping(nn.Module):
    """A network around something that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.counter = Counter()


def closure() -> Callable[..., None]:
    counter = Counter()
    return lambda step, model: counter(step + 1, model)


def local_count() -> Callable[..., None]:
    count = 0

    def hook(step, model) -> None:
        nonlocal count
        count += 1

    return hook


def plain_hook(step, model) -> None:
    return


def objectives(run) -> dict[str, tuple[Objective, str]]:
    match = run.matching
    fields = (match.student, match.fake, match.target, match.times, match.weight)
    beside, open_to = "has '{}' beside its fields", "is no dataclass of its own"
    return {
        "a UndecoratedMatching": (UndecoratedMatching(*fields).remember(), beside.format("counter")),
        "a UndecoratedPlain": (UndecoratedPlain(*fields), open_to),
        "a OwnInit": (OwnInit(match), beside.format("inner")),
        "a Beside": (Beside(match), beside.format("seen")),
        "a set": (Holding(match, {Counter()}), "is a set of parts"),
        "a Slotted": (Holding(match, [Slotted()]), beside.format("counter")),
        "a Restless": (replace(match, target=Restless(run.teacher)), beside.format("teacher")),
        "the function 'closure.<locals>.<lambda>'": (
            Holding(match, {"a": closure()}),
            "holds values from outside it (counter)",
        ),
        "a deque": (Holding(match, deque([Counter()])), "is of a kind that is not looked into"),
        "a Generator": (Holding(match, torch.Generator()), "is of a kind that is not looked into"),
        "a Wrapping": (Holding(match, Wrapping()), "holds a Counter ('counter')"),
    }


KINDS = [
    "a UndecoratedMatching",
    "a UndecoratedPlain",
    "a OwnInit",
    "a Beside",
    "a set",
    "a Slotted",
    "a Restless",
    "a deque",
    "a Generator",
    "the function 'closure.<locals>.<lambda>'",
    "a Wrapping",
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_that_hides_something_is_refused_by_name(small_run, kind):
    run = small_run()
    objective, why = objectives(run)[kind]
    with pytest.raises(
        UserError, match=rf"phase 'student': {re.escape(kind)} \(terms\.0\.objective\S*\) {re.escape(why)}"
    ):
        Phase("student", run.student, [Term(objective, run.prior)])


def test_states_hooks_stop_rules_and_actions_that_hide_something_are_refused(small_run):
    run = small_run()
    prior, phase = run.prior, run.stages[0].phases[0]
    fields = {"schedule": prior.schedule, "shape": prior.shape, "time": prior.time}
    dagger = CountingDagger(prior, 4, 2, "ring").more()
    for build, sentence in (
        (
            lambda: Phase("p", run.student, [Term(run.matching, UndecoratedPrior(**fields))]),
            r"a UndecoratedPrior \(terms.0.states\) is no dataclass of its own",
        ),
        (
            lambda: Phase("p", run.student, [Term(run.matching, dagger)]),
            "CountingDagger .* has 'more_rows' beside its fields",
        ),
        (lambda: replace(phase, after_step=closure()), r"holds values from outside it \(counter\)"),
        (lambda: replace(phase, after_step=local_count()), r"holds values from outside it \(count\)"),
        (lambda: replace(phase, after_step=Slotted()), "a Slotted .* has 'counter' beside its fields"),
        (lambda: replace(phase, after_step=Slotted().__call__), "a Slotted .* has 'counter' beside its fields"),
        (lambda: replace(phase, after_step=partial(closure(), 1)), "holds values from outside it"),
        (lambda: Stage("s", SharedList(), [phase]), r"stage 's': a SharedList \(until\) is no dataclass of its own"),
        (
            lambda: Stage("s", 3, [phase], [OwnAction()]),
            r"stage 's': a OwnAction \(begin.0\) has 'done' beside its fields",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            build()


def test_what_remembers_is_found_behind_methods_and_partial_calls(small_run):
    """A hook that is a method of what no objective holds was not in the checkpoint."""
    run = small_run("run", nodes=1)
    assert run.path is not None
    phase, counter = run.stages[0].phases[0], Counter()
    target = Backtracked(run.path, Every(2))
    for hook, wanted in (
        (target.advance, target),
        (partial(plain_hook, counter), counter),
        (partial(counter.__call__), counter),
        (counter, counter),
    ):
        stage = Stage(
            "s",
            3,
            [
                Phase(
                    "student",
                    run.student,
                    [Term(replace(run.matching, target=Fixed(run.teacher)), run.prior)],
                    Adam(),
                    after_step=hook,
                )
            ],
        )
        assert list(find_resumable(stage).values()) == [wanted]
    # Where the objective has it as well, its place is the objective's, as in the checkpoints of
    # earlier runs.
    assert list(find_resumable([replace(phase, after_step=run.target.advance)])) == [".0.terms.0.objective.target"]


def test_what_is_open_passes(small_run):
    run = small_run()
    held = Holding(
        run.matching,
        {
            "numbers": {1, 2},
            "tensor": torch.ones(2),
            "function": plain_hook,
            "kept": Counter(),
            "method": Counter().__call__,
        },
    )
    assert held.computed == [1]
    check_open([held, Dagger(run.prior, 4, 2, "ring"), plain_hook, field], "all")
    assert isinstance(run.prior, States)
