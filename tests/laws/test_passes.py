"""Laws of estimates that are made together: the same estimates and gradients, in one batch where
networks are one, with the same evaluations; and a run that stays with what it measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from law_kit import normals, tiny_denoiser
from test_lora import MODELS, every_model, role, spread
from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Classes, Condition
from fewstep.denoisers import (
    Boundary,
    Denoiser,
    DynamicThreshold,
    Guided,
    GuidedPatchwise,
    GuidedRescaled,
    GuidedWithin,
    NetworkDenoiser,
    Reflected,
    Rescheduled,
    freeze,
)
from fewstep.errors import UserError
from fewstep.networks import AdaptedBase
from fewstep.networks.adapters import Adapter, LowRank
from fewstep.networks.adapters.portions import Portions
from fewstep.networks.calls import answered, answered_together, known
from fewstep.objectives import Delta, DistributionMatching, DMDWeight, ScoreIdentity
from fewstep.objectives.scores import passes
from fewstep.objectives.scores.passes import PASSES, Faster, Separate, Together
from fewstep.random import Key
from fewstep.schedule import RectifiedFlow
from fewstep.states import Prior, Step
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes


@contextmanager
def batches(network: nn.Module) -> Iterator[list[int]]:
    """The sizes of the batches on which a network is called."""
    found: list[int] = []
    hook = network.register_forward_hook(lambda _, inputs, __: found.append(len(inputs[0])))
    yield found
    hook.remove()


def trio(kind: str) -> tuple[NetworkDenoiser, NetworkDenoiser, NetworkDenoiser]:
    """A teacher, and two roles on its network."""
    teacher = MODELS[kind]()
    base = AdaptedBase(teacher.network)
    return teacher, spread(role(teacher, base), 5), spread(role(teacher, base, rank=3), 6)


def asked_of(model: Denoiser) -> tuple[Tensor, Tensor, Condition]:
    levels = torch.tensor([0.1, 0.5, 2.0, 10.0], dtype=torch.float64)
    t = model.schedule.time_of(-2 * levels.log())
    return normals(4, *model.shape, dtype=torch.float32), t, Condition(torch.arange(4) % 3)


@every_model
def test_roles_and_their_base_make_the_same_estimates_and_gradients_in_one_batch(kind: str) -> None:
    models = trio(kind)
    x, t, condition = asked_of(models[0])
    weights = [parameter for model in models[1:] for parameter in model.parameters()]

    def found(together: bool) -> tuple[list[Tensor], list[Tensor]]:
        point = x.clone().requires_grad_()
        asked = [model.asked(point, t, condition) for model in models]
        estimates = answered_together(asked) if together else [answered(each) for each in asked]
        total = sum((each * (number + 1)).square().sum() for number, each in enumerate(estimates))
        return estimates, list(torch.autograd.grad(total, [point, *weights]))

    with batches(models[0].network) as sizes, cost.metered() as meter:
        estimates, gradients = found(True)
    assert sizes == [12]
    with cost.metered() as separately:
        expected, expected_gradients = found(False)
    assert meter.evaluations == separately.evaluations == 36
    for ours, theirs in ((estimates, expected), (gradients, expected_gradients)):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)
    # Another order of the roles would be seen.
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    assert not torch.allclose(expected[1], expected[2], atol=1e-3)


WRAPPED = {
    "guided": lambda model: Guided(model, 3.0),
    "guided at 1": lambda model: Guided(model, 1.0),
    "guided within": lambda model: GuidedWithin(model, 3.0, 0.2, 5.0),
    "guided, patchwise": lambda model: GuidedPatchwise(model, 3.0, 2),
    "guided, rescaled": lambda model: GuidedRescaled(model, 3.0, 0.7),
    "thresholded": lambda model: Reflected(Guided(model, 3.0), DynamicThreshold(1.0)),
    "clamped": lambda model: Reflected(model, 0.5),
    "rescheduled": lambda model: Rescheduled(model, RectifiedFlow()),
    "boundary": Boundary,
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_wrapper_that_is_asked_says_what_it_says_when_it_is_called(wrapped: str) -> None:
    teacher, student, _ = trio("unet")
    target = freeze(WRAPPED[wrapped](teacher))
    x, t, condition = asked_of(target)
    expected, own = target(x, t, condition), student(x, t, condition)
    assert torch.equal(answered(target.asked(x, t, condition)), expected)
    with batches(teacher.network) as sizes:
        ours, others = answered_together([target.asked(x, t, condition), student.asked(x, t, condition)])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others, own, rtol=1e-4, atol=1e-5)
    # Guidance asks twice of each sample, or of those inside an interval.
    twice = {"guided": 4, "guided within": 2, "guided, patchwise": 4, "guided, rescaled": 4, "thresholded": 4}
    assert sizes == [8 + twice.get(wrapped, 0)]


def test_what_is_not_one_network_or_not_alike_is_asked_by_itself_bit_for_bit() -> None:
    teacher, student, _ = trio("unet")
    other = MODELS["unet"](3)
    x, t, condition = asked_of(teacher)
    askings = [
        teacher.asked(x, t, condition),
        other.asked(x, t, condition),
        student.asked(x, t),
        known(x),
    ]
    with batches(teacher.network) as sizes:
        found = answered_together(askings)
    assert sizes == [4, 4]
    expected = [teacher(x, t, condition), other(x, t, condition), student(x, t), x]
    assert all(torch.equal(one, theirs) for one, theirs in zip(found, expected, strict=True))
    assert answered_together([]) == []


def test_two_calls_of_one_network_without_adapters_share_a_batch() -> None:
    model = freeze(tiny_denoiser(classes=3))
    x, t, condition = asked_of(model)
    with batches(model.network) as sizes:
        one, other = answered_together([model.asked(x, t, condition), model.asked(-x[:2], t[:2], condition[:2])])
    assert sizes == [6]
    torch.testing.assert_close(one, model(x, t, condition))
    torch.testing.assert_close(other, model(-x[:2], t[:2], condition[:2]))


def test_a_layer_that_does_not_compute_the_samples_rows_is_named() -> None:
    layer = nn.Linear(2, 2)
    portions = Portions([None, Adapter({"place": LowRank(layer, 1, 1.0)})], [2, 2])
    with pytest.raises(UserError, match=r"'place' computes 3 rows for 4 samples.*'method\.passes: separate'"):
        portions.added("place", torch.ones(3, 2), layer, torch.ones(3, 2))
    elsewhere = torch.ones(3, 2)
    assert portions.added("elsewhere", elsewhere, layer, torch.ones(3, 2)) is elsewhere


def losses(how: passes.Passes, guided: bool = True) -> list[tuple[Tensor, list[Tensor]]]:
    """The losses of both objectives that compare scores, and their gradients to the student."""
    teacher, fake, student = trio("unet")
    target = Fixed(Guided(teacher, 2.0) if guided else teacher)
    schedule = teacher.schedule
    step = Step(Key(3), 4)
    prior = Prior(
        schedule, teacher.shape, float(schedule.time_of(torch.zeros((), dtype=torch.float64))), conditions=Classes(3)
    )
    found = []
    for objective in (
        DistributionMatching(student, fake, target, LogNormalTimes(), DMDWeight(), how),
        ScoreIdentity(student, fake, target, LogNormalTimes(), passes=how),
    ):
        loss = objective(step, step.state(prior))
        found.append((loss.total, list(torch.autograd.grad(loss.total, list(student.parameters())))))
        step.forget_graphs()
    return found


@pytest.mark.parametrize("guided", [False, True])
def test_objectives_are_the_same_however_their_estimates_are_made(guided: bool) -> None:
    for (one, gradients), (other, expected) in zip(losses(Together(), guided), losses(Separate(), guided), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("slower", "sizes"), [(Separate, [12]), (Together, [8, 4])])
def test_what_is_measured_once_is_kept_and_costs_no_evaluations(
    slower: type, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[passes.Passes] = []

    def seconds(how: passes.Passes, *_: object) -> float:
        measured.append(how)
        return 2.0 if isinstance(how, slower) else 1.0

    monkeypatch.setattr(passes, "seconds", seconds)
    teacher, fake, _ = trio("unet")
    x, t, condition = asked_of(teacher)
    asked = [partial(model.asked, x, t, condition) for model in (Guided(teacher, 2.0), fake)]
    how = PASSES["measured"].begun()
    assert isinstance(how, Faster)
    assert how.figures() == {}
    for _ in range(2):
        with batches(teacher.network) as found:
            how.estimates(*asked)
        assert found == sizes
    assert len(measured) == 2
    # Of another run nothing is known yet, and one that goes on stays with what it found.
    assert PASSES["measured"].begun().state_dict() == {"together_over_separate": None}
    other = Faster()
    other.load_state_dict(how.state_dict())
    other.estimates(*asked)
    assert len(measured) == 2
    assert other.figures() == how.figures() == {"together_over_separate": 0.5 if slower is Separate else 2.0}


def test_measuring_takes_both_ways_and_is_not_counted() -> None:
    teacher, fake, _ = trio("unet")
    x, t, condition = asked_of(teacher)
    asked = [partial(model.asked, x, t, condition) for model in (teacher, fake)]
    how = Faster()
    with torch.no_grad(), cost.metered() as meter, batches(teacher.network) as sizes:
        how.estimates(*asked)
    assert meter.evaluations == 8
    assert how.together_over_separate is not None
    assert how.together_over_separate > 0
    chosen = [8] if how.together_over_separate < 1 else [4, 4]
    assert sizes == [8] * 4 + [4, 4] * 4 + chosen


def test_a_fake_score_that_asks_no_network_goes_with_any_way() -> None:
    teacher, _, student = trio("unet")
    schedule = teacher.schedule
    found = []
    for how in (Separate(), Together()):
        step = Step(Key(3), 4)
        state = step.state(
            Prior(
                schedule,
                teacher.shape,
                float(schedule.time_of(torch.zeros((), dtype=torch.float64))),
                conditions=Classes(3),
            )
        )
        found.append(
            DistributionMatching(student, Delta(), Fixed(teacher), LogNormalTimes(), DMDWeight(), how)(
                step, state
            ).total
        )
    assert torch.equal(*found)
