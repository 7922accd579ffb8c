"""The schedules of text-to-image models: what a network emits means what diffusers' schedulers take
it to mean, at every timestep.

diffusers' tables are products of a thousand float32 factors. They are compared with ours as they
are, and ours with the same formulas in double precision.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import EDMInputs, TimestepInputs
from fewstep.errors import UserError
from fewstep.prediction import EDM, Epsilon, Prediction, V, Velocity
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule, ZeroSNRVP
from fewstep.zoo.diffusers_schedulers import ignored_by, meaning_of, settings_of

diffusers = pytest.importorskip("diffusers")

SD = {"beta_start": 0.00085, "beta_end": 0.012}
KINDS: dict[str, dict[str, Any]] = {
    "scaled linear": {"beta_schedule": "scaled_linear", **SD},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", **SD},
    "zero SNR": {"beta_schedule": "scaled_linear", **SD, "rescale_betas_zero_snr": True},
}
PREDICTIONS = {"epsilon": Epsilon(), "v_prediction": V()}
TIMES = (torch.arange(1000, dtype=torch.float64) + 1) / 1000


def scheduler_of(kind: str, prediction: str) -> Any:
    return diffusers.DDIMScheduler(1000, **KINDS[kind], prediction_type=prediction, clip_sample=False)


def meaning(scheduler: Any) -> tuple[Schedule, Prediction]:
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    schedule, prediction, inputs = meaning_of(config, Path("scheduler_config.json"))
    label = inputs.scale_and_label(schedule, TIMES)[1]
    torch.testing.assert_close(label, torch.arange(1000, dtype=torch.float64), rtol=0, atol=1e-10)
    return schedule, prediction


def in_double(scheduler: Any) -> Any:
    """The same scheduler with its tables computed in double precision, by its own formulas."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    config = scheduler.config
    start, end, whole = config.beta_start, config.beta_end, torch.arange(1001, dtype=torch.float64) / 1000
    bars = torch.cos((whole + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = {
        "linear": torch.linspace(start, end, 1000, dtype=torch.float64),
        "scaled_linear": torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2,
        "squaredcos_cap_v2": (1 - bars[1:] / bars[:-1]).clamp(max=0.999),
    }[config.beta_schedule]
    betas = rescale_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    return scheduler


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [(kind, name) for kind in KINDS for name in PREDICTIONS if (kind, name) != ("zero SNR", "epsilon")],
)
def test_samples_noise_and_velocities_are_the_schedulers_at_every_timestep(kind: str, prediction: str) -> None:
    scheduler = in_double(scheduler_of(kind, prediction))
    schedule, ours = meaning(scheduler)
    assert (type(schedule), ours) == (ZeroSNRVP if kind == "zero SNR" else DiscreteVP, PREDICTIONS[prediction])
    scheduler.set_timesteps(1000)
    x0, eps, index = noise(1000, 4, seed=0), noise(1000, 4, seed=1), torch.arange(1000)
    x = schedule.add_noise(x0, TIMES, eps)
    torch.testing.assert_close(x, scheduler.add_noise(x0, eps, index), rtol=1e-9, atol=1e-9)
    velocity = scheduler.get_velocity(x0, eps, index)
    torch.testing.assert_close(V().target(schedule, x0, x, TIMES), velocity, rtol=1e-9, atol=1e-9)
    if kind != "zero SNR":
        torch.testing.assert_close(Epsilon().target(schedule, x0, x, TIMES), eps, rtol=1e-9, atol=1e-7)
    emitted = noise(1000, 4, seed=2)
    expected = torch.stack([scheduler.step(emitted[i], i, x[i]).pred_original_sample for i in range(1000)])
    found = ours.to_x0(schedule, emitted, x, TIMES)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_own_tables_are_ours_to_their_precision(kind: str) -> None:
    scheduler = scheduler_of(kind, "v_prediction")
    schedule, _ = meaning(scheduler)
    theirs = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.alpha(TIMES), theirs.sqrt(), rtol=2e-5, atol=2e-7)
    torch.testing.assert_close(schedule.sigma(TIMES), (1 - theirs).sqrt(), rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [
        (kind, name)
        for kind in KINDS
        for name in ("epsilon", "v_prediction", "sample")
        if (kind, name) != ("zero SNR", "epsilon")
    ],
)
def test_what_a_scheduler_is_told_is_what_it_says(kind: str, prediction: str) -> None:
    """``settings_of`` is the inverse of ``meaning_of``, by diffusers' own classes."""
    if (kind, prediction) == ("zero SNR", "epsilon"):
        pytest.skip("noise without a signal tells nothing")
    scheduler = scheduler_of(kind, prediction)
    read = meaning_of({**scheduler.config, "_class_name": "DDIMScheduler"}, Path("scheduler_config.json"))
    settings = settings_of(*read)
    assert {name: scheduler.config[name] for name in settings} == settings
    told = diffusers.LCMScheduler(**settings)
    assert torch.equal(told.alphas_cumprod, scheduler.alphas_cumprod)
    assert meaning_of({**told.config, "_class_name": "LCMScheduler"}, Path("s.json")) == read


@pytest.mark.parametrize(
    "meaning",
    [
        (RectifiedFlow(), Velocity(), TimestepInputs(1000.0, 0.0)),
        (KarrasVE(), EDM(), EDMInputs()),
        (DiscreteVP(), Velocity(), TimestepInputs()),
        (DiscreteVP(), Epsilon(), TimestepInputs(1000.0, 0.0)),
        (DiscreteVP(steps=500), Epsilon(), TimestepInputs()),
    ],
)
def test_what_schedulers_have_no_words_for_is_refused(meaning: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match="is none of diffusers' variance preserving ones"):
        settings_of(*meaning)


def test_noise_without_a_signal_tells_nothing() -> None:
    with pytest.raises(UserError, match="rescale_betas_zero_snr with prediction_type 'epsilon': no signal is left"):
        meaning(scheduler_of("zero SNR", "epsilon"))
    schedule = ZeroSNRVP("scaled_linear", beta_start=0.00085, beta_end=0.012)
    with pytest.raises(UserError, match=r"eps prediction cannot be used with ZeroSNRVP, whose alpha is 0 at t = 1\.0"):
        Epsilon().check(schedule)
    assert float(schedule.alpha(1.0)) == 0.0
    assert float(schedule.sigma(1.0)) == 1.0


@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "LCMScheduler",
        "TCDScheduler",
    ],
)
def test_other_samplers_say_the_same_process(name: str) -> None:
    scheduler = getattr(diffusers, name)(1000, **SD, beta_schedule="scaled_linear", prediction_type="v_prediction")
    schedule, prediction = meaning(scheduler)
    assert (schedule, prediction) == (DiscreteVP("scaled_linear", 1000, 0.00085, 0.012), V())
    theirs = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.alpha(TIMES), theirs.sqrt(), rtol=2e-5, atol=0)
    config = {**scheduler.config, "_class_name": name}
    assert ignored_by(config, Path("s.json")) == ()
    if name == "LCMScheduler":
        assert "clip_sample of its" in ignored_by({**config, "clip_sample": True}, Path("s.json"))[0]
