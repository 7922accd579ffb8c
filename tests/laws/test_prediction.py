"""Laws of predictions: every emission gives x0 and back, at every time at which it can."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from law_kit import PREDICTIONS, SCHEDULES, normals, trained_times
from torch import Tensor

from fewstep.denoisers import EDMInputs, NetworkDenoiser
from fewstep.errors import UserError
from fewstep.prediction import EDM, X0, Epsilon, Flow, Prediction, Score, V, Velocity, score_of
from fewstep.schedule import KarrasVE, RectifiedFlow, Schedule, expand

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())

# (schedule, t, x0, eps) -> what the network would emit, from the definitions.
Emission = Callable[[Schedule, Tensor, Tensor, Tensor], Tensor]


def _edm(sigma_data: float) -> Emission:
    # sd D = ..., F of unit variance: (sigma x0 / sd - sd alpha eps) / sqrt(sigma^2 + sd^2 alpha^2).
    def emission(schedule: Schedule, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        alpha, sigma = expand(schedule.alpha(t), x0), expand(schedule.sigma(t), x0)
        return (sigma * x0 / sigma_data - sigma_data * alpha * eps) / torch.sqrt(sigma**2 + (sigma_data * alpha) ** 2)

    return emission


DEFINITIONS: dict[str, tuple[Prediction, Emission]] = {
    "x0": (X0(), lambda schedule, t, x0, eps: x0),
    "eps": (Epsilon(), lambda schedule, t, x0, eps: eps),
    "score": (Score(), lambda schedule, t, x0, eps: -eps / expand(schedule.sigma(t), eps)),
    "v": (V(), lambda schedule, t, x0, eps: expand(schedule.alpha(t), x0) * eps - expand(schedule.sigma(t), x0) * x0),
    "flow": (Flow(), lambda schedule, t, x0, eps: eps - x0),
    "velocity": (
        Velocity(),
        lambda schedule, t, x0, eps: expand(schedule.alpha_rate(t), x0) * x0 + expand(schedule.sigma_rate(t), x0) * eps,
    ),
    "edm": (EDM(0.5), _edm(0.5)),
    "edm-0.9": (EDM(0.9), _edm(0.9)),
}


def _batch(schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = trained_times(schedule, 501, least_alpha=1e-3)
    x0, eps = normals(len(t), 3), normals(len(t), 3, seed=1)
    return t, x0, eps, schedule.add_noise(x0, t, eps)


@every_schedule
@every_prediction
def test_target_and_to_x0_are_inverses(schedule: Schedule, prediction: Prediction) -> None:
    t, x0, _, x = _batch(schedule)
    emitted = prediction.target(schedule, x0, x, t)
    torch.testing.assert_close(prediction.to_x0(schedule, emitted, x, t), x0, rtol=1e-10, atol=1e-10)


@every_schedule
@pytest.mark.parametrize(("prediction", "emission"), DEFINITIONS.values(), ids=DEFINITIONS.keys())
def test_the_true_emission_gives_back_x0(schedule: Schedule, prediction: Prediction, emission: Emission) -> None:
    t, x0, eps, x = _batch(schedule)
    torch.testing.assert_close(
        prediction.to_x0(schedule, emission(schedule, t, x0, eps), x, t), x0, rtol=1e-10, atol=1e-10
    )


@every_schedule
@pytest.mark.parametrize(("prediction", "emission"), DEFINITIONS.values(), ids=DEFINITIONS.keys())
def test_the_training_target_is_the_true_emission(
    schedule: Schedule, prediction: Prediction, emission: Emission
) -> None:
    # alpha x0 - x cancels at small times, where x is x0 to nine digits.
    t, x0, eps, x = _batch(schedule)
    true = emission(schedule, t, x0, eps)
    scale = true.abs().amax(1, keepdim=True)
    torch.testing.assert_close(prediction.target(schedule, x0, x, t) / scale, true / scale, rtol=0, atol=1e-8)


@pytest.mark.parametrize("prediction", [X0(), V(), Velocity(), EDM(0.5)], ids=["x0", "v", "velocity", "edm"])
def test_pure_noise_still_tells_x0(prediction: Prediction) -> None:
    """Where alpha = 0 these emissions hold x0, finitely."""
    schedule = RectifiedFlow()
    x0, eps, t = normals(6, 3), normals(6, 3, seed=1), torch.ones(6, dtype=torch.float64)
    x = schedule.add_noise(x0, t, eps)
    assert torch.equal(x, eps)
    torch.testing.assert_close(
        prediction.to_x0(schedule, prediction.target(schedule, x0, x, t), x, t), x0, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.0])
def test_edm_at_alpha_one_is_karras_preconditioning(sigma_data: float) -> None:
    schedule = KarrasVE()
    sigma = torch.logspace(-2.6, 1.9, 50, dtype=torch.float64)
    t = schedule.time_at_sigma(sigma)
    skip, out = EDM(sigma_data).coefficients(schedule, t)
    torch.testing.assert_close(skip, sigma_data**2 / (sigma**2 + sigma_data**2), rtol=1e-12, atol=0)
    torch.testing.assert_close(out, sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt(), rtol=1e-12, atol=0)
    scale, label = EDMInputs(sigma_data).scale_and_label(schedule, t)
    torch.testing.assert_close(scale, (sigma**2 + sigma_data**2) ** -0.5, rtol=1e-12, atol=0)
    torch.testing.assert_close(label, sigma.log() / 4, rtol=1e-12, atol=1e-14)


@every_schedule
def test_edm_emission_has_unit_variance_for_data_of_its_std(schedule: Schedule) -> None:
    t = trained_times(schedule, 21)
    x0, eps = 0.5 * normals(20_000, 1), normals(20_000, 1, seed=1)
    for time in t:
        times = time.expand(len(x0))
        emitted = EDM(0.5).target(schedule, x0, schedule.add_noise(x0, times, eps), times)
        assert float(emitted.std()) == pytest.approx(1.0, abs=0.02)


@every_schedule
@every_prediction
def test_only_eps_and_score_need_signal_everywhere(schedule: Schedule, prediction: Prediction) -> None:
    refused = float(schedule.alpha(schedule.t_max)) == 0 and isinstance(prediction, (Epsilon, Score))
    if refused:
        with pytest.raises(UserError, match="alpha is 0"):
            prediction.check(schedule)
        with pytest.raises(UserError, match="alpha is 0"):
            NetworkDenoiser(torch.nn.Identity(), schedule, prediction, EDMInputs(), (2,))
    else:
        prediction.check(schedule)


@every_schedule
def test_score_of_the_true_x0_is_minus_eps_over_sigma(schedule: Schedule) -> None:
    t, x0, eps, x = _batch(schedule)
    sigma = expand(schedule.sigma(t), eps)
    torch.testing.assert_close(score_of(schedule, x0, x, t) * sigma, -eps, rtol=0, atol=1e-8)
    emitted = Score().target(schedule, x0, x, t)
    torch.testing.assert_close(emitted * sigma, -eps, rtol=0, atol=1e-8)


@every_schedule
@every_prediction
def test_coefficients_have_the_shape_of_time(schedule: Schedule, prediction: Prediction) -> None:
    for shape in ((), (3,), (2, 3)):
        values = prediction.coefficients(schedule, torch.full(shape, 0.5))
        for value in values:
            assert (value.shape, value.dtype) == (shape, torch.float64)


@every_prediction
def test_description_rebuilds_it(prediction: Prediction) -> None:
    assert Prediction.from_description(json.loads(json.dumps(prediction.describe()))) == prediction


@pytest.mark.parametrize(
    "build",
    [
        lambda: EDM(0.0),
        lambda: EDM(float("nan")),
        lambda: Prediction.from_description({"kind": "noise"}),
        lambda: Prediction.from_description({}),
        lambda: Prediction.from_description({"kind": "v", "sigma_data": 0.5}),
    ],
)
def test_bad_arguments_are_refused(build: Callable[[], Prediction]) -> None:
    with pytest.raises(UserError):
        build()
