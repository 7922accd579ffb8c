"""Laws of states and of a step: what is drawn, that it is drawn once, and that it belongs to the
sample's index.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, normals, tiny_denoiser

from fewstep import cost
from fewstep.condition import NO_CLASS, Classes
from fewstep.data import InMemory
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.states import ForwardDiffusion, Prior, State, States, Step
from fewstep.times import UniformTimes

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
DATA = InMemory(normals(50, 2, dtype=torch.float32), torch.arange(50) % 3, 3)


def _sources(schedule: Schedule) -> list[States]:
    return [
        Prior(schedule, (1, 2, 3), 0.4, conditions=Classes(4)),
        Prior(schedule, (2,), 0.9),
        ForwardDiffusion(DATA, schedule, UniformTimes(), 0.3),
    ]


def _fields(state: State) -> dict[str, torch.Tensor]:
    named = {"x": state.x, "t": state.t, "labels": state.condition.labels, "x0": state.x0, "noise": state.noise}
    return {name: value for name, value in named.items() if value is not None}


@every_schedule
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_process_draws_its_rows_of_the_global_batch(schedule: Schedule, index: int) -> None:
    states, key = _sources(schedule)[index], Key(3, "stage", 5)
    whole = _fields(Step(key, 12).state(states))
    parts = [_fields(Step(key, 4, start).state(states)) for start in (0, 4, 8)]
    for name, value in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value)
        assert not value.requires_grad
        assert len(value) == 12


@every_schedule
def test_prior_is_scaled_noise_with_a_label(schedule: Schedule) -> None:
    time = 0.4
    expected = float(schedule.sigma(time)) if isinstance(schedule, KarrasVE) else 1.0
    for scale, std in ((None, expected), (2.5, 2.5)):
        prior = Prior(schedule, (2,), time, scale)
        state = Step(Key(0), 20_000).state(prior)
        assert prior.std == std
        assert torch.equal(state.x, std * state.noise)
        assert state.t.tolist() == [time] * 20_000
        assert float(state.x.std()) == pytest.approx(std, rel=0.02)
        assert state.x0 is None
        assert state.condition.labels is None


def test_prior_classes_are_uniform() -> None:
    labels = Step(Key(0), 30_000).state(Prior(KarrasVE(), (2,), 0.4, conditions=Classes(3))).condition.labels
    torch.testing.assert_close(
        torch.bincount(labels, minlength=3).double() / 30_000,
        torch.full((3,), 1 / 3, dtype=torch.float64),
        rtol=0,
        atol=0.01,
    )


@every_schedule
@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_forward_states_are_noised_data(schedule: Schedule, dropout: float) -> None:
    state = Step(Key(0), 5000).state(ForwardDiffusion(DATA, schedule, UniformTimes(), dropout))
    assert torch.equal(state.x, schedule.add_noise(state.x0, state.t, state.noise))
    index = (state.x0[:, None] == DATA.samples).all(2).int().argmax(1)
    assert torch.equal(DATA.samples[index], state.x0)
    assert torch.bincount(index, minlength=50).min() > 0
    labels = state.condition.labels
    dropped = labels == NO_CLASS
    assert torch.equal(labels[~dropped], DATA.labels[index][~dropped])
    assert float(dropped.double().mean()) == pytest.approx(dropout, abs=0.03)
    assert float(state.noise.std()) == pytest.approx(1.0, abs=0.03)


def test_states_are_drawn_once_a_step() -> None:
    states = Prior(KarrasVE(), (2,), 0.4)
    step = Step(Key(0), 4)
    assert step.state(states) is step.state(states)
    assert torch.equal(Step(Key(0), 4).state(states).x, step.state(states).x)
    assert not torch.equal(Step(Key(0, "", 1), 4).state(states).x, step.state(states).x)


def test_what_a_step_has_made_is_never_taken_for_something_else() -> None:
    """States and models that are gone must not lend their place in memory to others."""
    step = Step(Key(0), 2)
    for size in range(1, 30):
        assert step.state(Prior(KarrasVE(), (size,), 0.4)).x.shape == (2, size)
    denoiser = tiny_denoiser()
    for seed in range(30):
        x = normals(2, 2, seed=seed, dtype=torch.float32)
        t = torch.full((2,), 0.1, dtype=torch.float64)
        assert torch.equal(step.sample(denoiser, State(x, t)), denoiser(x, t).detach())


def test_samples_are_made_once_without_gradient_and_kept_ones_are_not_made_again() -> None:
    denoiser, states = tiny_denoiser(), Prior(KarrasVE(), (2,), 0.4)
    step = Step(Key(0), 4)
    state = step.state(states)
    with cost.metered() as meter:
        first = step.sample(denoiser, state)
        assert step.sample(denoiser, state) is first
    assert meter.evaluations == 4
    assert not first.requires_grad
    other = Step(Key(0), 4)
    with cost.metered() as meter:
        made = denoiser(state.x, state.t)
        other.keep(denoiser, state, made)
        kept = other.sample(denoiser, state)
    assert meter.evaluations == 3 * 4
    assert torch.equal(kept, made.detach())
    assert not kept.requires_grad
