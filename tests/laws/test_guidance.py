"""Laws of guided targets: the closed form on exact mixtures with classes, what costs nothing, where
guidance acts, and that the unconditional branch of a recorded path is its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from law_kit import SCHEDULES, normals, randomised, three_gaussians, time, tiny_denoiser
from torch import Tensor
from torch.nn import functional

from fewstep import cost
from fewstep.condition import LABELS, NO_CLASS, Classes, Condition, Conditions
from fewstep.denoisers import Denoiser, GaussianMixture, Guided, GuidedPatchwise, StaticThreshold, copy_of, freeze
from fewstep.errors import UserError
from fewstep.objectives import DistributionMatching, EDMWeight, PlainWeight, ScoreIdentity, ScoreMatching
from fewstep.prediction import score_of
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, Schedule, expand
from fewstep.states import Prior, State, States, Step
from fewstep.targets import (
    Backtracked,
    ConstantGuidance,
    DegradationPath,
    Every,
    Fixed,
    Guidance,
    GuidanceAlongPath,
    GuidedTarget,
    IntervalGuidance,
    NoGuidance,
    PatchwiseGuidance,
    ReflectedTarget,
    RescaledGuidance,
)
from fewstep.times import LogNormalTimes, UniformTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
ALL = {
    "constant": ConstantGuidance(3.0),
    "interval": IntervalGuidance(3.0, 0.3, 2.0),
    "rescaled": RescaledGuidance(3.0, 0.5),
    "patchwise": PatchwiseGuidance(3.0, 2),
    "along-path": GuidanceAlongPath(3.0),
}
every_kind = pytest.mark.parametrize("guidance", ALL.values(), ids=ALL.keys())


def _asked(schedule: Schedule, rows: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Points, times of many levels, and labels."""
    t = schedule.time_at_sigma(torch.logspace(-1.5, 1, rows, dtype=torch.float64)).clamp(schedule.t_min, 0.99)
    return schedule.add_noise(normals(rows, 2), t, normals(rows, 2, seed=1)), t, torch.arange(rows) % 2


def _guided(guidance: Guidance, denoiser: Denoiser, degraded: float = 0.0) -> Denoiser:
    return guidance.guided(denoiser, LABELS, degraded)


def _network(seed: int = 0) -> Denoiser:
    return freeze(tiny_denoiser(classes=3, seed=seed))


X, T = normals(6, 2, dtype=torch.float32), KarrasVE().time_at_sigma(torch.tensor([0.1, 0.4, 1.0, 1.9, 2.5, 9.0]))
LABEL = torch.tensor([0, 1, 2, 0, 1, 2])
INSIDE = torch.tensor([False, True, True, True, False, False])


# The family


def test_every_kind_is_tried_here_and_is_rebuilt_from_its_description() -> None:
    assert set(Guidance.family()) == {"none", *ALL}
    for guidance in (NoGuidance(), *ALL.values()):
        assert Guidance.from_description(guidance.describe()) == guidance


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_a_scale_is_a_number_from_zero_on(scale: float) -> None:
    for kind in (ConstantGuidance, RescaledGuidance, PatchwiseGuidance, GuidanceAlongPath):
        with pytest.raises(UserError, match="'scale'"):
            kind(scale)


def test_an_interval_has_a_lower_and_an_upper_end() -> None:
    with pytest.raises(UserError, match="'low' must be below 'high'"):
        IntervalGuidance(3.0, 2.0, 2.0)


# The closed form


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 8.0])
def test_the_guided_score_is_the_mixed_score_of_exact_mixtures(schedule: Schedule, scale: float) -> None:
    """(1 - w) unconditional + w conditional, of the mixture and of the classes' own mixtures."""
    mixture = three_gaussians(schedule)
    own = [
        GaussianMixture(
            schedule,
            mixture.weights[mixture.labels == label],
            mixture.means[mixture.labels == label],
            mixture.vectors[mixture.labels == label]
            @ torch.diag_embed(mixture.variances[mixture.labels == label])
            @ mixture.vectors[mixture.labels == label].transpose(1, 2),
        )
        for label in (0, 1)
    ]
    x, t, labels = _asked(schedule)

    def score(x0: Tensor) -> Tensor:
        return score_of(schedule, x0, x, t)

    conditional = torch.where(labels[:, None] == 0, score(own[0](x, t)), score(own[1](x, t)))
    found = score(_guided(ConstantGuidance(scale), mixture)(x, t, labels))
    torch.testing.assert_close(found, (1 - scale) * score(mixture(x, t)) + scale * conditional, rtol=1e-8, atol=1e-8)


@every_schedule
@every_kind
def test_scale_one_is_no_guidance_and_asks_for_nothing(schedule: Schedule, guidance: Guidance) -> None:
    mixture, one = three_gaussians(schedule), replace(guidance, scale=1.0)
    assert guidance.guides
    assert not one.guides
    for degraded in (0.0, 0.5, 1.0):
        assert _guided(one, mixture, degraded) is mixture


@every_kind
def test_a_guided_call_is_one_call_of_the_network(guidance: Guidance) -> None:
    """Of twice the samples; in an interval, of the samples and those inside it."""
    network, calls = _network(), []
    network.network.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    with cost.metered() as meter:
        _guided(guidance, network)(X, T, LABEL)
    wanted = len(X) + (int(INSIDE.sum()) if isinstance(guidance, IntervalGuidance) else len(X))
    assert calls == [wanted]
    assert meter.evaluations == wanted


# The interval


@every_schedule
def test_outside_its_interval_nothing_is_guided_bit_for_bit(schedule: Schedule) -> None:
    mixture, (x, t, labels) = three_gaussians(schedule), _asked(schedule)
    level = schedule.sigma(t) / schedule.alpha(t)
    inside = (level > 0.3) & (level <= 2.0)
    assert 0 < int(inside.sum()) < len(x)
    found, conditional = _guided(IntervalGuidance(3.0, 0.3, 2.0), mixture)(x, t, labels), mixture(x, t, labels)
    assert torch.equal(found[~inside], conditional[~inside])
    assert torch.equal(found[inside], _guided(ConstantGuidance(3.0), mixture)(x, t, labels)[inside])
    assert bool((found[inside] != conditional[inside]).any(1).all())


def test_a_networks_batch_outside_the_interval_is_one_conditional_call_bit_for_bit() -> None:
    """Bits of a network's estimate depend on how many samples are in its batch."""
    network, outside = _network(), (X[~INSIDE], T[~INSIDE], LABEL[~INSIDE])
    guided = _guided(IntervalGuidance(3.0, 0.3, 2.0), network)
    with cost.metered() as meter:
        found = guided(*outside)
    assert torch.equal(found, network(*outside))
    assert meter.evaluations == int((~INSIDE).sum())
    torch.testing.assert_close(guided(X, T, LABEL)[~INSIDE], network(X, T, LABEL)[~INSIDE])


@every_schedule
def test_an_interval_of_all_levels_is_constant_bit_for_bit(schedule: Schedule) -> None:
    mixture, (x, t, labels) = three_gaussians(schedule), _asked(schedule)
    wide = _guided(IntervalGuidance(3.0, 0.0, 1e9), mixture)(x, t, labels)
    assert torch.equal(wide, _guided(ConstantGuidance(3.0), mixture)(x, t, labels))


@every_schedule
def test_an_interval_is_of_noise_over_signal_with_its_upper_end(schedule: Schedule) -> None:
    mixture, (x, t, labels) = three_gaussians(schedule), _asked(schedule)
    levels = schedule.sigma(t) / schedule.alpha(t)
    low, high = float(levels[3]), float(levels[7])
    found = _guided(IntervalGuidance(3.0, low, high), mixture)(x, t, labels)
    moved = (found != mixture(x, t, labels)).any(1)
    assert moved.tolist() == [3 < row <= 7 for row in range(len(x))]


# Rescaled


def _deviation(x0: Tensor) -> Tensor:
    return x0.std(1)


@every_schedule
def test_a_share_of_nothing_is_constant_bit_for_bit_and_the_whole_has_the_conditional_deviation(
    schedule: Schedule,
) -> None:
    mixture, (x, t, labels) = three_gaussians(schedule), _asked(schedule)
    constant, conditional = _guided(ConstantGuidance(3.0), mixture)(x, t, labels), mixture(x, t, labels)
    assert torch.equal(_guided(RescaledGuidance(3.0, 0.0), mixture)(x, t, labels), constant)
    whole = _guided(RescaledGuidance(3.0, 1.0), mixture)(x, t, labels)
    torch.testing.assert_close(_deviation(whole), _deviation(conditional), rtol=1e-9, atol=1e-12)
    # Lin et al. 2024, Sec. 3.4, as it is printed.
    rescaled = constant * (_deviation(conditional) / _deviation(constant))[:, None]
    found = _guided(RescaledGuidance(3.0, 0.7), mixture)(x, t, labels)
    torch.testing.assert_close(found, 0.7 * rescaled + 0.3 * constant, rtol=1e-9, atol=1e-12)


def test_an_estimate_without_contrast_is_left_as_it_is() -> None:
    class Flat(Denoiser):
        schedule, shape, classes = KarrasVE(), (2,), 2

        def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
            assert isinstance(condition, Condition)
            assert condition.labels is not None
            return (condition.labels[:, None] + 2.0).expand(-1, 2).to(x)

    found = _guided(RescaledGuidance(3.0, 1.0), Flat())(X, T, LABEL)
    assert torch.equal(found, _guided(ConstantGuidance(3.0), Flat())(X, T, LABEL))


# Patch by patch


class Pictures(Denoiser):
    """Estimates of pictures that have nothing to do with one another, by class."""

    shape, classes = (3, 4, 6), 2
    schedule: Schedule = KarrasVE()

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        assert isinstance(condition, Condition)
        assert condition.labels is not None
        estimates = normals(3, *self.shape, seed=2)
        return estimates[condition.labels + 1].to(x)


def _velocity(schedule: Schedule, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """eps - x0, with eps by its definition."""
    alpha, sigma = (expand(each, x) for each in (schedule.alpha(t), schedule.sigma(t)))
    return (x - alpha * x0) / sigma - x0


def _patches(values: Tensor, patch: int) -> Tensor:
    """(B, patches, numbers of a patch)"""
    return functional.unfold(values, patch, stride=patch).transpose(1, 2)


@every_schedule
def test_patchwise_the_velocity_has_the_guided_direction_and_the_conditional_length(schedule: Schedule) -> None:
    model, (x, t, labels) = (
        Pictures(),
        (normals(6, 3, 4, 6), torch.linspace(0.1, 0.9, 6, dtype=torch.float64), LABEL % 2),
    )
    model.schedule = schedule
    t = t.clamp(schedule.t_min, 1.0)
    asked = [_guided(guidance, model)(x, t, labels) for guidance in (ConstantGuidance(3.0), PatchwiseGuidance(3.0, 2))]
    conditional = model(x, t, Condition(labels=labels))
    guided, found, wanted = (_patches(_velocity(schedule, x, t, x0), 2) for x0 in (*asked, conditional))
    assert guided.shape == (6, 6, 12)
    torch.testing.assert_close(found.norm(dim=2), wanted.norm(dim=2), rtol=1e-7, atol=1e-10)
    along = functional.cosine_similarity(found, guided, dim=2)
    torch.testing.assert_close(along, torch.ones_like(along), rtol=1e-9, atol=1e-9)


@every_schedule
def test_patchwise_a_sample_without_height_is_one_patch(schedule: Schedule) -> None:
    mixture, (x, t, labels) = three_gaussians(schedule), _asked(schedule)
    found, conditional = _guided(ALL["patchwise"], mixture)(x, t, labels), mixture(x, t, labels)
    ours, theirs = (_velocity(schedule, x, t, x0).norm(dim=1) for x0 in (found, conditional))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_patchwise_a_velocity_of_nothing_stays_nothing_and_has_a_derivative() -> None:
    """Where guided estimates leave nothing to go, no number is divided by nothing."""
    model = Pictures()
    t = KarrasVE().time_at_sigma(torch.ones(2))
    labels, null = torch.tensor([0, 1]), torch.tensor([NO_CLASS, NO_CLASS])
    x0 = Guided(model, 3.0)(normals(2, 3, 4, 6), t, labels)
    x = (expand(1 + KarrasVE().sigma(t), x0) * x0).requires_grad_()
    found = GuidedPatchwise(model, 3.0, 2)(x, t, labels)
    torch.testing.assert_close(found, x0)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert bool(slope.isfinite().all())
    assert not torch.equal(model(x, t, Condition(labels=labels)), model(x, t, Condition(labels=null)))


def test_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="patches of 4 x 4 does not fit samples of 4 x 6; give a 'patch' that divides"):
        GuidedPatchwise(Pictures(), 3.0, 4)


# Along a path


def test_along_the_path_it_is_constant_at_the_teacher_and_nothing_at_the_last_node() -> None:
    network, along = _network(), GuidanceAlongPath(3.1)
    assert torch.equal(_guided(along, network)(X, T, LABEL), _guided(ConstantGuidance(3.1), network)(X, T, LABEL))
    assert _guided(along, network, 1.0) is network
    for degraded, scale in ((0.25, 2.575), (0.5, 2.05), (0.75, 1.525)):
        torch.testing.assert_close(
            _guided(along, network, degraded)(X, T, LABEL), _guided(ConstantGuidance(scale), network)(X, T, LABEL)
        )


def _recorded(folder: Path, nodes: int) -> DegradationPath:
    teacher = _network()
    path = DegradationPath(folder, teacher)
    for index in range(1, nodes + 1):
        path.record(randomised(copy_of(teacher), seed=index), index)
    return path


@pytest.mark.parametrize("nodes", [0, 1, 2, 4])
def test_the_scale_grows_from_node_to_node_as_the_target_walks(nodes: int, tmp_path: Path) -> None:
    path = _recorded(tmp_path, nodes)
    walk = Backtracked(path, Every(1))
    target = GuidedTarget(walk, GuidanceAlongPath(5.0), LABELS)
    seen = []
    for step in range(1, nodes + 2):
        found = target.denoiser(X, T, LABEL)
        node = walk.node or 0
        own = path.teacher if node == 0 else randomised(copy_of(path.teacher), seed=node)
        scale = 5.0 - 4.0 * node / max(1, nodes)
        assert target.degraded == (node / nodes if nodes else 0)
        torch.testing.assert_close(found, _guided(ConstantGuidance(scale), own)(X, T, LABEL).detach())
        seen.append(scale)
        walk.advance(step, None)
    assert seen[-1] == 5.0
    assert seen == sorted(seen)


def test_where_a_path_is_asked_first_does_not_matter(tmp_path: Path) -> None:
    path = _recorded(tmp_path, 3)
    one, other = Backtracked(path, Every(1)), Backtracked(path, Every(1))
    assert one.degraded == 2 / 3
    assert torch.equal(one.denoiser(X, T, LABEL), other.denoiser(X, T, LABEL))


@every_kind
def test_thresholds_come_after_guidance_and_the_target_hears_of_the_gap(guidance: Guidance, tmp_path: Path) -> None:
    network, heard = _network(), []

    class Listening(Fixed):
        def observe(self, log_snr: Tensor, gap: Tensor) -> None:
            heard.append(gap)

    bound = StaticThreshold(0.5)
    target = ReflectedTarget(GuidedTarget(Listening(network), guidance, LABELS), bound)
    found = target.denoiser(X, T, LABEL)
    assert torch.equal(found, bound.apply(_guided(guidance, network)(X, T, LABEL)))
    before = _guided(guidance, target.target.target.teacher)(X, T, LABEL)
    assert bool((before.abs() > 0.5).any())
    target.observe(torch.zeros(2), torch.ones(2))
    assert len(heard) == 1


# What follows the score


@pytest.mark.parametrize("kind", [DistributionMatching, ScoreIdentity])
@every_kind
def test_the_student_follows_the_guided_score_and_the_fake_score_stays_at_one(
    kind: type[DistributionMatching | ScoreIdentity], guidance: Guidance
) -> None:
    """The gradient is that of a teacher which is itself the guided estimate."""
    teacher, fake, student = _network(), _network(1), tiny_denoiser(classes=3, seed=2)

    def gradient(target: Fixed | GuidedTarget) -> tuple[Tensor, int]:
        objective = kind(student, fake, target, LogNormalTimes(), weight=PlainWeight())
        step = Step(Key(0, "law"), 16)
        with cost.metered() as meter:
            total = objective(step, step.state(Prior(teacher.schedule, (2,), 0.05, conditions=Classes(3)))).total
        return torch.cat([each.flatten() for each in torch.autograd.grad(total, list(student.parameters()))]), (
            meter.evaluations
        )

    found, paid = gradient(GuidedTarget(Fixed(teacher), guidance, LABELS))
    wanted, _ = gradient(Fixed(_guided(guidance, teacher)))
    plain, usual = gradient(Fixed(teacher))
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, plain, rtol=1e-2)
    assert torch.equal(gradient(GuidedTarget(Fixed(teacher), replace(guidance, scale=1.0), LABELS))[0], plain)
    each = 1 if kind is DistributionMatching else 3
    if isinstance(guidance, IntervalGuidance):
        assert usual < paid < usual + 16 * each
    else:
        assert paid == usual + 16 * each


def test_the_gradient_through_a_guided_estimate_is_that_of_its_parts() -> None:
    """As identity distillation takes it: through both estimates, checked by differences."""
    mixture, t, labels = three_gaussians(DiscreteVP("linear")), time(0.3).expand(4), torch.tensor([0, 1, 1, 0])
    x = normals(4, 2).requires_grad_()
    for guidance in (*ALL.values(), IntervalGuidance(3.0, 0.0, 1e-3)):
        guided = _guided(guidance, mixture, 0.5)
        assert torch.autograd.gradcheck(lambda value, guided=guided: guided(value, t, labels), (x,))


# The unconditional branch of a path


@dataclass(frozen=True)
class _Given(States):
    """States with a condition of the test's."""

    condition: Condition

    def draw(self, step: Step) -> State:
        rows = slice(step.start, step.start + step.rows)
        x = step.key.normal("given", (step.rows, 2), step.start)
        return State(x, torch.full((step.rows,), 0.05, dtype=torch.float64), self.condition[rows])


class _Hearing(Denoiser):
    """Keeps the conditions that it is asked with."""

    schedule, shape, classes = KarrasVE(), (2,), 3

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Condition] = []

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        assert isinstance(condition, Condition)
        self.heard.append(condition)
        return 0 * x


class _Texts(Conditions):
    """Conditions with a context, the unconditional one of fives."""

    count = 3
    identity = "0" * 64

    def sketch(self, rows: int) -> Condition:
        return self.of(torch.zeros(rows, dtype=torch.int64))

    def of(self, numbers: Tensor | None) -> Condition:
        assert numbers is not None
        return Condition(numbers, {"text": numbers[:, None].float().expand(-1, 2)})

    def null(self, condition: Condition) -> Condition:
        assert condition.labels is not None
        return Condition(torch.full_like(condition.labels, NO_CLASS), {"text": torch.full((len(condition), 2), 5.0)})


def test_a_dropped_condition_is_the_owners_unconditional_one_and_a_function_of_the_place() -> None:
    owner, rows = _Texts(), 400
    states = _Given(owner.of(torch.arange(rows) % 3))
    fake, student = _Hearing(), _Hearing()
    objective = ScoreMatching(fake, student, UniformTimes(0.01, 0.1), EDMWeight(), 0.25, owner)
    step = Step(Key(3, "record", 7), rows)
    objective(step, step.state(states))
    (told,), (asked,) = fake.heard, student.heard
    assert told.labels is not None
    assert asked.labels is not None
    dropped = told.labels == NO_CLASS
    assert 0.18 * rows < int(dropped.sum()) < 0.32 * rows
    assert torch.equal(told.labels[~dropped], asked.labels[~dropped])
    assert torch.equal(told.context["text"][dropped], torch.full((int(dropped.sum()), 2), 5.0))
    assert torch.equal(told.context["text"][~dropped], asked.context["text"][~dropped])
    # The student makes the sample of its own condition, and a part of the batch is that part.
    assert not bool((asked.labels == NO_CLASS).any())
    part = Step(Key(3, "record", 7), 100, start=150)
    objective(part, part.state(states))
    assert fake.heard[1].labels is not None
    assert torch.equal(fake.heard[1].labels, told.labels[150:250])
    other = Step(Key(3, "record", 8), rows)
    objective(other, other.state(states))
    assert fake.heard[2].labels is not None
    assert not torch.equal(fake.heard[2].labels, told.labels)


def test_without_dropout_recording_is_as_it_was_bit_for_bit() -> None:
    student, prior = tiny_denoiser(classes=3, seed=5), Prior(KarrasVE(), (2,), 0.05, conditions=Classes(3))
    fake = tiny_denoiser(classes=3, seed=6)

    def loss(**settings: object) -> Tensor:
        step = Step(Key(0, "record"), 32)
        matching = ScoreMatching(fake, student, LogNormalTimes(), EDMWeight(), **settings)  # type: ignore[arg-type]
        return matching(step, step.state(prior)).total

    assert torch.equal(loss(), loss(dropout=0.0, conditions=Classes(3)))
    assert not torch.equal(loss(), loss(dropout=0.5, conditions=Classes(3)))


def test_selected_conditions_keep_all_fields() -> None:
    mask = torch.tensor([True, False, True])
    one, other = (
        Condition(torch.arange(3) + at, {"a": torch.arange(6).reshape(3, 2) + at}, torch.arange(3.0) + at)
        for at in (0, 10)
    )
    found = Condition.select(mask, one, other)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 11, 2]
    assert found.context["a"].tolist() == [[0, 1], [12, 13], [4, 5]]
    assert found.guidance is not None
    assert found.guidance.tolist() == [0.0, 11.0, 2.0]
    assert Condition.select(mask, Condition(), Condition()).labels is None
    with pytest.raises(UserError, match="cannot be concatenated"):
        Condition.select(mask, one, Condition(torch.arange(3)))
