"""Laws of Decoupled DMD: its two gradients add up to distribution matching to a guided target, and
each is its closed form.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, normals, three_gaussians, tiny_denoiser
from torch import Tensor, nn

from fewstep.condition import Classes, Condition
from fewstep.denoisers import freeze
from fewstep.objectives import (
    DiffInstructWeight,
    DistributionMatching,
    DMDWeight,
    GuidanceAugmentation,
    MatchingWeight,
    Objective,
    PlainWeight,
)
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.states import Prior, Step
from fewstep.targets import Fixed, GuidedTarget
from fewstep.targets.guided_estimates import ConstantGuidance
from fewstep.times import UniformTimes

ROWS, TIMES = 9, UniformTimes(0.1, 0.9)
LABELLED = Classes(2)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


class _Free(nn.Module):
    """A student whose samples are its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = nn.Parameter(normals(ROWS, 2, seed=5))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.samples * 1.0


def _gradient(objective: Objective, student: _Free, schedule: Schedule) -> Tensor:
    step = Step(Key(2), ROWS)
    loss = objective(step, step.state(Prior(schedule, (2,), 0.5, conditions=LABELLED)))
    (found,) = torch.autograd.grad(loss.total, student.samples)
    return found


@every_schedule
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("weight", [DiffInstructWeight(), PlainWeight()], ids=lambda weight: weight.kind)
def test_matching_and_augmentation_are_matching_to_the_guided_target(
    schedule: Schedule, scale: float, weight: MatchingWeight
) -> None:
    student, teacher, fake = _Free(), three_gaussians(schedule), three_gaussians(schedule)
    fake.means = fake.means + 0.3
    target = Fixed(teacher)
    guided = GuidedTarget(target, ConstantGuidance(scale), LABELLED)
    whole = _gradient(DistributionMatching(student, fake, guided, TIMES, weight), student, schedule)
    matching = _gradient(DistributionMatching(student, fake, target, TIMES, weight), student, schedule)
    augmentation = _gradient(GuidanceAugmentation(student, target, TIMES, weight, LABELLED), student, schedule)
    assert bool(augmentation.abs().max() > 1e-3)
    torch.testing.assert_close(matching + (scale - 1) * augmentation, whole, rtol=1e-6, atol=1e-9)


@every_schedule
def test_the_augmentation_is_the_difference_of_two_exact_estimates_by_its_own_normaliser(schedule: Schedule) -> None:
    student, teacher = _Free(), three_gaussians(schedule)
    objective = GuidanceAugmentation(student, Fixed(teacher), TIMES, DMDWeight(), LABELLED)
    x, t = student.samples.detach(), TIMES.draw(schedule, Key(2), "matching-time", ROWS)
    x_t = schedule.add_noise(x, t, Key(2).normal("matching-noise", (ROWS, 2)).double())
    labels = Step(Key(2), ROWS).state(Prior(schedule, (2,), 0.5, conditions=LABELLED)).condition.labels
    assert labels is not None
    told, untold = teacher(x_t, t, labels), teacher(x_t, t, torch.full_like(labels, -1))
    expected = (untold - told) / (x - told).abs().mean(1, keepdim=True) / ROWS
    torch.testing.assert_close(_gradient(objective, student, schedule), expected, rtol=1e-8, atol=1e-12)


def test_the_augmentation_trains_the_student_and_nobody_else() -> None:
    student, teacher = tiny_denoiser(classes=2), freeze(tiny_denoiser(classes=2, seed=1))
    step = Step(Key(0), ROWS)
    objective = GuidanceAugmentation(student, Fixed(teacher), TIMES, DMDWeight(), LABELLED)
    objective(step, step.state(Prior(KarrasVE(), (2,), 0.1, conditions=LABELLED))).total.backward()
    assert all(value.grad is None for value in teacher.parameters())
    assert all(value.grad is not None for value in student.parameters())
