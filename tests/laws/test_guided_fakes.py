"""Laws of a fake score that is trained guided (SiD-LSG): what its training makes of it."""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, one_gaussian, tiny_denoiser
from torch import Tensor, nn

from fewstep.condition import Classes, Condition, as_condition
from fewstep.denoisers import Denoiser, Guided
from fewstep.denoisers.wrappers import Wrapper
from fewstep.objectives import EDMWeight, ScoreMatching
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.states import Prior, Step
from fewstep.times import UniformTimes

TIMES, ROWS = UniformTimes(0.1, 0.9), 12
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


class _Same(nn.Module):
    """A student whose sample is its input."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return x.double()


class _Split(Wrapper):
    """The estimates of ``denoiser``, moved so that their guidance at ``scale`` is it again: by
    -(1 - scale) with a class, by scale without.
    """

    def __init__(self, denoiser: Denoiser, scale: float):
        super().__init__(denoiser)
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        labels = as_condition(condition).labels
        assert labels is not None
        moved = torch.where(labels < 0, self.scale, self.scale - 1).to(x)
        return self.denoiser(x, t, None) + moved[:, None]


def _loss(fake: Denoiser, guidance: float) -> Tensor:
    step = Step(Key(3), ROWS)
    objective = ScoreMatching(fake, _Same(), TIMES, EDMWeight(), guidance=guidance)
    return objective(step, step.state(Prior(fake.schedule, (2,), 0.5, conditions=Classes(3)))).total


@every_schedule
@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_training_at_a_scale_asks_the_guided_estimate_to_be_the_samples_own(schedule: Schedule, scale: float) -> None:
    """A pair of estimates whose guidance is a denoiser has its loss, and not one of their own."""
    exact = one_gaussian(schedule)
    split = _Split(exact, scale)
    torch.testing.assert_close(_loss(split, scale), _loss(exact, 1.0), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(_loss(split, 1.0), _loss(exact, 1.0), rtol=1e-3)


def test_it_is_the_training_of_the_guided_denoiser_at_equal_draws_and_trains_both_estimates() -> None:
    fake = tiny_denoiser(KarrasVE(), classes=3).double()
    guided = _loss(fake, 2.0)
    assert torch.equal(guided, _loss(Guided(fake, 2.0), 1.0))
    assert not torch.equal(guided, _loss(fake, 1.0))
    guided.backward()
    assert all(value.grad is not None for value in fake.parameters())
