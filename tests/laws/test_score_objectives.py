"""Laws of exchangeable fake scores and of score identity distillation: degenerations bit for bit,
closed forms on Gaussians, and the rate at which a field of samples converges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, tiny_denoiser
from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Classes, Condition
from fewstep.denoisers import Denoiser, GaussianMixture, StableTargetField, copy_of, freeze
from fewstep.denoisers.denoiser import frozen
from fewstep.errors import UserError
from fewstep.objectives import (
    Delta,
    DiffInstructWeight,
    DistributionMatching,
    DMDWeight,
    EDMWeight,
    ExponentialWeight,
    FakeScore,
    FieldOfSamples,
    Learned,
    MatchingWeight,
    Objective,
    PlainWeight,
    ScoreIdentity,
    ScoreMatching,
    SDSWeight,
)
from fewstep.objectives.scores.fakes import as_fake
from fewstep.objectives.scores.matching import relative_gap
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule
from fewstep.states import Prior, State, Step
from fewstep.targets import Fixed, Target
from fewstep.times import LogNormalTimes, UniformTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
EYE = torch.eye(2, dtype=torch.float64)


class _Affine(nn.Module):
    """A student that makes a Gaussian: x = mean + scale z, whatever the time; with ``shift``, moved
    by it times the label.
    """

    def __init__(self, mean: list[float], scale: list[float], shift: float = 0.0):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.shift = shift

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        made = self.mean + self.scale * x.double()
        cost.count_evaluations(made)
        return made if condition.labels is None else made + self.shift * condition.labels[:, None]

    def denoiser(self, schedule: Schedule) -> GaussianMixture:
        """The exact denoiser of what it makes, without labels."""
        return GaussianMixture(
            schedule, torch.ones(1), self.mean.detach()[None], torch.diag(self.scale.detach() ** 2)[None]
        )


class _Free(nn.Module):
    """A student whose samples are its parameters."""

    def __init__(self, samples: Tensor):
        super().__init__()
        self.samples = nn.Parameter(samples)

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.samples * 1.0


@dataclass(frozen=True, eq=False)
class _Watching(Target):
    teacher: Denoiser
    seen: list[tuple[Tensor, Tensor]]

    @property
    def denoiser(self) -> Denoiser:
        return self.teacher

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        self.seen.append((log_snr, gap))


def _prior(schedule: Schedule, classes: int = 0) -> Prior:
    return Prior(schedule, (2,), 0.9, scale=1.0, conditions=Classes(classes))


def _gradients(objective: Objective, student: _Affine, prior: Prior, batches: int, rows: int) -> Tensor:
    """The loss' gradient in (mean, scale) at several steps, (batches, 4)."""
    found = []
    for index in range(batches):
        step = Step(Key(0, "law", index), rows)
        total = objective(step, step.state(prior)).total
        found.append(torch.cat(torch.autograd.grad(total, [student.mean, student.scale])))
    return torch.stack(found)


def _assert_mean(found: Tensor, exact: Tensor, share: float = 0.1) -> None:
    """The mean over the first dimension is ``exact`` within 4.5 standard errors, which are below
    ``share`` of its largest entry.
    """
    error = found.std(0) / math.sqrt(len(found))
    assert bool((error < share * exact.abs().max()).all())
    assert bool(((found.mean(0) - exact).abs() < 4.5 * error + 1e-12).all())


def _gain(gaussian: GaussianMixture, t: float) -> Tensor:
    """K of the exact denoiser K x_t + (I - alpha K) mean."""
    alpha, sigma = gaussian.schedule.alpha(t), gaussian.schedule.sigma(t)
    covariance = gaussian.vectors[0] @ torch.diag(gaussian.variances[0]) @ gaussian.vectors[0].T
    return alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * EYE)


# The delta: SDS, and ADD's distillation loss


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.5])
def test_the_delta_pulls_a_gaussian_to_the_mode(schedule: Schedule, t: float) -> None:
    """E (x - D) dx / d theta with D = K x_t + (I - alpha K) mu: (I - alpha K)(mean - mu) in the
    mean, (1 - alpha K_ii) scale_i in the scale.
    """
    student, target = _Affine([1.5, 0.3], [0.4, 1.6]), one_gaussian(schedule)
    objective = DistributionMatching(student, Delta(), Fixed(target), UniformTimes(t, t), DiffInstructWeight())
    rest = EYE - schedule.alpha(t) * _gain(target, t)
    exact = torch.cat([rest @ (student.mean.detach() - target.means[0]), torch.diagonal(rest) * student.scale.detach()])
    _assert_mean(_gradients(objective, student, _prior(schedule), 20, 2000), exact)


@every_schedule
def test_the_weights_of_the_delta_are_sds_and_add(schedule: Schedule) -> None:
    """From the losses as they are printed: w (eps_target - eps) with w = sigma^2, and autograd's
    gradient of c |x - sg(D)|^2.
    """
    rows, times = 7, UniformTimes(0.1, 0.9)
    t = times.draw(schedule, Key(4), "matching-time", rows)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    noise = Key(4).normal("matching-noise", (rows, 2)).double()
    samples, target = normals(rows, 2), one_gaussian(schedule)
    x_t = alpha * samples + sigma * noise
    estimate = target(x_t, t)

    def gradient(weight: MatchingWeight) -> Tensor:
        student = _Free(samples)
        step = Step(Key(4), rows)
        total = DistributionMatching(student, Delta(), Fixed(target), times, weight)(
            step, step.state(_prior(schedule))
        ).total
        return torch.autograd.grad(total, student.samples)[0]

    def of_squares(c: Tensor) -> Tensor:
        moving = samples.clone().requires_grad_()
        return torch.autograd.grad((c * (moving - estimate).square()).sum() / rows, moving)[0]

    predicted = (x_t - alpha * estimate) / sigma
    torch.testing.assert_close(gradient(SDSWeight()), sigma**2 * (predicted - noise) / rows, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(ExponentialWeight()), of_squares(alpha), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(SDSWeight()), of_squares(alpha / (2 * sigma) * sigma**2), rtol=1e-12, atol=0)
    # The KL divergence's gradient is SDS with w = alpha / sigma.
    torch.testing.assert_close(
        gradient(PlainWeight()), alpha / sigma * (predicted - noise) / rows, rtol=1e-6, atol=1e-9
    )


def test_a_bare_denoiser_is_a_learned_fake_score() -> None:
    schedule = KarrasVE()
    student, target, fake = _Affine([1.5, 0.3], [0.4, 1.6]), one_gaussian(schedule), tiny_denoiser(schedule).double()
    bare, learned = (
        _gradients(
            DistributionMatching(student, score, Fixed(target), UniformTimes(), DMDWeight()),
            student,
            _prior(schedule),
            2,
            16,
        )
        for score in (fake, Learned(fake))
    )
    assert torch.equal(bare, learned)
    delta = Delta()
    assert as_fake(delta) is delta


# The field of samples


def _noised(
    schedule: Schedule, student: _Affine, t: float, step: Step, classes: int = 0
) -> tuple[Tensor, Tensor, Tensor, Condition]:
    """(x_t, t, x0, condition) of a batch of the student's samples."""
    state = step.state(_prior(schedule, classes))
    x0 = step.sample(student, state)
    times = torch.full((step.rows,), t, dtype=torch.float64)
    return schedule.add_noise(x0, times, step.noise_like("law-noise", x0)), times, x0, state.condition


def _fresh(field: FieldOfSamples, step: Step) -> tuple[Tensor, Tensor | None]:
    return field._fresh(step)


@every_schedule
def test_a_field_of_one_sample_is_sds_bit_for_bit(schedule: Schedule) -> None:
    student, target = _Affine([1.5, 0.3], [0.4, 1.6]), one_gaussian(schedule)
    fakes: list[FakeScore] = [FieldOfSamples(student, _prior(schedule), 1), Delta()]
    field, delta = (
        _gradients(
            DistributionMatching(student, fake, Fixed(target), UniformTimes(), SDSWeight()),
            student,
            _prior(schedule),
            3,
            16,
        )
        for fake in fakes
    )
    assert torch.equal(field, delta)
    more = FieldOfSamples(student, _prior(schedule), 2)
    assert not torch.equal(
        field,
        _gradients(
            DistributionMatching(student, more, Fixed(target), UniformTimes(), SDSWeight()),
            student,
            _prior(schedule),
            3,
            16,
        ),
    )


@every_schedule
@pytest.mark.parametrize("classes", [0, 2])
def test_each_sample_has_a_field_of_itself_and_the_fresh_ones_of_its_class(schedule: Schedule, classes: int) -> None:
    student = _Affine([0.5, 0.3], [0.4, 0.8], shift=0.3)
    field, step = FieldOfSamples(student, _prior(schedule, classes), 9), Step(Key(3, "s", 2), 6)
    x_t, t, x0, condition = _noised(schedule, student, 0.02 if isinstance(schedule, KarrasVE) else 0.4, step, classes)
    found = field.estimate(step, schedule, x_t, t, x0, condition)
    fresh, labels = _fresh(field, step)
    assert len(fresh) == 8
    for row in range(6):
        one = slice(row, row + 1)
        known = None if labels is None else torch.cat([condition.labels[one], labels])
        expected = StableTargetField(schedule, torch.cat([x0[one], fresh]), known)(x_t[one], t[one], condition[one])
        torch.testing.assert_close(found[one], expected, rtol=1e-9, atol=1e-12)
    if classes:
        # Without a class, all references count.
        free = field.estimate(step, schedule, x_t, t, x0, Condition(labels=torch.full((6,), -1)))
        expected = StableTargetField(schedule, torch.cat([x0[:1], fresh]))(x_t[:1], t[:1])
        torch.testing.assert_close(free[:1], expected, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(free, found)


def test_fresh_samples_are_not_the_batch_and_the_same_for_every_process() -> None:
    schedule = KarrasVE()
    student, prior = _Affine([1.5, 0.3], [0.4, 1.6]), _prior(KarrasVE())
    field = FieldOfSamples(student, prior, 9)
    whole, half, next_step = Step(Key(1, "s", 5), 8), Step(Key(1, "s", 5), 4, 4), Step(Key(1, "s", 6), 8)
    fresh = _fresh(field, whole)[0]
    assert torch.equal(fresh, _fresh(field, half)[0])
    assert not bool(torch.isin(fresh, _fresh(field, next_step)[0]).any())
    assert not bool(torch.isin(fresh, whole.sample(student, whole.state(prior))).any())
    # So that a batch in two halves is the batch.
    objective = DistributionMatching(
        student, field, Fixed(one_gaussian(schedule)), UniformTimes(0.005, 0.05), PlainWeight()
    )
    parts = [
        torch.autograd.grad(objective(step, step.state(prior)).total, student.mean)[0]
        for step in (Step(Key(1, "s", 5), 4), half, Step(Key(1, "s", 5), 8))
    ]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, parts[2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", [KarrasVE(), DiscreteVP(), RectifiedFlow()], ids=["karras-ve", "vp", "flow"])
def test_the_error_of_a_field_falls_as_one_over_its_size(schedule: Schedule) -> None:
    """Against the exact denoiser of the student's Gaussian, at a level where many samples speak."""
    student = _Affine([0.5, -0.3], [0.9, 1.1])
    exact, t = student.denoiser(schedule), float(schedule.time_at_sigma(1.5))
    errors = []
    for count in (8, 32, 128):
        field = FieldOfSamples(student, _prior(schedule), count)
        squares = []
        for index in range(120):
            step = Step(Key(0, "order", index), 32)
            x_t, times, x0, condition = _noised(schedule, student, t, step)
            squares.append(
                (field.estimate(step, schedule, x_t, times, x0, condition) - exact(x_t, times)).square().mean()
            )
        errors.append(float(torch.stack(squares).mean()))
    for slope in (math.log(errors[index + 1] / errors[index], 4) for index in range(2)):
        assert slope == pytest.approx(-1.0, abs=0.15)


def test_a_field_carries_no_gradient_and_costs_its_fresh_samples() -> None:
    schedule, rows = KarrasVE(), 5
    student = _Affine([1.5, 0.3], [0.4, 1.6])
    objective = DistributionMatching(
        student,
        FieldOfSamples(student, _prior(schedule), 9),
        Fixed(one_gaussian(schedule)),
        UniformTimes(),
        DMDWeight(),
    )
    step = Step(Key(0), rows)
    with cost.metered() as meter:
        loss = objective(step, step.state(_prior(schedule)))
    # The student forward and backward, and eight samples forward.
    assert meter.evaluations == 3 * rows + 8
    assert not any(value.requires_grad for value in loss.terms.values())


def test_what_a_field_cannot_know_is_refused() -> None:
    schedule, student = KarrasVE(), _Affine([1.5, 0.3], [0.4, 1.6])
    with pytest.raises(UserError, match="at least 1"):
        FieldOfSamples(student, _prior(schedule), 0)
    step = Step(Key(0), 3)
    x_t, t, x0, _ = _noised(schedule, student, 0.1, step)
    field = FieldOfSamples(student, _prior(schedule), 4)
    for condition in (Condition(context={"text": x0}), Condition(guidance=t), Condition(labels=x0)):
        with pytest.raises(UserError, match="class labels only"):
            field.estimate(step, schedule, x_t, t, x0, condition)
    with pytest.raises(UserError, match="carry no labels"):
        field.estimate(step, schedule, x_t, t, x0, Condition(labels=torch.zeros(3, dtype=torch.int64)))


# Score identity distillation


def _identity_mean(student: _Affine, fake: GaussianMixture, target: GaussianMixture, t: float, a: float) -> Tensor:
    """E <D_t - D_f, D_t - x - a (D_t - D_f)> in closed form, as a function of the student with the
    fake score held.
    """
    schedule = target.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    covariance, wanted, held = torch.diag(student.scale**2), _gain(target, t), _gain(fake, t)
    noised = alpha**2 * covariance + sigma**2 * EYE
    change = wanted - held
    offset = (EYE - alpha * wanted) @ target.means[0] - (EYE - alpha * held) @ fake.means[0]
    difference = alpha * change @ student.mean + offset
    residual = (alpha * wanted - EYE) @ student.mean + (EYE - alpha * wanted) @ target.means[0]
    joint = difference @ residual + torch.trace(change @ (noised @ wanted.T - alpha * covariance))
    return joint - a * (difference @ difference + torch.trace(change @ noised @ change.T))


@every_schedule
@pytest.mark.parametrize("a", [0.0, 0.5, 1.2])
@pytest.mark.parametrize("t", [0.05, 0.4])
def test_the_identity_is_the_fisher_divergence_where_the_fake_score_is_exact(
    schedule: Schedule, a: float, t: float
) -> None:
    """The mean is (1 - a) E |D_target - D_fake|^2, from the closed forms of both."""
    student, target = _Affine([1.5, 0.3], [0.4, 1.6]), one_gaussian(schedule)
    fake = student.denoiser(schedule)
    exact = (1 - a) * _divergence(student, target, t)
    torch.testing.assert_close(_identity_mean(student, fake, target, t, a), exact, rtol=1e-6, atol=1e-12)
    objective = ScoreIdentity(student, fake, Fixed(target), UniformTimes(t, t), a, DiffInstructWeight())
    found = []
    for index in range(20):
        step = Step(Key(0, "law", index), 2000)
        found.append(objective(step, step.state(_prior(schedule))).total.detach())
    _assert_mean(torch.stack(found), exact.detach())


def _divergence(student: _Affine, target: GaussianMixture, t: float) -> Tensor:
    """E |D_target - D_true|^2, the student's own denoiser moving with it."""
    schedule = target.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    covariance = torch.diag(student.scale**2)
    noised = alpha**2 * covariance + sigma**2 * EYE
    change = _gain(target, t) - alpha * covariance @ torch.linalg.inv(noised)
    difference = (EYE - alpha * _gain(target, t)) @ (target.means[0] - student.mean)
    return difference @ difference + torch.trace(change @ noised @ change.T)


@every_schedule
@pytest.mark.parametrize("a", [0.0, 0.5, 1.2])
@pytest.mark.parametrize("exact_fake", [True, False], ids=["exact", "trailing"])
def test_the_gradient_of_the_identity_goes_through_both_networks(
    schedule: Schedule, a: float, exact_fake: bool
) -> None:
    """In mean and scale, against the closed form with the fake's weights held; at a = 1/2 its mean
    part is half the divergence's own.
    """
    t = 0.02 if isinstance(schedule, KarrasVE) else 0.4
    student, target = _Affine([1.5, 0.3], [0.4, 1.6]), one_gaussian(schedule)
    fake = student.denoiser(schedule) if exact_fake else _Affine([1.0, 0.0], [0.5, 1.2]).denoiser(schedule)
    exact = torch.cat(torch.autograd.grad(_identity_mean(student, fake, target, t, a), [student.mean, student.scale]))
    if a == 0.5 and exact_fake:
        (true,) = torch.autograd.grad(_divergence(student, target, t), student.mean)
        torch.testing.assert_close(exact[:2], 0.5 * true, rtol=1e-9, atol=1e-12)
    objective = ScoreIdentity(student, fake, Fixed(target), UniformTimes(t, t), a, DiffInstructWeight())
    _assert_mean(_gradients(objective, student, _prior(schedule), 20, 2000), exact)


@every_schedule
def test_the_identity_is_eq_23_with_the_published_weight(schedule: Schedule) -> None:
    rows, a = 7, 1.2
    student, target = _Affine([1.5, 0.3], [0.4, 1.6]), _Watching(one_gaussian(schedule), [])
    fake = GaussianMixture(schedule, torch.ones(1), torch.zeros(1, 2), torch.ones(1))
    step = Step(Key(4), rows)
    loss = ScoreIdentity(student, fake, target, UniformTimes(0.1, 0.9))(step, step.state(_prior(schedule)))
    t = UniformTimes(0.1, 0.9).draw(schedule, Key(4), "identity-time", rows)
    x = step.sample(student, step.state(_prior(schedule)))
    x_t = schedule.add_noise(x, t, Key(4).normal("identity-noise", (rows, 2)).double())
    teacher, psi = target.teacher(x_t, t), fake(x_t, t)
    weight = 1 / (x - teacher).abs().mean(1)
    printed = -a * weight * (teacher - psi).square().sum(1) + weight * ((teacher - psi) * (teacher - x)).sum(1)
    torch.testing.assert_close(loss.total, printed.mean(), rtol=1e-10, atol=0)
    ((log_snr, gap),) = target.seen
    assert torch.equal(log_snr, schedule.log_snr(t))
    torch.testing.assert_close(gap, relative_gap(schedule, t, teacher - psi), rtol=1e-12, atol=0)
    assert not gap.requires_grad
    torch.testing.assert_close(gap.mean(), loss.terms["gap"], rtol=1e-12, atol=0)


def test_the_weight_of_the_identity_carries_no_gradient() -> None:
    rows, schedule, times = 5, RectifiedFlow(), UniformTimes(0.1, 0.9)
    student, target = _Free(normals(rows, 2)), one_gaussian(schedule)
    fake = GaussianMixture(schedule, torch.ones(1), torch.zeros(1, 2), torch.ones(1))
    step = Step(Key(4), rows)
    total = ScoreIdentity(student, fake, Fixed(target), times, 1.2, DMDWeight())(
        step, step.state(_prior(schedule))
    ).total
    t = times.draw(schedule, Key(4), "identity-time", rows)
    x = student.samples * 1.0
    x_t = schedule.add_noise(x, t, Key(4).normal("identity-noise", (rows, 2)).double())
    teacher, psi = target(x_t, t), fake(x_t, t)
    held = (1 / (x - teacher).abs().mean(1)).detach()
    printed = -1.2 * held * (teacher - psi).square().sum(1) + held * ((teacher - psi) * (teacher - x)).sum(1)
    expected, found = (torch.autograd.grad(value, student.samples)[0] for value in (printed.mean(), total))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_the_identity_trains_the_student_and_nobody_else() -> None:
    rows = 6
    student, fake, teacher = (
        tiny_denoiser(classes=3),
        tiny_denoiser(classes=3, seed=1),
        freeze(tiny_denoiser(classes=3, seed=2)),
    )
    prior, step = Prior(KarrasVE(), (2,), 0.1, conditions=Classes(3)), Step(Key(0), rows)
    with cost.metered() as meter:
        ScoreIdentity(student, fake, Fixed(teacher), LogNormalTimes())(step, step.state(prior)).total.backward()
    assert all(value.grad is not None for value in student.parameters() if value is not student.network.leave.bias)
    assert all(value.grad is None for value in [*fake.parameters(), *teacher.parameters()])
    # The fake score is trained by another phase, and can be.
    assert all(value.requires_grad for value in fake.parameters())
    assert not any(value.requires_grad for value in teacher.parameters())
    # Three networks, each forward and backward.
    assert meter.evaluations == 9 * rows
    ScoreMatching(fake, student, LogNormalTimes(), EDMWeight())(step, step.state(prior)).total.backward()
    assert all(value.grad is not None for value in fake.parameters())


def test_the_identity_is_exactly_zero_where_the_networks_agree() -> None:
    teacher = freeze(tiny_denoiser(classes=3))
    student, fake = copy_of(teacher), copy_of(teacher)
    step = Step(Key(0), 16)
    loss = ScoreIdentity(student, fake, Fixed(teacher), LogNormalTimes())(
        step, step.state(Prior(teacher.schedule, (2,), 0.1, conditions=Classes(3)))
    )
    assert float(loss.total.detach()) == 0.0
    assert all(float(value.abs().max()) < 1e-7 for value in torch.autograd.grad(loss.total, list(student.parameters())))


def test_frozen_models_are_as_they_were_even_after_an_error() -> None:
    model = tiny_denoiser()
    first, *rest = model.parameters()
    first.requires_grad_(False)
    before = [value.requires_grad for value in model.parameters()]

    def fail() -> None:
        with frozen(model, model):
            assert not any(value.requires_grad for value in model.parameters())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert rest
    assert [value.requires_grad for value in model.parameters()] == before


# What terms of a phase share


def test_terms_of_a_phase_run_the_student_once() -> None:
    rows = 6
    student, fake, teacher = tiny_denoiser(), tiny_denoiser(seed=1), freeze(tiny_denoiser(seed=2))
    prior, step = Prior(KarrasVE(), (2,), 0.1), Step(Key(0), rows)
    matching = DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), DMDWeight())
    identity = ScoreIdentity(student, fake, Fixed(teacher), LogNormalTimes())
    alone = []
    for objective in (matching, identity):
        apart = Step(Key(0), rows)
        alone.append(torch.autograd.grad(objective(apart, apart.state(prior)).total, student.network.leave.weight)[0])
    with cost.metered() as meter:
        total = sum(objective(step, step.state(prior)).total for objective in (matching, identity))
    # The student 3, matching's two networks 1 each, identity's two 3 each.
    assert meter.evaluations == (3 + 2 + 6) * rows
    torch.testing.assert_close(
        torch.autograd.grad(total, student.network.leave.weight)[0], alone[0] + alone[1], rtol=1e-4, atol=1e-6
    )


def test_a_graph_lives_for_one_phase_and_samples_for_the_step() -> None:
    student, prior = tiny_denoiser(), Prior(KarrasVE(), (2,), 0.1)
    step = Step(Key(0), 4)
    state = step.state(prior)
    with cost.metered() as meter:
        made = step.run(student, state)
        assert step.run(student, state) is made
        kept = step.sample(student, state)
    assert meter.evaluations == 3 * 4
    assert torch.equal(kept, made)
    assert not kept.requires_grad
    made.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        step.run(student, state).square().sum().backward()
    step.forget_graphs()
    assert step.sample(student, state) is kept
    with torch.no_grad():
        student.network.leave.bias.add_(1.0)
    again = step.run(student, state)
    assert not torch.equal(again, kept)
    again.sum().backward()
    # Other states are other samples.
    assert not torch.equal(step.run(student, State(state.x + 1, state.t)), again)
