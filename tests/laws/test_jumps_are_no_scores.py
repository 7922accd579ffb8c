"""Why a few-step student is no teacher of distribution matching (DisBack, App. A.1: an LCM-LoRA as
the teacher does badly).

What such a student emits at x_t is where the trajectory through x_t ends, not the mean of all x_0
that x_t may have come from. On a Gaussian of mean 0 and variance v both are lines through 0: with
V = alpha^2 v + sigma^2 the end is x sqrt(v / V), the mean is x alpha v / V. Of an estimate D the
score is (alpha D - x) / sigma^2, so that with r = alpha sqrt(v / V), between 0 and 1,

    true score -x / V,    the end's -x / (V (1 + r)).

The end's is too weak, by half where there is little noise and by nothing where there is only noise.
It is the score of a Gaussian at each level alone, whose clean variance v + V r / alpha^2 is another
one at each level: of no data at all.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, normals
from torch import Tensor, nn
from trajectory_kit import FromFunction, carried

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, GaussianMixture
from fewstep.objectives import ConsistencyDistillation, DistributionMatching, Ladder, PlainWeight
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, Schedule
from fewstep.solvers import HEUN, Solver
from fewstep.states import State, Step
from fewstep.targets import Fixed
from fewstep.times import UniformTimes

VARIANCE = 0.6
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def gaussian(schedule: Schedule, variance: float = VARIANCE) -> GaussianMixture:
    return GaussianMixture(schedule, torch.ones(1), torch.zeros(1, 2), torch.tensor([variance], dtype=torch.float64))


def ends(teacher: GaussianMixture) -> FromFunction:
    """The exact few-step student: where the trajectory through x_t ends."""
    return FromFunction(teacher.schedule, lambda x, t, _: carried(teacher, x, t, 0.0))


def score(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = (value(t)[:, None] for value in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    return (alpha * denoiser(x, t) - x) / sigma**2


def parts(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, V and r, each (B, 1)."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    noisy = alpha**2 * VARIANCE + sigma**2
    return alpha, noisy, alpha * (VARIANCE / noisy).sqrt()


def levels(schedule: Schedule, count: int = 12) -> Tensor:
    """Times at which there is little noise beside the signal, and much."""
    return schedule.time_at_sigma(torch.logspace(-1, 0.9, count, dtype=torch.float64))


@every_schedule
def test_the_end_of_a_trajectory_is_not_the_mean(schedule: Schedule) -> None:
    teacher, t = gaussian(schedule), levels(schedule)
    x, (alpha, noisy, _) = normals(len(t), 2), parts(schedule, t)
    torch.testing.assert_close(ends(teacher)(x, t), x * (VARIANCE / noisy).sqrt())
    torch.testing.assert_close(teacher(x, t), x * alpha * VARIANCE / noisy)
    # A solver that follows the trajectory ends there as well.
    flow = Solver(teacher, 24, HEUN)
    for row, level in zip(x[::5], t[::5], strict=True):
        torch.testing.assert_close(
            flow(row[None], level, 0.0), ends(teacher)(row[None], level[None]), rtol=1e-2, atol=1e-2
        )


@every_schedule
def test_its_score_is_too_weak_and_of_no_data(schedule: Schedule) -> None:
    teacher, t = gaussian(schedule), levels(schedule)
    x, (alpha, noisy, r) = normals(len(t), 2), parts(schedule, t)
    torch.testing.assert_close(score(teacher, x, t), -x / noisy, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(score(ends(teacher), x, t), -x / (noisy * (1 + r)), rtol=1e-6, atol=1e-9)
    assert float(r.min()) > 0
    assert float(r.max()) > 0.9
    # At each level the score of a Gaussian of another clean variance.
    meant = VARIANCE + noisy * r / alpha**2
    assert float(meant.max() / meant.min()) > 1.2
    for index, variance in enumerate(meant.flatten().tolist()):
        each = slice(index, index + 1)
        torch.testing.assert_close(
            score(gaussian(schedule, variance), x[each], t[each]),
            score(ends(teacher), x[each], t[each]),
            rtol=1e-6,
            atol=1e-9,
        )


class _Scaled(nn.Module):
    """A one-step student: x = scale z."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.scale * x


def _pull(target: Denoiser, scale: float, times: UniformTimes) -> float:
    """The gradient of distribution matching in the student's scale, with an exact fake score."""
    student, rows = _Scaled(scale), 20_000
    fake = gaussian(target.schedule, scale**2)
    objective = DistributionMatching(student, fake, Fixed(target), times, PlainWeight())
    state = State(normals(rows, 2), torch.ones(rows, dtype=torch.float64))
    objective(Step(Key(1), rows), state).total.backward()
    assert student.scale.grad is not None
    return float(student.scale.grad)


def test_a_student_that_is_right_already_is_driven_away_by_such_a_teacher() -> None:
    """The true teacher leaves it where it is; the few-step one wants more variance, and at each
    level another.
    """
    teacher, times = gaussian(DiscreteVP()), UniformTimes(0.02, 0.98)
    right = VARIANCE**0.5
    assert _pull(teacher, right, times) == pytest.approx(0.0, abs=1e-9)
    assert _pull(ends(teacher), right, times) < -0.05
    # Where it comes to rest: found by halving, at a low level and at a high one.
    rests = []
    for at in (0.1, 0.6):
        low, high = right, 4 * right
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if _pull(ends(teacher), middle, UniformTimes(at, at)) < 0 else (low, middle)
        alpha, noisy, r = (float(value) for value in parts(teacher.schedule, torch.tensor([at], dtype=torch.float64)))
        assert low**2 == pytest.approx(VARIANCE + noisy * r / alpha**2, rel=1e-3)
        rests.append(low**2)
    assert rests[1] > 1.3 * rests[0] > 2.4 * VARIANCE


class _Gains(Denoiser):
    """A tiny student of an LCM's kind: at each rung x0 = gain x."""

    def __init__(self, schedule: Schedule, rungs: Tensor):
        super().__init__()
        self._schedule = schedule
        self.rungs = rungs
        self.gains = nn.Parameter(torch.ones(len(rungs), dtype=torch.float64))

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def classes(self) -> int:
        return 0

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.gains[(t[:, None] - self.rungs).abs().argmin(1)][:, None] * x


def test_a_student_that_consistency_distillation_trained_gives_ends_and_no_scores() -> None:
    schedule = DiscreteVP()
    teacher = gaussian(schedule)
    rungs = torch.cat([torch.linspace(0.95, 0.05, 19, dtype=torch.float64), torch.tensor([schedule.t_min])])
    ladder = Ladder((*rungs.tolist(),))
    student = _Gains(schedule, rungs)
    objective = ConsistencyDistillation(student, student, Fixed(teacher), ladder, HEUN)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    for number in range(500):
        t = rungs[torch.arange(190) % 19]
        x0, noise = VARIANCE**0.5 * normals(190, 2, seed=2 * number), normals(190, 2, seed=2 * number + 1)
        optimizer.zero_grad()
        objective(Step(Key(number), 190), State(schedule.add_noise(x0, t, noise), t)).total.backward()
        optimizer.step()
    t, x = rungs[2:16], normals(14, 2)
    found = student(x, t).detach()
    torch.testing.assert_close(found, ends(teacher)(x, t), rtol=0.03, atol=0.03)
    far = (found - teacher(x, t)).norm(dim=1) / x.norm(dim=1)
    assert float(far.min()) > 0.05
    _, _, r = parts(schedule, t)
    weakened = score(student, x, t).detach() / score(teacher, x, t)
    torch.testing.assert_close(weakened, (1 / (1 + r)).expand_as(weakened), rtol=0.1, atol=0.05)
