"""Laws of objectives: gradients against closed form, exact zeros where networks agree, and no
network run twice for the same thing.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, tiny_denoiser
from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Classes, Condition
from fewstep.denoisers import Denoiser, GaussianMixture, NetworkDenoiser, StableTargetField, copy_of, freeze
from fewstep.objectives import (
    Compared,
    Denoising,
    DiffInstructWeight,
    DistributionMatching,
    DMDWeight,
    EDMWeight,
    MatchingWeight,
    NoiseWeight,
    PlainWeight,
    ScoreMatching,
    ScoreWeight,
)
from fewstep.objectives.scores.matching import relative_gap
from fewstep.objectives.scores.score_matching import denoising_loss
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.states import Prior, State, Step
from fewstep.targets import Fixed, Target
from fewstep.times import LogNormalTimes, UniformTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
WEIGHTS: dict[str, MatchingWeight] = {"plain": PlainWeight(), "diff-instruct": DiffInstructWeight(), "dmd": DMDWeight()}
every_weight = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())


class _Affine(nn.Module):
    """A student that makes a Gaussian: x = mean + scale z, whatever the time."""

    def __init__(self, mean: list[float], scale: list[float]):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.mean + self.scale * x.double()

    def denoiser(self, schedule: Schedule) -> GaussianMixture:
        """The exact denoiser of what it makes."""
        return GaussianMixture(
            schedule, torch.ones(1), self.mean.detach()[None], torch.diag(self.scale.detach() ** 2)[None]
        )


def _analytic(student: _Affine, target: GaussianMixture, t: float) -> Tensor:
    """The gradient of KL(student_t || target_t) in (mean, scale), by torch's closed form."""
    schedule = target.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    noise = sigma**2 * torch.eye(2, dtype=torch.float64)
    covariance = target.vectors[0] @ torch.diag(target.variances[0]) @ target.vectors[0].T
    made = torch.distributions.MultivariateNormal(alpha * student.mean, alpha**2 * torch.diag(student.scale**2) + noise)
    wanted = torch.distributions.MultivariateNormal(alpha * target.means[0], alpha**2 * covariance + noise)
    divergence = torch.distributions.kl_divergence(made, wanted)
    return torch.cat(torch.autograd.grad(divergence, [student.mean, student.scale]))


def _gradients(objective: DistributionMatching, student: _Affine, prior: Prior, batches: int, rows: int) -> Tensor:
    """The loss' gradient in (mean, scale) at several steps, (batches, 4)."""
    found = []
    for index in range(batches):
        step = Step(Key(0, "law", index), rows)
        total = objective(step, step.state(prior)).total
        found.append(torch.cat(torch.autograd.grad(total, [student.mean, student.scale])))
    return torch.stack(found)


# Distribution matching


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.3, 0.6])
def test_the_plain_gradient_is_that_of_the_kl_divergence(schedule: Schedule, t: float) -> None:
    """x_t's own gradient, s_fake - s_target times alpha dx / d theta, averaged over 20 x 4,000
    samples.
    """
    student, target = _Affine([1.5, 0.3], [0.4, 1.6]), one_gaussian(schedule)
    objective = DistributionMatching(
        student, student.denoiser(schedule), Fixed(target), UniformTimes(t, t), PlainWeight()
    )
    found = _gradients(objective, student, Prior(schedule, (2,), 0.9, scale=1.0), 20, 4000)
    exact = _analytic(student, target, t)
    error = found.std(0) / math.sqrt(len(found))
    assert bool((error < 0.1 * exact.abs().max()).all())
    assert bool(((found.mean(0) - exact).abs() < 4 * error + 1e-12).all())


@every_schedule
def test_the_gradient_vanishes_where_the_student_is_the_target(schedule: Schedule) -> None:
    """Not sample by sample by luck: the same parameters give the same estimates, so exactly."""
    student = _Affine([0.7, -1.2], [0.9, 0.5])
    target = student.denoiser(schedule)
    objective = DistributionMatching(student, student.denoiser(schedule), Fixed(target), UniformTimes(), PlainWeight())
    assert bool((_gradients(objective, student, Prior(schedule, (2,), 0.9, scale=1.0), 3, 50) == 0).all())


@every_schedule
@every_weight
def test_the_gradient_is_exactly_zero_where_fake_and_target_agree(schedule: Schedule, weight: MatchingWeight) -> None:
    denoiser = one_gaussian(schedule)
    student = _Affine([1.5, 0.3], [0.4, 1.6])
    objective = DistributionMatching(student, denoiser, Fixed(denoiser), UniformTimes(), weight)
    assert bool((_gradients(objective, student, Prior(schedule, (2,), 0.9, scale=1.0), 3, 50) == 0).all())


def test_two_copies_of_a_network_agree_exactly() -> None:
    teacher = freeze(tiny_denoiser(classes=3))
    student, fake = copy_of(teacher), copy_of(teacher)
    objective = DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), DMDWeight())
    step = Step(Key(0), 16)
    loss = objective(step, step.state(Prior(teacher.schedule, (2,), 0.1, conditions=Classes(3))))
    gradients = torch.autograd.grad(loss.total, list(student.parameters()))
    assert all(bool((value == 0).all()) for value in gradients)
    assert float(loss.terms["gap"]) == float(loss.terms["gradient"]) == 0.0


@every_schedule
def test_weights_are_as_documented(schedule: Schedule) -> None:
    t = torch.linspace(schedule.t_min, 0.99, 6, dtype=torch.float64)
    x0, estimate = normals(6, 1, 2, 2), normals(6, 1, 2, 2, seed=1)
    compared = Compared(schedule, t, x0, x0, estimate, x0, Condition())
    torch.testing.assert_close(PlainWeight().at(compared), schedule.rho(t) ** -2, rtol=1e-12, atol=0)
    assert DiffInstructWeight().at(compared).tolist() == [1.0] * 6
    published = torch.stack([1 / (a - b).abs().mean() for a, b in zip(x0, estimate, strict=True)])
    torch.testing.assert_close(DMDWeight().at(compared), published, rtol=1e-12, atol=0)
    assert bool(torch.isfinite(DMDWeight().at(replace(compared, target_x0=x0))).all())


@every_schedule
@every_weight
def test_the_gradient_of_a_sample_is_the_weighted_difference_of_estimates(
    schedule: Schedule, weight: MatchingWeight
) -> None:
    """With the student's samples themselves as parameters, written out from the scores: w (s_fake -
    s_target) up to the weight's own definition.
    """
    rows = 7
    samples = nn.Parameter(normals(rows, 2))
    student = _Free(samples)
    fake, target = one_gaussian(schedule), GaussianMixture(schedule, torch.ones(1), torch.zeros(1, 2), torch.ones(1))
    objective = DistributionMatching(student, fake, Fixed(target), UniformTimes(0.1, 0.9), weight)
    step = Step(Key(4), rows)
    loss = objective(step, step.state(Prior(schedule, (2,), 0.9)))
    loss.total.backward()
    t = UniformTimes(0.1, 0.9).draw(schedule, Key(4), "matching-time", rows)
    x_t = schedule.add_noise(samples.detach(), t, Key(4).normal("matching-noise", (rows, 2)).double())
    difference = fake(x_t, t) - target(x_t, t)
    factor = weight.at(Compared(schedule, t, x_t, samples.detach(), target(x_t, t), fake(x_t, t), Condition()))[:, None]
    assert samples.grad is not None
    torch.testing.assert_close(samples.grad, factor * difference / rows, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss.terms["gradient"], (factor * difference).square().mean().sqrt(), rtol=1e-12, atol=0)
    assert not any(value.requires_grad for value in loss.terms.values())


class _Free(nn.Module):
    """A student whose samples are its parameters."""

    def __init__(self, samples: nn.Parameter):
        super().__init__()
        self.samples = samples

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.samples * 1.0


@every_schedule
def test_a_delta_as_fake_score_is_sds(schedule: Schedule) -> None:
    """Over one own sample, the stable target field gives back the sample: the gradient is w (x -
    D_target), as SDS has it.
    """
    samples = nn.Parameter(normals(1, 2))
    target = one_gaussian(schedule)
    objective = DistributionMatching(
        _Free(samples),
        StableTargetField(schedule, samples),
        Fixed(target),
        UniformTimes(0.4, 0.4),
        DiffInstructWeight(),
    )
    step = Step(Key(4), 1)
    objective(step, step.state(Prior(schedule, (2,), 0.9))).total.backward()
    t = torch.full((1,), 0.4, dtype=torch.float64)
    x_t = schedule.add_noise(samples.detach(), t, Key(4).normal("matching-noise", (1, 2)).double())
    assert samples.grad is not None
    assert torch.equal(samples.grad, samples.detach() - target(x_t, t))


@dataclass(frozen=True, eq=False)
class _Watching(Target):
    teacher: Denoiser
    seen: list[tuple[Tensor, Tensor]]

    @property
    def denoiser(self) -> Denoiser:
        return self.teacher

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        self.seen.append((log_snr, gap))


@every_schedule
def test_the_target_is_told_the_gap_of_every_sample(schedule: Schedule) -> None:
    target = _Watching(one_gaussian(schedule), [])
    student = _Affine([1.5, 0.3], [0.4, 1.6])
    objective = DistributionMatching(student, student.denoiser(schedule), target, UniformTimes(), PlainWeight())
    step = Step(Key(0), 9)
    loss = objective(step, step.state(Prior(schedule, (2,), 0.9)))
    ((log_snr, gap),) = target.seen
    t = UniformTimes().draw(schedule, Key(0), "matching-time", 9)
    assert torch.equal(log_snr, schedule.log_snr(t))
    assert gap.shape == (9,)
    assert not gap.requires_grad
    torch.testing.assert_close(gap.mean(), loss.terms["gap"], rtol=1e-12, atol=0)


def test_the_gap_is_relative_to_what_a_level_can_tell() -> None:
    schedule = KarrasVE()
    t = schedule.time_at_sigma(torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64))
    difference = torch.tensor([[0.01, 0.01], [3.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([1e-4 * (1 + 1e4), 5.0 * 2, 2.0 * (1 + 1 / 2500)], dtype=torch.float64)
    torch.testing.assert_close(relative_gap(schedule, t, difference), expected, rtol=1e-9, atol=0)


# Denoising score matching


class _Linear(Denoiser):
    """gain x + offset, whatever the time, in the plane."""

    def __init__(self, schedule: Schedule, gain: Tensor, offset: Tensor):
        super().__init__()
        self._schedule = schedule
        self.gain, self.offset = nn.Parameter(gain), nn.Parameter(offset)

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def classes(self) -> int:
        return 0

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return x @ self.gain.T + self.offset


def _best(gaussian: GaussianMixture, t: float) -> tuple[Tensor, Tensor]:
    """The closed form: gain a C (a^2 C + s^2 I)^-1, offset m - gain a m."""
    alpha, sigma = gaussian.schedule.alpha(t), gaussian.schedule.sigma(t)
    covariance = gaussian.vectors[0] @ torch.diag(gaussian.variances[0]) @ gaussian.vectors[0].T
    gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
    return gain, gaussian.means[0] - alpha * gain @ gaussian.means[0]


def _noised(gaussian: GaussianMixture, t: float, key: Key, rows: int) -> State:
    x0 = gaussian.sample(rows, key)[0].double()
    times = torch.full((rows,), t, dtype=torch.float64)
    noise = key.normal("noise", (rows, 2)).double()
    return State(gaussian.schedule.add_noise(x0, times, noise), times, Condition(), x0, noise)


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.4])
def test_a_linear_denoiser_learns_the_closed_form(schedule: Schedule, t: float) -> None:
    """The loss is a quadratic of (gain, offset), so one Newton step from anywhere is its minimiser;
    200,000 samples.
    """
    gaussian = one_gaussian(schedule)
    denoiser = _Linear(schedule, normals(2, 2), normals(2, seed=1))
    key = Key(0, "newton")
    state = _noised(gaussian, t, key, 200_000)
    loss = Denoising(denoiser, EDMWeight())(Step(key, 200_000), state).total
    gradient = torch.autograd.grad(loss, [denoiser.gain, denoiser.offset], create_graph=True)
    flat = torch.cat([value.reshape(-1) for value in gradient])
    hessian = torch.stack(
        [
            torch.cat(
                [v.reshape(-1) for v in torch.autograd.grad(value, [denoiser.gain, denoiser.offset], retain_graph=True)]
            )
            for value in flat
        ]
    )
    found = torch.cat([denoiser.gain.detach().reshape(-1), denoiser.offset.detach()]) - torch.linalg.solve(
        hessian, flat.detach()
    )
    gain, offset = _best(gaussian, t)
    # The standard error of a regression: residual over the input's spread, by root n.
    residual = math.sqrt(float((state.x0 - state.x @ gain.T - offset).square().mean()))
    scale = residual / math.sqrt(200_000 * float(torch.linalg.eigvalsh(torch.cov(state.x.T))[0]))
    torch.testing.assert_close(found[:4].reshape(2, 2), gain, rtol=0, atol=5 * scale)
    torch.testing.assert_close(
        found[4:],
        offset,
        rtol=0,
        atol=5 * max(scale, residual / 200_000**0.5) * (1 + float(state.x.mean(0).abs().max())),
    )


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.4])
def test_the_exact_denoiser_is_stationary(schedule: Schedule, t: float) -> None:
    gaussian = one_gaussian(schedule)
    denoiser = _Linear(schedule, *_best(gaussian, t))
    objective = ScoreMatching(denoiser, _Sampler(gaussian), UniformTimes(t, t), EDMWeight())
    found, wrong = [], []
    for index in range(16):
        step = Step(Key(0, "stationary", index), 2000)
        state = step.state(Prior(schedule, (2,), 0.9))
        total = objective(step, state).total
        found.append(
            torch.cat([value.reshape(-1) for value in torch.autograd.grad(total, [denoiser.gain, denoiser.offset])])
        )
        with torch.no_grad():
            denoiser.offset.add_(0.1)
        total = objective(step, state).total
        wrong.append(torch.autograd.grad(total, denoiser.offset)[0])
        with torch.no_grad():
            denoiser.offset.sub_(0.1)
    gradients = torch.stack(found)
    error = gradients.std(0) / 4
    assert bool((gradients.mean(0).abs() < 4.5 * error).all())
    # Which says something, since a wrong offset is seen clearly.
    assert bool((torch.stack(wrong).mean(0) > 5 * error[4:]).all())


class _Sampler(nn.Module):
    """A student that makes a Gaussian's samples of whatever noise it is given."""

    def __init__(self, gaussian: GaussianMixture):
        super().__init__()
        root = gaussian.vectors[0] @ torch.diag(gaussian.variances[0].sqrt())
        self.register_buffer("root", root)
        self.register_buffer("mean", gaussian.means[0])

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.mean + (x.double() / x.double().std()) @ self.root.T


@every_schedule
def test_denoising_weights_are_as_documented(schedule: Schedule) -> None:
    t = torch.linspace(schedule.t_min, 0.99, 9, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, estimate, noise = normals(9, 2), normals(9, 2, seed=1), normals(9, 2, seed=2)
    # Eq. 5 and 7: the squared distance of the scores (alpha D - x_t) / sigma^2 and (alpha x_0 -
    # x_t) / sigma^2.
    x_t = schedule.add_noise(x0, t, noise)
    scores = [(alpha[:, None] * value - x_t) / sigma[:, None] ** 2 for value in (estimate, x0)]
    printed = (scores[0] - scores[1]).square().mean()
    torch.testing.assert_close(denoising_loss(estimate, x0, ScoreWeight().at(schedule, t)), printed, rtol=1e-6, atol=0)
    # The noise (x_t - alpha D) / sigma.
    noises = [(x_t - alpha[:, None] * value) / sigma[:, None] for value in (estimate, x0)]
    asked = (noises[0] - noises[1]).square().mean()
    torch.testing.assert_close(denoising_loss(estimate, x0, NoiseWeight().at(schedule, t)), asked, rtol=1e-6, atol=0)
    # EDM: uniform in the network's raw output F, whose factor is c_out = sigma sd / sqrt(sigma^2 +
    # sd^2 alpha^2).
    out = sigma * 0.5 / torch.sqrt(sigma**2 + 0.25 * alpha**2)
    raw = ((estimate - x0) / out[:, None]).square().mean()
    torch.testing.assert_close(denoising_loss(estimate, x0, EDMWeight(0.5).at(schedule, t)), raw, rtol=1e-12, atol=0)


def test_score_matching_sends_nothing_to_the_student() -> None:
    student, fake = tiny_denoiser(), tiny_denoiser(seed=1)
    step = Step(Key(0), 8)
    loss = ScoreMatching(fake, student, LogNormalTimes(), EDMWeight())(step, step.state(Prior(KarrasVE(), (2,), 0.1)))
    loss.total.backward()
    assert all(value.grad is None for value in student.parameters())
    assert all(value.grad is not None for value in fake.parameters())


def test_the_lag_is_the_loss_that_training_would_see() -> None:
    student, fake = tiny_denoiser(), tiny_denoiser(seed=1)
    objective = ScoreMatching(fake, student, LogNormalTimes(), EDMWeight())
    step = Step(Key(0), 8)
    state = step.state(Prior(KarrasVE(), (2,), 0.1))
    loss, lag = objective(step, state), objective.lag(step, state)
    assert torch.equal(lag, loss.total.detach())
    assert not lag.requires_grad


# What a step costs


def _leaves(root: Tensor) -> set[int]:
    """The tensors that a backward from ``root`` would reach."""
    found, seen, queue = set(), set(), [root.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        queue += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_a_step_runs_every_network_once_for_each_thing(weight: MatchingWeight) -> None:
    """Student: forward and backward.

    Target: forward. Fake: forward; then forward and backward on the same samples. Eight evaluations
    a sample.
    """
    rows = 6
    student, fake, teacher = (
        tiny_denoiser(classes=3),
        tiny_denoiser(classes=3, seed=1),
        freeze(tiny_denoiser(classes=3, seed=2)),
    )
    calls: list[tuple[str, bool, Tensor]] = []
    backwards: Counter[str] = Counter()

    def watch(name: str, model: NetworkDenoiser) -> None:
        def hook(_module: nn.Module, inputs: tuple, output: Tensor) -> None:
            calls.append((name, output.requires_grad, inputs[0]))
            if output.requires_grad:
                output.register_hook(lambda _gradient: backwards.update([name]))

        model.network.register_forward_hook(hook)

    for name, model in (("student", student), ("fake", fake), ("teacher", teacher)):
        watch(name, model)
    prior = Prior(KarrasVE(), (2,), 0.1, conditions=Classes(3))
    matching = DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), weight)
    scores = ScoreMatching(fake, student, LogNormalTimes(), EDMWeight())
    step = Step(Key(0), rows)
    with cost.metered() as meter:
        loss = matching(step, step.state(prior))
        assert _leaves(loss.total) == {id(value) for value in student.parameters()}
        loss.total.backward()
        made = step.sample(student, step.state(prior))
        loss = scores(step, step.state(prior))
        assert _leaves(loss.total) == {id(value) for value in fake.parameters()}
        loss.total.backward()
    assert [(name, graph) for name, graph, _ in calls] == [
        ("student", True),
        ("fake", False),
        ("teacher", False),
        ("fake", True),
    ]
    assert all(len(x) == rows for _, _, x in calls)
    assert torch.equal(calls[1][2], calls[2][2])
    assert backwards == {"student": 1, "fake": 1}
    assert meter.evaluations == 8 * rows
    assert all(value.grad is None for value in teacher.parameters())
    # The fake score learns from the very samples that the student was corrected on.
    assert torch.equal(made, student(step.state(prior).x, step.state(prior).t, step.state(prior).condition).detach())
    assert not made.requires_grad


def test_phases_in_the_other_order_make_the_samples_twice_at_most() -> None:
    """A fake score that trains before the student makes samples without gradient; the student then
    runs once more, with one.
    """
    rows = 5
    student, fake, teacher = tiny_denoiser(), tiny_denoiser(seed=1), freeze(tiny_denoiser(seed=2))
    prior, step = Prior(KarrasVE(), (2,), 0.1), Step(Key(0), rows)
    with cost.metered() as meter:
        ScoreMatching(fake, student, LogNormalTimes(), EDMWeight())(step, step.state(prior))
        DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), PlainWeight())(step, step.state(prior))
    assert meter.evaluations == 9 * rows


def test_what_an_objective_does_is_a_function_of_the_place() -> None:
    student, fake, teacher = tiny_denoiser(), tiny_denoiser(seed=1), freeze(tiny_denoiser(seed=2))
    prior = Prior(KarrasVE(), (2,), 0.1)
    matching = DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), DiffInstructWeight())

    def gradient(rows: int, start: int) -> Tensor:
        step = Step(Key(9, "s", 3), rows, start)
        return torch.autograd.grad(matching(step, step.state(prior)).total, student.network.leave.weight)[0]

    assert torch.equal(gradient(8, 0), gradient(8, 0))
    halves = (gradient(4, 0) + gradient(4, 4)) / 2
    torch.testing.assert_close(gradient(8, 0), halves, rtol=1e-4, atol=1e-6)
