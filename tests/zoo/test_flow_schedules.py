"""Flow schedulers of diffusers': their sigmas are our times, shifted; their steps our jumps."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowInputs
from fewstep.errors import UserError
from fewstep.prediction import X0, Flow, Velocity
from fewstep.schedule import RectifiedFlow, Schedule, ShiftedFlow
from fewstep.zoo.diffusers_schedulers import meaning_of

SHIFTS = {
    "none": {},
    "3": {"shift": 3.0},
    "below 1": {"shift": 0.5},
    "dynamic": {"use_dynamic_shifting": True},
    "dynamic, of Qwen": {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192},
    "dynamic, linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
}
TOKENS = 1024
every_shift = pytest.mark.parametrize("kind", SHIFTS)


def euler(kind: str) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**SHIFTS[kind])


def meaning(scheduler: Any, tokens: int | None = TOKENS, **changes: Any) -> tuple[Schedule, Any, Any]:
    config = {**scheduler.config, "_class_name": type(scheduler).__name__, **changes}
    return meaning_of(config, "scheduler_config.json", tokens)


def mu_of(scheduler: Any, tokens: int) -> float:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = scheduler.config
    return float(
        calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
    )


def sigmas_of(scheduler: Any, times: list[float]) -> Tensor:
    """The sigmas that the scheduler makes of times."""
    given = {"mu": mu_of(scheduler, TOKENS)} if scheduler.config.use_dynamic_shifting else {}
    scheduler.set_timesteps(sigmas=times, **given)
    return scheduler.sigmas


@every_shift
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_times_are_the_schedulers_before_their_shift(kind: str, steps: int) -> None:
    scheduler = euler(kind)
    schedule, _, inputs = meaning(scheduler)
    times = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    theirs = sigmas_of(scheduler, times.tolist())
    assert float(theirs[-1]) == 0.0
    torch.testing.assert_close(schedule.sigma(times), theirs[:-1].double(), rtol=1e-6, atol=1e-6)
    _, label = inputs.scale_and_label(schedule, times)
    torch.testing.assert_close(label, scheduler.timesteps.double(), rtol=1e-6, atol=1e-3)


@every_shift
def test_a_jump_is_the_schedulers_step(kind: str) -> None:
    scheduler = euler(kind)
    schedule, prediction, _ = meaning(scheduler)
    times = [1.0, 0.7, 0.4, 0.1]
    sigmas_of(scheduler, times)
    generator = torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(3, 4, 2, 2, generator=generator)
    for index, time in enumerate(times):
        emitted = torch.randn(3, 4, 2, 2, generator=generator)
        after = torch.tensor([*times, 0.0][index + 1], dtype=torch.float64)
        now = torch.full((3,), time, dtype=torch.float64)
        x0 = prediction.to_x0(schedule, emitted, ours, now)
        eps = (ours - float(schedule.alpha(time)) * x0) / float(schedule.sigma(time))
        ours = float(schedule.alpha(after)) * x0 + float(schedule.sigma(after)) * eps
        theirs = scheduler.step(emitted, scheduler.timesteps[index], theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_shift_of_one_is_no_shift() -> None:
    plain, shifted = RectifiedFlow(), ShiftedFlow(1.0)
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    for name in ("alpha", "sigma", "alpha_rate", "sigma_rate"):
        assert torch.equal(getattr(plain, name)(times), getattr(shifted, name)(times))
    assert meaning(euler("none"))[0] == RectifiedFlow(1e-3)
    levels = torch.linspace(-9, 9, 101, dtype=torch.float64)
    torch.testing.assert_close(plain.time_of(levels), shifted.time_of(levels), rtol=1e-15, atol=0)


def test_a_shift_is_that_of_the_number_of_tokens() -> None:
    scheduler = euler("dynamic")
    for tokens, mu in ((256, 0.5), (4096, 1.15), (1024, 0.63)):
        schedule = meaning(scheduler, tokens)[0]
        assert isinstance(schedule, ShiftedFlow)
        assert schedule.shift == pytest.approx(math.exp(mu), rel=1e-12)
    assert meaning(euler("dynamic, linear"), 256)[0] == ShiftedFlow(0.5, 1e-3)
    with pytest.raises(UserError, match="true for use_dynamic_shifting, by a number of tokens that this network does"):
        meaning(scheduler, None)


def test_shifts_follow_one_another() -> None:
    """Twice shifted is shifted by the product, and by the inverse back."""
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    twice = ShiftedFlow(2.0).sigma(ShiftedFlow(1.5).sigma(times))
    torch.testing.assert_close(twice, ShiftedFlow(3.0).sigma(times), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(ShiftedFlow(0.5).sigma(ShiftedFlow(2.0).sigma(times)), times, rtol=1e-14, atol=1e-15)


def test_on_the_plain_line_the_flow_is_the_velocity() -> None:
    times = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    for ours, theirs in zip(
        Flow().coefficients(RectifiedFlow(), times), Velocity().coefficients(RectifiedFlow(), times), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_other_solvers_on_flows_say_their_shift(name: str) -> None:
    scheduler = getattr(diffusers, name)(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert meaning(scheduler) == (ShiftedFlow(3.0, 1e-3), Flow(), FlowInputs(1000.0))
    scheduler.set_timesteps(10)
    sigmas = scheduler.sigmas[:-1].double()
    schedule = meaning(scheduler)[0]
    evenly = schedule.time_of(2 * (torch.log1p(-sigmas) - torch.log(sigmas)))[1:].diff()
    torch.testing.assert_close(evenly, evenly.mean().expand_as(evenly), rtol=2e-3, atol=2e-5)
    assert meaning(scheduler, prediction_type="sample")[1] == X0()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"invert_sigmas": True}, "true for invert_sigmas"),
        ({"stochastic_sampling": True}, "true for stochastic_sampling"),
        ({"shift": 0.0}, "0.0 for shift"),
        ({"shift": "three"}, "three"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "256 for base_image_seq_len and 256"),
        ({"use_dynamic_shifting": True, "time_shift_type": "cubic"}, "'cubic' for time_shift_type"),
        ({"use_dynamic_shifting": True, "max_shift": 1e5}, "shifts times by"),
        ({"use_dynamic_shifting": True, "max_shift": float("nan")}, "max_shift"),
        ({"prediction_type": "epsilon"}, "'epsilon' for prediction_type"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
    ],
)
def test_what_is_no_flow_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^scheduler_config\.json: .*{said}"):
        meaning(euler("none"), **changes)
