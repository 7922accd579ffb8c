"""Laws of how objectives share a step: each draws numbers of its own, all see the same states and
samples, and a derivative costs what it costs.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import torch
from law_kit import normals, one_gaussian, tiny_denoiser
from torch import Tensor

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import freeze
from fewstep.objectives import Balanced, DistributionMatching, DMDWeight, Loss, Objective, loss_of
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.states import Prior, State, Step
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes

PRIOR = Prior(KarrasVE(), (2,), 0.1)


@dataclass(frozen=True, eq=False)
class _Draws(Objective):
    """Its loss is what it draws, for the purpose "noise"."""

    def __call__(self, step: Step, state: State) -> Loss:
        return Loss(step.noise_like("noise", state.x).sum() + step.key.uniform("time", step.rows, step.start).sum())


class _First(_Draws):
    pass


class _Second(_Draws):
    pass


def test_equal_purposes_of_two_objectives_are_two_draws() -> None:
    """And of the same objective one, whoever else has drawn."""
    step = Step(Key(3, "stage", 4), 5)
    state = step.state(PRIOR)
    first, second = (float(loss_of(each, step, state).total) for each in (_First(), _Second()))
    assert first != second
    assert float(loss_of(_First(), step, state).total) == first
    assert float(loss_of(_Second(), Step(Key(3, "stage", 4), 5), state).total) == second
    # Called without a run, a purpose is nobody's.
    assert float(_First()(step, state).total) == float(_Second()(step, state).total) not in (first, second)


def test_a_named_steps_rows_are_the_global_batchs() -> None:
    place = Key(3, "stage", 4)
    whole = Step(place, 6).named("A").noise_like("noise", torch.zeros(6, 2))
    parts = [Step(place, 3, start).named("A").noise_like("noise", torch.zeros(3, 2)) for start in (0, 3)]
    assert torch.equal(torch.cat(parts), whole)


def test_named_steps_share_states_samples_and_what_is_made_once() -> None:
    model, step = tiny_denoiser(), Step(Key(0), 4)
    one, other = step.named("A"), step.named("B").named("A").named("B")
    state = one.state(PRIOR)
    assert other.state(PRIOR) is state
    assert step.state(PRIOR) is state
    assert torch.equal(state.x, Step(Key(0), 4).state(PRIOR).x)
    with cost.metered() as meter:
        made = one.run(model, state)
        assert other.run(model, state) is made
        assert step.sample(model, state) is other.sample(model, state)
    assert meter.evaluations == 3 * 4
    assert one.once(PRIOR, object) is other.once(PRIOR, object)
    step.forget_graphs()
    assert one.run(model, state) is not made
    # A name replaces another: whose draws they are does not depend on the way.
    assert torch.equal(step.named("B").noise_like("x", state.x), other.noise_like("x", state.x))


def test_a_named_steps_wishes_are_the_steps_own() -> None:
    """What was asked for under a name is prepared for the next step under that name, with
    the same numbers.
    """
    step, after = Step(Key(0), 4), Step(Key(0, "", 1), 4)
    for name in ("A", "B"):
        named = step.named(name)
        named.noise_like("noise", named.state(PRIOR).x)
    wished = [purpose for purpose, _, _ in step.asked.normals if not purpose.startswith("prior")]
    assert wished == ["A.noise", "B.noise"]
    after.prepare(step.asked)
    for name in ("A", "B"):
        assert torch.equal(
            after.named(name).noise_like("noise", torch.zeros(4, 2)), Key(0, "", 1, name).normal("noise", (4, 2))
        )


def test_a_step_goes_with_its_last_holder() -> None:
    """And its tensors with it, not when the collector comes by."""
    gc.disable()
    try:
        step = Step(Key(0), 4)
        named = step.named("A")
        named.state(PRIOR)
        gone = weakref.ref(step)
        del step
        assert gone() is not None
        del named
        assert gone() is None
    finally:
        gc.enable()


@dataclass(frozen=True, eq=False)
class _Sum(Objective):
    """The sum of what two objectives give, each by the way of a run."""

    first: Objective
    second: Objective

    def __call__(self, step: Step, state: State) -> Loss:
        return Loss(loss_of(self.first, step, state).total + loss_of(self.second, step, state).total)


def test_parts_of_an_objective_draw_as_they_do_alone() -> None:
    step = Step(Key(1), 5)
    state = step.state(PRIOR)
    alone = [loss_of(each, step, state).total for each in (_First(), _Second())]
    assert torch.equal(loss_of(_Sum(_First(), _Second()), step, state).total, alone[0] + alone[1])


@dataclass(frozen=True, eq=False)
class _InFull(Objective):
    """A linear function of the student, in full precision."""

    student: torch.nn.Module

    @property
    def full_precision(self) -> bool:
        return True

    def __call__(self, step: Step, state: State) -> Loss:
        found: Tensor = self.student(state.x, state.t, state.condition)
        return Loss(found.sum(), {"full": found.sum().detach()})


def test_balanced_losses_are_asked_by_the_way_of_a_run() -> None:
    """Each part draws and computes as it does alone: under its name, and in its precision."""
    student, fake, teacher = tiny_denoiser(), tiny_denoiser(seed=1), freeze(tiny_denoiser(seed=2))
    matching = DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), DMDWeight())
    balanced = Balanced(matching, _InFull(student), student.network.leave)
    step = Step(Key(1), 5)
    state = step.state(PRIOR)
    for halved in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=halved):
            found, alone, full = (
                loss_of(each, Step(Key(1), 5), state) for each in (balanced, matching, _InFull(student))
            )
        torch.testing.assert_close(found.terms["gap"], alone.terms["gap"], rtol=0, atol=0)
        torch.testing.assert_close(found.terms["full"], full.terms["full"], rtol=0, atol=0)
    assert not torch.equal(matching(step, state).terms["gap"], loss_of(matching, step, state).terms["gap"])


def test_a_derivative_is_that_of_one_pass_and_counted() -> None:
    """Against differences, with the estimate's graph and without one of its own; the pass 3, the
    derivative 1.
    """
    gaussian, rows = one_gaussian(KarrasVE()), 5
    x, t = normals(rows, 2), torch.linspace(0.01, 0.02, rows, dtype=torch.float64)
    along = normals(rows, 2, seed=1), 0.001 * normals(rows, seed=2)
    _, slope = Step(Key(0), rows).jvp(gaussian, x, t, Condition(), along)
    width = 1e-6
    ends = [gaussian(x + sign * width * along[0], t + sign * width * along[1]) for sign in (1, -1)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * width), rtol=1e-6, atol=1e-8)
    model = tiny_denoiser()
    with cost.metered() as meter, torch.no_grad():
        estimate, slope = Step(Key(0), rows).jvp(model, x.float(), t, Condition(), (along[0].float(), along[1]))
    assert meter.evaluations == (3 + 1) * rows
    assert torch.equal(estimate, model(x.float(), t))
    assert estimate.requires_grad
    assert not slope.requires_grad
    ours, theirs = (
        torch.autograd.grad(each.square().sum(), list(model.parameters())) for each in (estimate, model(x.float(), t))
    )
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(ours, theirs, strict=True))
