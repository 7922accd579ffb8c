"""Laws of adversarial terms: losses at their optimum, R1 in closed form, who is trained by what,
and the balance of two losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from law_kit import SCHEDULES, normals, tiny_denoiser
from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Classes, Condition
from fewstep.denoisers import GaussianMixture, freeze
from fewstep.errors import UserError
from fewstep.objectives import (
    AdversarialCritic,
    AdversarialGenerator,
    Balanced,
    Clean,
    CleanCritic,
    DistributionMatching,
    DMDWeight,
    GANLoss,
    Hinge,
    Loss,
    Noised,
    NonSaturating,
    Objective,
    View,
    loss_of,
)
from fewstep.random import Key
from fewstep.schedule import KarrasVE, RectifiedFlow, Schedule
from fewstep.states import Prior, State, States, Step
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes, UniformTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_loss = pytest.mark.parametrize("loss", [NonSaturating(), Hinge()], ids=["non-saturating", "hinge"])
FLOW = RectifiedFlow()
VIEWS: dict[str, View] = {"clean": Clean(), "noised": Noised(FLOW, UniformTimes(0.1, 0.7))}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())


@dataclass(frozen=True)
class _Data(States):
    """Clean samples of a round Gaussian in the plane around (mean, mean), labelled 1, at t = 0."""

    mean: float = 0.0
    std: float = 1.0

    def draw(self, step: Step) -> State:
        x0 = self.mean + self.std * step.key.normal("law-data", (step.rows, 2), step.start).double()
        return State(
            x0,
            torch.zeros(step.rows, dtype=torch.float64),
            Condition(labels=torch.ones(step.rows, dtype=torch.int64)),
            x0,
        )


class _Same(nn.Module):
    """A student that makes mean + scale z of the prior's z, with both trainable."""

    def __init__(self, mean: float = 0.0, scale: float = 1.0):
        super().__init__()
        self.mean, self.scale = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (mean, scale))

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.mean + self.scale * x.double()


class _Critic(nn.Module):
    """given(x, t) + bias + slope . x + bend |x|^2, the last three trainable and 0 unless given."""

    def __init__(
        self,
        given: Callable[[Tensor, Tensor], Tensor],
        bias: float = 0.0,
        slope: tuple[float, float] = (0.0, 0.0),
        bend: float = 0.0,
    ):
        super().__init__()
        self.given = given
        self.bias, self.slope, self.bend = (
            nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (bias, slope, bend)
        )
        self.seen: list[tuple[Tensor, Tensor, Condition]] = []

    def logits(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.seen.append((x, t, condition))
        return self.given(x, t) + self.bias + x @ self.slope + self.bend * x.square().sum(1)


class _Heads(nn.Module):
    """Linear logits of several heads: x W^T."""

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def logits(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return x @ self.weights.T


def _nothing(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.float64)


def _gaussian(mean: float, std: float) -> GaussianMixture:
    return GaussianMixture(FLOW, torch.ones(1), torch.full((1, 2), mean), torch.tensor([std**2]))


def _prior(schedule: Schedule = FLOW) -> Prior:
    return Prior(schedule, (2,), 0.9, scale=1.0)


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in gradients])


# Losses at their optimum


@every_view
def test_the_log_ratio_of_densities_is_the_best_critic(view: View) -> None:
    """Its gradient in a bias, a slope and a bend vanishes over samples, which that of a shifted one
    does not.
    """
    real, made = _gaussian(0.4, 1.0), _gaussian(-0.2, 0.7)

    def ratio(x: Tensor, t: Tensor) -> Tensor:
        return (real.log_density(x, t) - made.log_density(x, t)).detach()

    def gradients(critic: _Critic) -> Tensor:
        objective = AdversarialCritic(critic, _Same(-0.2, 0.7), _Data(0.4, 1.0), NonSaturating(), view)
        found = []
        for index in range(20):
            step = Step(Key(0, "law", index), 2000)
            found.append(
                _flat(torch.autograd.grad(objective(step, step.state(_prior())).total, list(critic.parameters())))
            )
        return torch.stack(found)

    found, wrong = gradients(_Critic(ratio)), gradients(_Critic(ratio, bias=0.2))
    error = found.std(0) / math.sqrt(20)
    assert bool((found.mean(0).abs() < 4.5 * error).all())
    assert float(wrong.mean(0)[0] / error[0]) > 10


@every_view
def test_a_critic_that_cannot_tell_loses_two_log_two(view: View) -> None:
    """Where student and data are one distribution, the best critic says 0; hinge's loss is then
    2.
    """
    step = Step(Key(0), 64)
    for loss, value in ((NonSaturating(), 2 * math.log(2)), (Hinge(), 2.0)):
        found = AdversarialCritic(_Critic(_nothing), _Same(), _Data(), loss, view)(step, step.state(_prior()))
        assert float(found.total.detach()) == pytest.approx(value, rel=1e-12)
        assert float(found.terms["critic_real"]) == float(found.terms["critic_fake"]) == 0.0


def test_the_value_at_the_optimum_is_two_log_two_less_twice_jensen_shannon() -> None:
    """On a line, by quadrature: densities as weights of the logits."""
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    p, q = (torch.distributions.Normal(mean, std).log_prob(grid) for mean, std in ((0.5, 1.0), (-0.7, 0.6)))
    middle = torch.logaddexp(p, q) - math.log(2)
    divergence = 0.5 * torch.trapezoid(p.exp() * (p - middle) + q.exp() * (q - middle), grid)

    def expected(logits: Tensor) -> Tensor:
        """E over p and q of the critic's losses, each taken of one logit."""
        far = torch.tensor(1e9, dtype=torch.float64)
        of_real = torch.stack([NonSaturating().critic(value, -far) for value in logits])
        of_fake = torch.stack([NonSaturating().critic(far, value) for value in logits])
        return torch.trapezoid(p.exp() * of_real + q.exp() * of_fake, grid)

    best = expected(p - q)
    torch.testing.assert_close(best, 2 * math.log(2) - 2 * divergence, rtol=1e-6, atol=0)
    for other in (p - q + 0.1, (p - q) * 1.1, (p - q) * 0.9):
        assert float(expected(other) - best) > 5e-4


def test_the_best_critic_of_hinge_is_the_sign() -> None:
    """For round Gaussians at distance d: loss 2 - 2 c TV for c sign(p - q) with c <= 1, and it
    rises again beyond; TV = 2 Phi(d / 2) - 1.
    """
    mean = 0.6
    distance = 2 * mean * math.sqrt(2)
    right = 0.5 * (1 + math.erf(distance / 2 / math.sqrt(2)))
    step = Step(Key(0), 200_000)

    def value(size: float) -> float:
        critic = _Critic(lambda x, t: size * torch.sign(x.sum(1)))
        return float(
            AdversarialCritic(critic, _Same(-mean), _Data(mean), Hinge(), Clean())(
                step, step.state(_prior())
            ).total.detach()
        )

    for size in (0.5, 1.0):
        assert value(size) == pytest.approx(2 - 2 * size * (2 * right - 1), abs=0.01)
    assert value(2.0) == pytest.approx(2 * 3 * (1 - right), abs=0.02)
    assert value(1.0) < min(value(0.5), value(2.0))


@every_view
@every_loss
def test_the_generator_follows_the_critics_slope(view: View, loss: GANLoss) -> None:
    """For a linear critic a . x + b: -a for hinge, -sigmoid(-l) a for softplus, times alpha where
    samples are noised, over the batch.
    """
    rows = 7
    student = _Free(normals(rows, 2))
    critic = _Critic(_nothing, bias=0.3, slope=(1.5, -0.5))
    step = Step(Key(4), rows)
    total = AdversarialGenerator(student, critic, loss, view)(step, step.state(_prior())).total
    (found,) = torch.autograd.grad(total, student.samples)
    x, t, _ = critic.seen[0]
    logits = critic.logits(x, t, Condition()).detach()
    pull = torch.sigmoid(-logits) if isinstance(loss, NonSaturating) else torch.ones(rows, dtype=torch.float64)
    expected = -(FLOW.alpha(t) * pull)[:, None] * critic.slope.detach() / rows
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class _Free(nn.Module):
    """A student whose samples are its parameters."""

    def __init__(self, samples: Tensor):
        super().__init__()
        self.samples = nn.Parameter(samples)

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.samples * 1.0


@every_loss
def test_heads_are_averaged(loss: GANLoss) -> None:
    real, fake = normals(6, 3), normals(6, 3, seed=1)
    each = torch.stack([loss.critic(real[:, head], fake[:, head]) for head in range(3)])
    torch.testing.assert_close(loss.critic(real, fake), each.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        loss.generator(fake),
        torch.stack([loss.generator(fake[:, head]) for head in range(3)]).mean(),
        rtol=1e-12,
        atol=0,
    )


# What a critic sees


@every_schedule
def test_what_a_critic_sees_is_noised_with_shared_levels_and_noise_of_its_own(schedule: Schedule) -> None:
    rows, times = 9, UniformTimes(0.1, 0.9)
    critic, student = _Critic(_nothing), _Same(0.5, 2.0)
    step, prior = Step(Key(0), rows), Prior(schedule, (2,), 0.9, scale=1.0, conditions=Classes(3))
    AdversarialCritic(critic, student, _Data(), NonSaturating(), Noised(schedule, times))(step, step.state(prior))
    (real, t, real_condition), (fake, s, fake_condition) = critic.seen
    made = step.sample(student, step.state(prior))
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    assert torch.equal(t, s)
    noises = [(seen - alpha * clean) / sigma for seen, clean in ((real, step.state(_DATA).x0), (fake, made))]
    assert float((noises[0] - noises[1]).abs().min()) > 1e-6
    for index, role in enumerate(("real", "fake")):
        torch.testing.assert_close(
            noises[index], Key(0).normal(f"critic-{role}-noise", (rows, 2)).double(), rtol=1e-6, atol=1e-6
        )
    # Each side has its own conditions.
    assert real_condition.labels.tolist() == [1] * rows
    assert torch.equal(fake_condition.labels, step.state(prior).condition.labels)


_DATA = _Data()


def test_a_clean_critic_sees_samples_as_they_are() -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor, condition: Condition) -> Tensor:
            return x.sum(1) * condition.labels

    x, t = Clean().see(Step(Key(0), 3), "critic", "fake", normals(3, 2))
    assert torch.equal(x, normals(3, 2))
    assert t.tolist() == [0.0] * 3
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(CleanCritic(Network()).logits(x, t, Condition(labels=labels)), x.sum(1) * labels)


# R1


@every_view
@pytest.mark.parametrize("r1", [0.1, 10.0])
def test_r1_of_linear_and_quadratic_critics(view: View, r1: float) -> None:
    """|a + 2 b x|^2 at the data as the critic sees them, not at the clean ones and not at the
    samples; and its gradient in a and b.
    """
    step, student = Step(Key(0), 50), _Same(3.0)
    for slope, bend in (((1.5, -0.5), 0.0), ((0.3, 0.2), 0.7)):
        critic = _Critic(_nothing, slope=slope, bend=bend)
        losses = [
            AdversarialCritic(critic, student, _Data(), NonSaturating(), view, factor)(step, step.state(_prior()))
            for factor in (0.0, r1)
        ]
        real = critic.seen[0][0].detach()
        assert view is VIEWS["clean"] or not torch.equal(real, step.state(_Data()).x0)
        arrows = torch.tensor(slope, dtype=torch.float64) + 2 * bend * real
        penalty = arrows.square().sum(1).mean()
        torch.testing.assert_close(losses[1].terms["r1"], penalty, rtol=1e-12, atol=0)
        torch.testing.assert_close(losses[1].total - losses[0].total, 0.5 * r1 * penalty, rtol=1e-9, atol=1e-12)
        found = _flat(torch.autograd.grad(losses[1].total - losses[0].total, [critic.slope, critic.bend]))
        expected = r1 * torch.cat([arrows.mean(0), 2 * (arrows * real).sum(1).mean()[None]])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert "r1" not in losses[0].terms


def test_r1_is_of_the_sum_over_heads() -> None:
    weights = normals(3, 2)
    step = Step(Key(0), 5)
    loss = AdversarialCritic(_Heads(weights), _Same(), _Data(), Hinge(), Clean(), 1.0)(step, step.state(_prior()))
    torch.testing.assert_close(loss.terms["r1"], weights.sum(0).square().sum(), rtol=1e-12, atol=0)


# Who is trained by what


@every_view
def test_each_side_trains_itself_alone(view: View) -> None:
    student, critic = _Same(0.5), _Critic(_nothing, slope=(1.0, 2.0))
    step = Step(Key(0), 8)
    state = step.state(_prior())
    AdversarialGenerator(student, critic, NonSaturating(), view)(step, state).total.backward()
    assert all(value.grad is not None for value in student.parameters())
    assert all(value.grad is None and value.requires_grad for value in critic.parameters())
    step.forget_graphs()
    student.zero_grad(set_to_none=True)
    AdversarialCritic(critic, student, _Data(), NonSaturating(), view, 1.0)(step, state).total.backward()
    assert all(value.grad is None for value in student.parameters())
    assert all(value.grad is not None for value in critic.parameters())
    assert not step.state(_Data()).x0.requires_grad


def test_matching_and_the_adversarial_term_share_the_students_forward() -> None:
    """DMD2's student: 3 evaluations of it, one each of both denoisers; the critic's phase then asks
    for the same samples and runs no student.
    """
    rows = 6
    student, fake, teacher = tiny_denoiser(), tiny_denoiser(seed=1), freeze(tiny_denoiser(seed=2))
    critic = _Heads(normals(1, 2, dtype=torch.float32))
    view = Noised(KarrasVE(), LogNormalTimes())
    prior, step = Prior(KarrasVE(), (2,), 0.1), Step(Key(0), rows)
    matching = DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), DMDWeight())
    with cost.metered() as meter:
        state = step.state(prior)
        total = (
            matching(step, state).total
            + AdversarialGenerator(student, critic, NonSaturating(), view)(step, state).total
        )
        total.backward()
        step.forget_graphs()
        AdversarialCritic(critic, student, _Float(), NonSaturating(), view)(step, state).total.backward()
    assert meter.evaluations == 5 * rows


@dataclass(frozen=True)
class _Float(States):
    def draw(self, step: Step) -> State:
        x0 = step.key.normal("law-data", (step.rows, 2), step.start)
        return State(x0, torch.zeros(step.rows, dtype=torch.float64), Condition(), x0)


def test_what_an_adversarial_term_does_is_a_function_of_the_place() -> None:
    critic, student = _Critic(_nothing, slope=(1.0, 2.0)), _Same(0.5)
    objective = AdversarialCritic(critic, student, _Data(), NonSaturating(), VIEWS["noised"], 1.0)

    def gradient(rows: int, start: int) -> Tensor:
        step = Step(Key(9, "s", 3), rows, start)
        return _flat(torch.autograd.grad(objective(step, step.state(_prior())).total, list(critic.parameters())))

    torch.testing.assert_close((gradient(4, 0) + gradient(4, 4)) / 2, gradient(8, 0), rtol=1e-10, atol=1e-12)


def test_what_makes_no_sense_is_refused() -> None:
    critic, student, step = _Critic(_nothing), _Same(), Step(Key(0), 4)
    with pytest.raises(UserError, match="at least 0"):
        AdversarialCritic(critic, student, _Data(), Hinge(), Clean(), -1.0)
    with pytest.raises(UserError, match=r"Prior.*ForwardDiffusion"):
        AdversarialCritic(critic, student, _prior(), Hinge(), Clean())(step, step.state(_prior()))


# Balanced losses


@dataclass(frozen=True, eq=False)
class _Given(Objective):
    """factor <direction, weights>, and a count of how often it was asked."""

    weights: Tensor
    direction: Tensor
    name: str
    calls: list[int]

    def __call__(self, step: Step, state: State) -> Loss:
        self.calls.append(step.key.step)
        return Loss((self.direction * self.weights).sum(), {self.name: torch.tensor(1.0)})


def _layer(parameter: nn.Parameter) -> nn.ParameterList:
    return nn.ParameterList([parameter])


def _pair(
    main: Tensor, other: Tensor, names: tuple[str, str] = ("main", "other")
) -> tuple[nn.ParameterList, _Given, _Given]:
    parameter = nn.Parameter(normals(3, 2))
    return _layer(parameter), _Given(parameter, main, names[0], []), _Given(parameter, other, names[1], [])


def _at(step: int) -> tuple[Step, State]:
    here = Step(Key(0, "s", step), 4)
    return here, here.state(_DATA)


def test_balanced_losses_push_equally_hard() -> None:
    main, other = normals(3, 2, seed=1), 1e3 * normals(3, 2, seed=2)
    layer, first, second = _pair(main, other)
    loss = Balanced(first, second, layer)(*_at(0))
    factor = main.norm() / (other.norm() + 1e-6)
    torch.testing.assert_close(loss.terms["balance"], factor, rtol=1e-12, atol=0)
    assert not loss.terms["balance"].requires_grad
    (found,) = torch.autograd.grad(loss.total, layer[0])
    torch.testing.assert_close(found, main + factor * other, rtol=1e-12, atol=0)
    torch.testing.assert_close((found - main).norm(), main.norm(), rtol=1e-8, atol=0)
    torch.testing.assert_close(loss.total, ((main + factor * other) * layer[0]).sum(), rtol=1e-12, atol=1e-12)
    assert set(loss.terms) == {"main", "other", "balance"}


def test_a_weight_of_balanced_losses_multiplies_the_push_beyond_its_bound() -> None:
    main, other = normals(3, 2, seed=1), 1e3 * normals(3, 2, seed=2)
    layer, first, second = _pair(main, other)
    loss = Balanced(first, second, layer, weight=0.25)(*_at(0))
    (found,) = torch.autograd.grad(loss.total, layer[0])
    torch.testing.assert_close((found - main).norm(), 0.25 * main.norm(), rtol=1e-8, atol=0)
    bounded = Balanced(first, second, layer, largest=1e-9, weight=0.5)(*_at(1))
    assert float(bounded.terms["balance"]) == 0.5e-9


def test_the_balance_is_bounded_and_starts_late() -> None:
    layer, first, second = _pair(normals(3, 2, seed=1), 1e-9 * normals(3, 2, seed=2))
    objective = Balanced(first, second, layer, start_after=5, largest=7.0)
    assert float(objective(*_at(5)).terms["balance"]) == 7.0
    early = objective(*_at(4))
    assert second.calls == [5]
    assert set(early.terms) == {"main"}
    assert torch.equal(torch.autograd.grad(early.total, layer[0])[0], first.direction)


def test_balanced_losses_that_cannot_be_balanced_are_refused() -> None:
    layer, first, second = _pair(normals(3, 2), normals(3, 2))
    with pytest.raises(UserError, match="_Given does not depend"):
        Balanced(first, second, _layer(nn.Parameter(torch.ones(2))))(*_at(0))
    _, first, same = _pair(normals(3, 2), normals(3, 2), ("gap", "gap"))
    with pytest.raises(UserError, match="both report 'gap'"):
        Balanced(first, same, layer)(*_at(0))


def test_matching_balanced_with_an_adversarial_term_shares_the_graph() -> None:
    """On the student's last layer, with the norms measured apart."""
    student, fake, teacher = tiny_denoiser(), tiny_denoiser(seed=1), freeze(tiny_denoiser(seed=2))
    prior, layer = Prior(KarrasVE(), (2,), 0.1), student.network.leave
    matching = DistributionMatching(student, fake, Fixed(teacher), LogNormalTimes(), DMDWeight())
    adversarial = AdversarialGenerator(
        student, _Heads(normals(2, 2, dtype=torch.float32)), Hinge(), Noised(KarrasVE(), LogNormalTimes())
    )
    norms = []
    for objective in (matching, adversarial):
        step = Step(Key(0), 6)
        norms.append(torch.autograd.grad(loss_of(objective, step, step.state(prior)).total, layer.weight)[0].norm())
    step = Step(Key(0), 6)
    with cost.metered() as meter:
        loss = Balanced(matching, adversarial, layer)(step, step.state(prior))
    loss.total.backward()
    assert meter.evaluations == 5 * 6
    torch.testing.assert_close(loss.terms["balance"], norms[0] / (norms[1] + 1e-6), rtol=1e-5, atol=0)
