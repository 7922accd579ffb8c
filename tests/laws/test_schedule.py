"""Laws of the forward process: exact ends, inverses, rates, and the published discrete indices."""

from __future__ import annotations

import json

import pytest
import torch
from law_kit import SCHEDULES, normals, trained_times

from fewstep.denoisers import TimestepInputs
from fewstep.errors import UserError
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
DIFFUSERS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@every_schedule
def test_time_zero_is_clean_data_exactly(schedule: Schedule) -> None:
    assert float(schedule.alpha(0.0)) == 1.0
    assert float(schedule.sigma(0.0)) == 0.0
    assert float(schedule.log_snr(0.0)) == float("inf")
    x0 = normals(4, 3)
    assert torch.equal(schedule.add_noise(x0, torch.zeros(4), normals(4, 3, seed=1)), x0)


@every_schedule
def test_time_of_inverts_log_snr(schedule: Schedule) -> None:
    t = trained_times(schedule, 20_001)
    assert len(t) >= 20_000
    torch.testing.assert_close(schedule.time_of(schedule.log_snr(t)), t, rtol=1e-12, atol=0)


@every_schedule
def test_log_snr_inverts_time_of(schedule: Schedule) -> None:
    ends = schedule.log_snr(torch.tensor([0.999, schedule.t_min], dtype=torch.float64))
    levels = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, 5001, dtype=torch.float64))
    torch.testing.assert_close(schedule.log_snr(schedule.time_of(levels)), levels, rtol=1e-11, atol=1e-11)


@every_schedule
def test_time_at_sigma_has_that_noise_to_signal_ratio(schedule: Schedule) -> None:
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64)
    sigma = sigma[sigma > float(schedule.rho(schedule.t_min))]
    torch.testing.assert_close(schedule.rho(schedule.time_at_sigma(sigma)), sigma, rtol=1e-11, atol=0)


@every_schedule
def test_log_snr_falls_strictly(schedule: Schedule) -> None:
    t = torch.linspace(0, schedule.t_max, 50_001, dtype=torch.float64)
    assert bool((schedule.log_snr(t).diff()[1:] < 0).all())
    assert bool((schedule.alpha(t).diff() <= 0).all())
    assert bool((schedule.sigma(t).diff() > 0).all())


@every_schedule
def test_rates_are_derivatives(schedule: Schedule) -> None:
    # 0.37 of a cell past each of DiscreteVP's knots, where its slopes jump.
    t = ((torch.arange(2, 998, dtype=torch.float64) + 0.37) / 1000).requires_grad_()
    for value, rate in ((schedule.alpha, schedule.alpha_rate), (schedule.sigma, schedule.sigma_rate)):
        height = value(t)
        exact = torch.autograd.grad(height.sum(), t)[0] if height.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(rate(t.detach()), exact, rtol=1e-9, atol=1e-12)
        step = 1e-6
        slope = (value(t.detach() + step) - value(t.detach() - step)) / (2 * step)
        torch.testing.assert_close(rate(t.detach()), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name.startswith("vp")])
def test_variance_is_preserved(name: str) -> None:
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    schedule = SCHEDULES[name]
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize("betas", DIFFUSERS)
@pytest.mark.parametrize("ends", [(1e-4, 2e-2), (0.00085, 0.012)])
def test_discrete_indices_are_those_of_diffusers(betas: str, ends: tuple[float, float]) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule=DIFFUSERS[betas], beta_start=ends[0], beta_end=ends[1]
    ).alphas_cumprod
    schedule = DiscreteVP(betas, beta_start=ends[0], beta_end=ends[1])
    ours = schedule.alpha((torch.arange(1000, dtype=torch.float64) + 1) / 1000) ** 2
    # Theirs is a product of a thousand float32 factors.
    torch.testing.assert_close(ours, theirs.double(), rtol=3e-5, atol=0)


def test_timestep_399_is_time_0_4() -> None:
    schedule = SCHEDULES["vp-scaled-linear"]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(schedule.alpha(0.4) ** 2, torch.cumprod(1 - betas, 0)[399], rtol=1e-12, atol=0)
    assert float(TimestepInputs().scale_and_label(schedule, torch.tensor(0.4, dtype=torch.float64))[1]) == 399.0


def test_karras_sigma_is_the_noise_level() -> None:
    schedule = KarrasVE(0.002, 80.0)
    levels = torch.tensor([0.002, 0.7, 80.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(schedule.time_at_sigma(levels)), levels, rtol=1e-14, atol=0)
    assert schedule.t_min == 0.002 / 80
    assert schedule.prior_scale == 80.0


@every_schedule
def test_functions_keep_the_shape_of_time_and_answer_in_float64(schedule: Schedule) -> None:
    for function in (
        schedule.alpha,
        schedule.sigma,
        schedule.alpha_rate,
        schedule.sigma_rate,
        schedule.log_snr,
        schedule.rho,
        schedule.time_of,
    ):
        for t in (0.5, torch.tensor(0.5), torch.full((3,), 0.5), torch.full((2, 3), 0.5, dtype=torch.float64)):
            answer = function(t)
            assert answer.shape == (t.shape if isinstance(t, torch.Tensor) else ())
            assert answer.dtype == torch.float64
            assert torch.equal(answer, function(0.5).expand(answer.shape))


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_noise_is_the_forward_process_sample_by_sample(schedule: Schedule, dtype: torch.dtype) -> None:
    x0, noise, t = (
        normals(5, 1, 2, 2, dtype=dtype),
        normals(5, 1, 2, 2, seed=1, dtype=dtype),
        torch.tensor([0.0, 0.1, 0.4, 0.7, 1.0]),
    )
    mixed = schedule.add_noise(x0, t, noise)
    assert mixed.dtype == dtype
    rows = torch.stack(
        [
            schedule.alpha(s).to(dtype) * a + schedule.sigma(s).to(dtype) * e
            for a, s, e in zip(x0, t, noise, strict=True)
        ]
    )
    torch.testing.assert_close(mixed, rows, rtol=1e-6, atol=1e-6)
    assert torch.equal(schedule.add_noise(x0, t[2], noise), schedule.add_noise(x0, t[2].expand(5), noise))


@every_schedule
def test_description_rebuilds_it(schedule: Schedule) -> None:
    assert Schedule.from_description(json.loads(json.dumps(schedule.describe()))) == schedule


@pytest.mark.parametrize(
    "build",
    [
        lambda: KarrasVE(0.0, 80.0),
        lambda: KarrasVE(-1.0, 80.0),
        lambda: KarrasVE(2.0, 1.0),
        lambda: KarrasVE(float("nan"), 80.0),
        lambda: DiscreteVP("quadratic"),  # type: ignore[arg-type]
        lambda: DiscreteVP(steps=1),
        lambda: DiscreteVP(beta_start=0.0),
        lambda: DiscreteVP(beta_start=0.3, beta_end=0.2),
        lambda: DiscreteVP(beta_end=1.0),
        lambda: RectifiedFlow(0.0),
        lambda: RectifiedFlow(1.0),
        lambda: Schedule.from_description({"kind": "straight"}),
        lambda: Schedule.from_description({}),
        lambda: Schedule.from_description({"kind": "karras-ve", "sigma_data": 0.5}),
    ],
)
def test_bad_arguments_are_refused(build) -> None:
    with pytest.raises(UserError):
        build()
