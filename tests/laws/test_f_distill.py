"""Laws of f-distill: its weights are the divergences' own, and its gradient is that of the
divergence, by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, tiny_denoiser
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import GaussianMixture, Headed, freeze
from fewstep.networks import FeatureHead
from fewstep.objectives import (
    Compared,
    DiffInstructWeight,
    DistributionMatching,
    Divergence,
    DMDWeight,
    ForwardKL,
    JensenShannon,
    MatchingWeight,
    PlainWeight,
    RatioWeight,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
)
from fewstep.random import Key
from fewstep.schedule import KarrasVE, RectifiedFlow, Schedule
from fewstep.states import Prior, Step
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes, UniformTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())

# f of each divergence D_f = E_q f(p / q), as the literature writes it.
GENERATORS: dict[Divergence, Callable[[Tensor], Tensor]] = {
    ReverseKL(): lambda r: -torch.log(r),
    ForwardKL(): lambda r: r * torch.log(r),
    JensenShannon(): lambda r: r * torch.log(r) - (r + 1) * torch.log((r + 1) / 2),
    SoftenedReverseKL(): lambda r: (r + 1) * torch.log((1 + 1 / r) / 2),
    SquaredHellinger(): lambda r: 1 - torch.sqrt(r),
}
every_divergence = pytest.mark.parametrize("divergence", GENERATORS, ids=lambda divergence: divergence.kind)


class _Line(nn.Module):
    """A student on the line that makes a Gaussian: x = mean + scale z, whatever the time."""

    def __init__(self, mean: float, scale: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([mean], dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor([scale], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.mean + self.scale * x.double()


class _LogRatio(nn.Module):
    """The best critic there is: log p / q at x_t, shifted by ``shift``, the same from each of
    ``heads`` heads.
    """

    def __init__(self, target: GaussianMixture, student: GaussianMixture, shift: float = 0.0, heads: int = 0):
        super().__init__()
        self.target, self.student, self.shift, self.heads = target, student, shift, heads

    def logits(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        found = self.target.log_density(x, t) - self.student.log_density(x, t) + self.shift
        return found[:, None].expand(-1, self.heads) if self.heads else found


class _Says(nn.Module):
    """A critic that says what it was told to."""

    def __init__(self, said: Tensor):
        super().__init__()
        self.said = said

    def logits(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.said


def _gaussian(schedule: Schedule, mean: float, scale: float) -> GaussianMixture:
    return GaussianMixture(schedule, torch.ones(1), torch.tensor([[mean]]), torch.tensor([scale**2]))


def _compared(schedule: Schedule, rows: int) -> Compared:
    t = torch.linspace(0.2, 0.8, rows, dtype=torch.float64)
    x0, x_t, target_x0, fake_x0 = (normals(rows, 2, seed=seed) for seed in range(4))
    return Compared(schedule, t, x_t, x0, target_x0, fake_x0, Condition())


@every_divergence
def test_a_weight_is_the_second_derivative_of_f_times_the_squared_ratio(divergence: Divergence) -> None:
    """By central differences of f in double precision, from ratios of 1 / 100 to 100; and f is a
    divergence's: convex, 0 at 1.
    """
    f, ratio = GENERATORS[divergence], torch.logspace(-2, 2, 33, dtype=torch.float64)
    width = 1e-4 * ratio
    second = (f(ratio + width) - 2 * f(ratio) + f(ratio - width)) / width**2
    torch.testing.assert_close(divergence.weight(ratio), second * ratio**2, rtol=1e-4, atol=1e-6)
    assert bool((second > 0).all())
    assert float(f(torch.ones(1, dtype=torch.float64))) == pytest.approx(0.0, abs=1e-15)


def test_every_divergence_has_its_law() -> None:
    """A new one joins the table above, or is not tested."""
    assert {type(divergence) for divergence in GENERATORS} == set(Divergence.family().values())


@every_schedule
@pytest.mark.parametrize("base", [DMDWeight(), PlainWeight(), DiffInstructWeight()], ids=lambda base: base.kind)
def test_the_reverse_divergence_is_distribution_matching_bit_for_bit(schedule: Schedule, base: MatchingWeight) -> None:
    """Loss and gradient, whatever the critic says, in either precision."""
    times, rows = UniformTimes(0.1, 0.9), 9
    target, fake = one_gaussian(schedule), _plane(schedule, 0.3)
    critic = _Says(100 * normals(rows))
    for dtype in (torch.float32, torch.float64):
        found = []
        for weight in (base, RatioWeight(base, ReverseKL(), critic)):
            samples = normals(rows, 2, dtype=dtype).requires_grad_()
            student = _Held(samples)
            step = Step(Key(4), rows)
            loss = DistributionMatching(student, fake, Fixed(target), times, weight)(
                step, step.state(Prior(schedule, (2,), 0.9))
            )
            found.append((loss.total, torch.autograd.grad(loss.total, samples)[0], *loss.terms.values()))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        other = RatioWeight(base, JensenShannon(), critic)
        assert not torch.equal(other.at(_compared(schedule, rows)), base.at(_compared(schedule, rows)))


class _Held(nn.Module):
    """A student whose samples are these."""

    def __init__(self, samples: Tensor):
        super().__init__()
        self.samples = (samples,)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.samples[0] * 1.0


def _on_a_grid(target: GaussianMixture, mean: float, scale: float, t: float) -> tuple[Tensor, Tensor, float]:
    """(q, r = p / q, the cell's width) on a fine grid at a noise level, by the densities written
    out.
    """
    schedule = target.schedule
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    spread = math.sqrt(alpha**2 * scale**2 + sigma**2)
    wanted = math.sqrt(alpha**2 * float(target.variances[0, 0]) + sigma**2)
    x = alpha * mean + spread * torch.linspace(-11, 11, 40_001, dtype=torch.float64)
    log_q = -0.5 * ((x - alpha * mean) / spread) ** 2 - math.log(spread * math.sqrt(2 * math.pi))
    log_p = -0.5 * ((x - alpha * float(target.means[0, 0])) / wanted) ** 2 - math.log(wanted * math.sqrt(2 * math.pi))
    return log_q.exp(), (log_p - log_q).exp(), float(x[1] - x[0])


def _divergence(divergence: Divergence, target: GaussianMixture, mean: float, scale: float, t: float) -> float:
    q, ratio, cell = _on_a_grid(target, mean, scale, t)
    return float((q * GENERATORS[divergence](ratio)).sum()) * cell


@every_schedule
@every_divergence
def test_the_mean_gradient_is_that_of_the_divergence_by_quadrature(schedule: Schedule, divergence: Divergence) -> None:
    """In mean and scale of a Gaussian student, with exact scores and the exact log ratio.

    E_q r is 1, so that the first normaliser is none in a large batch; the second divides by E_q h,
    which quadrature gives too and the gradient is multiplied by.
    """
    mean, scale, t = 0.4, 0.8, 0.006 if isinstance(schedule, KarrasVE) else 0.3
    student, target = _Line(mean, scale), _gaussian(schedule, -0.2, 1.0)
    exact_fake = _gaussian(schedule, mean, scale)
    weight = RatioWeight(PlainWeight(), divergence, _LogRatio(target, exact_fake))
    objective = DistributionMatching(student, exact_fake, Fixed(target), UniformTimes(t, t), weight)
    prior, found = Prior(schedule, (1,), 0.9, scale=1.0), []
    for index in range(20):
        step = Step(Key(0, "law", index), 20_000)
        found.append(
            torch.cat(torch.autograd.grad(objective(step, step.state(prior)).total, [student.mean, student.scale]))
        )
    q, ratio, cell = _on_a_grid(target, mean, scale, t)
    assert float((q * ratio).sum()) * cell == pytest.approx(1.0, abs=1e-9)
    gradients = torch.stack(found) * float((q * divergence.weight(ratio)).sum()) * cell
    width = 1e-5
    exact = torch.tensor(
        [
            (
                _divergence(divergence, target, mean + width, scale, t)
                - _divergence(divergence, target, mean - width, scale, t)
            )
            / (2 * width),
            (
                _divergence(divergence, target, mean, scale + width, t)
                - _divergence(divergence, target, mean, scale - width, t)
            )
            / (2 * width),
        ],
        dtype=torch.float64,
    )
    error = gradients.std(0) / math.sqrt(len(gradients))
    assert bool((error < 0.03 * exact.abs().max()).all())
    assert bool(((gradients.mean(0) - exact).abs() < 4.5 * error).all())


@every_divergence
def test_both_normalisers_take_units_away(divergence: Divergence) -> None:
    """The mean of the factor is 1, so that a divergence pulls as hard as the base does; a constant
    in the logits, which changes the mean ratio, changes nothing, and several heads are their mean.
    """
    schedule = RectifiedFlow()
    compared = _compared(schedule, 12)
    target, student = _plane(schedule, 0.3), _plane(schedule, -0.1)
    plain = RatioWeight(DiffInstructWeight(), divergence, _LogRatio(target, student)).at(compared)
    assert plain.shape == (12,)
    assert float(plain.mean()) == pytest.approx(1.0, rel=1e-12)
    for critic in (_LogRatio(target, student, shift=1.5), _LogRatio(target, student, heads=3)):
        torch.testing.assert_close(
            RatioWeight(DiffInstructWeight(), divergence, critic).at(compared), plain, rtol=1e-12, atol=0
        )
    ratio = _LogRatio(target, student).logits(compared.x_t, compared.t, compared.condition).exp()
    ratio = ratio / ratio.mean()
    expected = divergence.weight(ratio) / divergence.weight(ratio).mean()
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=0)
    weighted = RatioWeight(PlainWeight(), divergence, _LogRatio(target, student)).at(compared)
    torch.testing.assert_close(weighted, PlainWeight().at(compared) * expected, rtol=1e-12, atol=0)


def _plane(schedule: Schedule, mean: float) -> GaussianMixture:
    return GaussianMixture(schedule, torch.ones(1), torch.tensor([[mean, mean]]), torch.ones(1))


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_critic_that_is_sure_gives_finite_weights(divergence: Divergence, dtype: torch.dtype) -> None:
    """Infinite logits, huge ones, and heads that are sure of opposite things."""
    inf = math.inf
    for said in ([inf, -inf, 1e30, -1e30], [inf] * 4, [-inf] * 4, [1e5, 0.0, 0.0, 0.0]):
        logits = torch.tensor(said, dtype=dtype)
        for heads in (logits, torch.stack([logits, -logits, torch.zeros(4, dtype=dtype)], 1)):
            weight = RatioWeight(DiffInstructWeight(), divergence, _Says(heads)).at(_compared(RectifiedFlow(), 4))
            assert bool(torch.isfinite(weight).all())
            assert bool((weight > 0).all())
            assert float(weight.mean()) == pytest.approx(1.0, rel=1e-6)


def test_the_weight_gives_the_critic_no_gradient() -> None:
    """Neither in the matching loss nor where a weight is taken with gradients as they stand."""
    student, fake, teacher = tiny_denoiser(), tiny_denoiser(seed=1), freeze(tiny_denoiser(seed=2))
    critic = Headed(fake, FeatureHead(fake.network.bottleneck, 0, 8))
    weight = RatioWeight(DMDWeight(), JensenShannon(), critic)
    step = Step(Key(0), 6)
    DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), weight)(
        step, step.state(Prior(KarrasVE(), (2,), 0.1))
    ).total.backward()
    assert any(value.grad is not None for value in student.parameters())
    assert all(value.grad is None for value in critic.parameters())
    compared = _compared(RectifiedFlow(), 5)
    single = Compared(
        *(
            value.float() if isinstance(value, Tensor) and value.ndim == 2 else value
            for value in vars(compared).values()
        )
    )
    with torch.enable_grad():
        assert not weight.at(single).requires_grad
