"""Laws of solvers on ODEs whose solution is known: orders, invariance under the schedule, and the
published algorithms step by step.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, randomised, three_gaussians, time, tiny_denoiser
from torch import Tensor, nn

from fewstep import cost
from fewstep.denoisers import GaussianMixture, NetworkDenoiser, Rescheduled, TimestepInputs
from fewstep.errors import UserError
from fewstep.prediction import Epsilon
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule
from fewstep.solvers import DPM2M, EULER, HEUN, RULES, Renoise, Rule, Solver, solve
from fewstep.times import Grid, LogSNRGrid, RhoGrid, UniformGrid

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def _carried(gaussian: GaussianMixture, x: Tensor, t: float, s: float) -> Tensor:
    """The exact flow of one Gaussian: x_s = a_s m + S_s S_t^-1 (x - a_t m), S^2 = a^2 C + s^2 I."""
    schedule, mean = gaussian.schedule, gaussian.means[0]
    scale = torch.sqrt(
        (schedule.alpha(s) ** 2 * gaussian.variances[0] + schedule.sigma(s) ** 2)
        / (schedule.alpha(t) ** 2 * gaussian.variances[0] + schedule.sigma(t) ** 2)
    )
    turned = (x - schedule.alpha(t) * mean) @ gaussian.vectors[0]
    return schedule.alpha(s) * mean + (turned * scale) @ gaussian.vectors[0].T


@every_schedule
@every_rule
@pytest.mark.parametrize("grid", [RhoGrid(), LogSNRGrid()], ids=["rho", "log-snr"])
def test_order_of_convergence(schedule: Schedule, rule: Rule, grid: Grid) -> None:
    gaussian = one_gaussian(schedule)
    first, last = float(schedule.time_at_sigma(8.0)), float(schedule.time_at_sigma(0.05))
    x = schedule.alpha(first) * gaussian.means[0] + float(schedule.sigma(first)) * normals(8, 2)
    exact = _carried(gaussian, x, first, last)
    errors = [
        float((Solver(gaussian, steps, rule, grid)(x, first, last) - exact).square().mean().sqrt())
        for steps in (48, 96)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(rule.order, abs=0.2)


@every_schedule
@every_rule
def test_the_flow_can_be_run_back(schedule: Schedule, rule: Rule) -> None:
    gaussian = one_gaussian(schedule)
    first, last = float(schedule.time_at_sigma(2.0)), float(schedule.time_at_sigma(0.3))
    x = normals(4, 2)
    errors = []
    for steps in (24, 96):
        there = Solver(gaussian, steps, rule)(x, last, first)
        torch.testing.assert_close(there, _carried(gaussian, x, last, first), rtol=0, atol=0.2)
        errors.append(float((there - _carried(gaussian, x, last, first)).abs().max()))
    assert errors[1] < errors[0] / 4**rule.order * 1.4


def test_heun_on_karras_grid_is_algorithm_1() -> None:
    """Karras et al. 2022, Algorithm 1, transcribed; D is a network's estimate."""
    schedule = KarrasVE(0.002, 80.0)
    denoiser = tiny_denoiser(schedule).double()
    steps = 18
    sigmas = [(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)] + [0.0]
    start = 80.0 * normals(6, 2)

    def estimate(x: Tensor, sigma: float) -> Tensor:
        return denoiser(x, torch.tensor(sigma / 80.0, dtype=torch.float64))

    with torch.no_grad():
        x = start
        for now, then in itertools.pairwise(sigmas):
            slope = (x - estimate(x, now)) / now
            end = x + (then - now) * slope
            if then != 0:
                end_slope = (end - estimate(end, then)) / then
                end = x + (then - now) * (0.5 * slope + 0.5 * end_slope)
            x = end
        ours = Solver(denoiser, steps, HEUN, RhoGrid(7.0))(start, 1.0, 0.0)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_dpm2m_is_dpm_solver_plus_plus_algorithm_2() -> None:
    """Lu et al. 2022b, Algorithm 2 (lambda = log(alpha / sigma), data prediction), transcribed."""
    schedule = SCHEDULES["vp-linear"]
    mixture = three_gaussians(schedule)
    times = LogSNRGrid().between(schedule, 0.9, 0.01, 12)
    x = start = normals(6, 2)
    lambdas = 0.5 * schedule.log_snr(times)
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    last = mixture(x, times[0])
    x = sigmas[1] / sigmas[0] * x - alphas[1] * torch.expm1(-(lambdas[1] - lambdas[0])) * last
    for i in range(2, len(times)):
        now = mixture(x, times[i - 1])
        step, last_step = lambdas[i] - lambdas[i - 1], lambdas[i - 1] - lambdas[i - 2]
        ratio = last_step / step
        mixed = (1 + 1 / (2 * ratio)) * now - 1 / (2 * ratio) * last
        x = sigmas[i] / sigmas[i - 1] * x - alphas[i] * torch.expm1(-step) * mixed
        last = now
    torch.testing.assert_close(solve(DPM2M, mixture, start, times), x, rtol=1e-10, atol=1e-10)


class _Noise(nn.Module):
    """A toy eps network of (x, timestep)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        randomised(self, scale=0.5)

    def forward(self, x: Tensor, timestep: Tensor, condition: object = None) -> Tensor:
        return self.body(torch.cat([x, timestep[:, None] / 1000], dim=1))


@pytest.mark.parametrize("name", ["vp-linear", "vp-scaled-linear"])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_euler_is_diffusers_ddim(name: str, steps: int) -> None:
    from diffusers import DDIMScheduler

    schedule = SCHEDULES[name]
    assert isinstance(schedule, DiscreteVP)
    theirs = DDIMScheduler(
        beta_schedule=schedule.betas,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="epsilon",
    )
    theirs.set_timesteps(steps)
    network = _Noise()
    start = normals(5, 2)
    denoiser = NetworkDenoiser(network, schedule, Epsilon(), TimestepInputs(), (2,))
    # Timestep i is t = (i + 1) / 1000; what follows their last timestep is clean.
    times = torch.cat([(theirs.timesteps + 1).double() / 1000, torch.zeros(1, dtype=torch.float64)])
    published = theirs.alphas_cumprod
    with torch.no_grad():
        ours = solve(EULER, denoiser, start, times)
        # Once with their single-precision products, once with ours in their place: then the update
        # itself must agree to rounding.
        for products, tolerance in (
            (published, 2e-4),
            (schedule.alpha((torch.arange(1000).double() + 1) / 1000) ** 2, 1e-9),
        ):
            theirs.alphas_cumprod = products
            x = start
            for timestep in theirs.timesteps:
                x = theirs.step(network(x, timestep.double().expand(5)), timestep, x, eta=0.0).prev_sample
            torch.testing.assert_close(ours, x, rtol=tolerance, atol=tolerance)


@every_rule
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "karras-ve"])
@pytest.mark.parametrize("grid", [LogSNRGrid(), RhoGrid()], ids=["log-snr", "rho"])
def test_samples_do_not_depend_on_the_schedule_they_are_seen_under(name: str, rule: Rule, grid: Grid) -> None:
    """The same levels, the same estimates, the same samples: a VE denoiser seen as VP and as a
    flow.
    """
    inner = three_gaussians(KarrasVE())
    seen = Rescheduled(inner, SCHEDULES[name])
    z = normals(8, 2)
    samples = []
    for denoiser in (inner, seen):
        schedule = denoiser.schedule
        first, last = float(schedule.time_at_sigma(20.0)), float(schedule.time_at_sigma(0.05))
        times = torch.cat([grid.between(schedule, first, last, 9), torch.zeros(1, dtype=torch.float64)])
        samples.append(solve(rule, denoiser, 20.0 * float(schedule.alpha(first)) * z, times))
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-5, atol=1e-5)


@every_schedule
@every_rule
@pytest.mark.parametrize("t", [0.002, 0.3, 0.9])
def test_a_step_to_clean_is_the_estimate_bit_for_bit(schedule: Schedule, rule: Rule, t: float) -> None:
    mixture = three_gaussians(schedule)
    x = normals(4, 2)
    times = torch.tensor([t, 0.0], dtype=torch.float64)
    assert torch.equal(solve(rule, mixture, x, times), mixture(x, times[0]))
    assert torch.equal(Solver(mixture, 1, rule)(x, t, 0.0), mixture(x, times[0]))


@pytest.mark.parametrize("rule", [HEUN, DPM2M], ids=["heun", "dpm2m"])
def test_a_step_from_pure_noise_is_a_ddim_step_bit_for_bit(rule: Rule) -> None:
    mixture = three_gaussians(RectifiedFlow())
    x = normals(4, 2)
    times = torch.tensor([1.0, 0.6], dtype=torch.float64)
    assert torch.equal(solve(rule, mixture, x, times), solve(EULER, mixture, x, times))


@every_schedule
def test_a_first_step_of_dpm2m_is_a_ddim_step_bit_for_bit(schedule: Schedule) -> None:
    mixture = three_gaussians(schedule)
    x, times = normals(4, 2), torch.tensor([0.8, 0.6], dtype=torch.float64)
    assert torch.equal(solve(DPM2M, mixture, x, times), solve(EULER, mixture, x, times))


@every_rule
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_counted_as_they_happen(rule: Rule, steps: int) -> None:
    denoiser = tiny_denoiser()
    calls: list[int] = []
    denoiser.network.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    with torch.no_grad(), cost.metered() as meter:
        Solver(denoiser, steps, rule)(80.0 * normals(3, 2, dtype=torch.float32), 1.0, 0.0)
    assert calls == [3] * rule.evaluations(steps)
    assert meter.evaluations == 3 * rule.evaluations(steps)


def test_heun_from_pure_noise_needs_one_evaluation_less() -> None:
    """Its first step is a DDIM step too."""
    mixture = three_gaussians(RectifiedFlow())
    calls: list[int] = []
    mixture.register_forward_hook(lambda _module, _inputs, _output: calls.append(1))
    Solver(mixture, 5, HEUN, UniformGrid())(normals(3, 2), 1.0, 0.0)
    assert len(calls) == HEUN.evaluations(5) - 1


@every_rule
def test_a_row_does_not_see_its_batch(rule: Rule) -> None:
    mixture = three_gaussians(KarrasVE())
    x = 80.0 * normals(6, 2)
    whole = Solver(mixture, 6, rule)(x, 1.0, 0.0)
    parts = torch.cat([Solver(mixture, 6, rule)(part, 1.0, 0.0) for part in x.split(2)])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("slopes", "memory"),
    [((), False), ((0.3, 0.3, 0.4), False), ((0.5,), False), ((0.5, 0.6), False), ((0.5, 0.5), True)],
)
def test_malformed_rules_are_refused(slopes: tuple[float, ...], memory: bool) -> None:
    with pytest.raises(UserError, match="solver rule 'odd'"):
        Rule("odd", 2, slopes, memory)


@every_schedule
def test_renoising_is_the_estimate_diffused_again(schedule: Schedule) -> None:
    mixture = three_gaussians(schedule)
    key = Key(5, "sample")
    flow_map = Renoise(mixture, schedule, key)
    x = normals(6, 2)
    estimate = mixture(x, time(0.9))
    assert torch.equal(flow_map(x, 0.9, 0.0), estimate)
    noise = key.normal("renoise-0.4", (6, 2)).double()
    assert torch.equal(flow_map(x, 0.9, 0.4), schedule.add_noise(estimate, time(0.4), noise))
    # Noise belongs to the sample's index and to the time.
    assert not torch.equal(noise, key.normal("renoise-0.3", (6, 2)).double())
    parts = [Renoise(mixture, schedule, key, start)(x[start : start + 3], 0.9, 0.4) for start in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), flow_map(x, 0.9, 0.4), rtol=1e-12, atol=1e-12)
