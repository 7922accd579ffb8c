"""Laws of denoisers: exact ones against Tweedie and against linear algebra, wrappers against what
they wrap, averages against their profiles, files bit for bit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from law_kit import SCHEDULES, normals, randomised, three_gaussians, time, tiny_denoiser
from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import (
    Averaged,
    EDMInputs,
    GaussianMixture,
    Generator,
    Guided,
    HalfLife,
    NetworkDenoiser,
    PowerFunction,
    Rescheduled,
    StableTargetField,
    TimestepInputs,
    copy_of,
    freeze,
    load_model,
    save_model,
)
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.kinds.network_files import load_strictly
from fewstep.prediction import EDM, Epsilon, V, score_of
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule
from fewstep.system.files import read_tensors, write_tensors

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


# Gaussian mixtures


def _times(schedule: Schedule, rows: int) -> Tensor:
    return torch.lerp(
        torch.tensor(schedule.t_min, dtype=torch.float64),
        torch.tensor(0.95, dtype=torch.float64),
        torch.linspace(0, 1, rows, dtype=torch.float64),
    )


@every_schedule
def test_a_mixture_obeys_tweedie(schedule: Schedule) -> None:
    mixture = three_gaussians(schedule)
    t = _times(schedule, 64)
    x = (schedule.add_noise(normals(64, 2), t, normals(64, 2, seed=1))).requires_grad_()
    score = torch.autograd.grad(mixture.log_density(x, t).sum(), x)[0]
    torch.testing.assert_close(score_of(schedule, mixture(x, t), x, t).detach(), score, rtol=1e-7, atol=1e-7)


@every_schedule
def test_a_mixture_is_its_components_posteriors(schedule: Schedule) -> None:
    """Written out with dense covariances and torch's own normal density."""
    mixture = three_gaussians(schedule)
    covariances = mixture.vectors @ torch.diag_embed(mixture.variances) @ mixture.vectors.transpose(1, 2)
    assert float(covariances[:, 0, 1].abs().min()) > 1e-3
    for t in (0.05, 0.4, 0.9):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * normals(32, 2) + sigma * normals(32, 2, seed=1)
        total = alpha**2 * covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
        logs = (
            torch.distributions.MultivariateNormal(alpha * mixture.means, total).log_prob(x[:, None])
            + mixture.weights.log()
        )
        gains = alpha * covariances @ torch.linalg.inv(total)
        estimates = mixture.means + torch.einsum("kij,bkj->bki", gains, x[:, None] - alpha * mixture.means)
        expected = (torch.softmax(logs, 1)[:, :, None] * estimates).sum(1)
        torch.testing.assert_close(mixture(x, time(t)), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mixture.log_density(x, time(t)), torch.logsumexp(logs, 1), rtol=1e-10, atol=1e-10)


@every_schedule
def test_a_class_is_the_mixture_of_its_components(schedule: Schedule) -> None:
    mixture = three_gaussians(schedule)
    covariances = mixture.vectors @ torch.diag_embed(mixture.variances) @ mixture.vectors.transpose(1, 2)
    x, t = normals(16, 2), _times(schedule, 16)
    for label in (0, 1):
        chosen = mixture.labels == label
        alone = GaussianMixture(schedule, mixture.weights[chosen], mixture.means[chosen], covariances[chosen])
        labels = torch.full((16,), label)
        torch.testing.assert_close(mixture(x, t, labels), alone(x, t), rtol=1e-10, atol=1e-10)
        assert torch.equal(mixture(x, t, labels), mixture(x, t, Condition(labels=labels)))
        assert not torch.allclose(mixture(x, t, labels), mixture(x, t), rtol=1e-3)
    for none in (None, torch.full((16,), -1), Condition()):
        assert torch.equal(mixture(x, t, none), mixture(x, t))
    with pytest.raises(UserError, match="no component of a class"):
        mixture(x, t, torch.full((16,), 2))
    mixed = torch.tensor([0, 1, -1, 0] * 4)
    rows = torch.cat([mixture(x[i : i + 1], t[i : i + 1], mixed[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(mixture(x, t, mixed), rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scalar_time_is_that_time_for_every_row(dtype: torch.dtype) -> None:
    mixture = three_gaussians(KarrasVE())
    x = normals(8, 2, dtype=dtype)
    assert mixture(x, torch.tensor(0.3)).dtype == dtype
    assert torch.equal(mixture(x, torch.tensor(0.3)), mixture(x, torch.full((8,), 0.3)))


def test_round_covariances_may_be_given_as_variances() -> None:
    weights, means, variances = torch.tensor([1.0, 3.0]), normals(2, 3, seed=5), torch.tensor([0.2, 0.7])
    full = variances[:, None, None].double() * torch.eye(3, dtype=torch.float64)
    x, t = normals(8, 3), torch.tensor(0.02)
    assert torch.equal(
        GaussianMixture(KarrasVE(), weights, means, variances)(x, t),
        GaussianMixture(KarrasVE(), weights, means, full)(x, t),
    )


def test_samples_of_a_mixture_have_its_moments_and_belong_to_their_index() -> None:
    mixture = three_gaussians(KarrasVE())
    key = Key(1, "samples")
    samples, components = mixture.sample(60_000, key)
    shares = torch.bincount(components, minlength=3).double() / len(components)
    torch.testing.assert_close(shares, mixture.weights, rtol=0, atol=0.01)
    for k in range(3):
        own = samples[components == k].double()
        covariance = mixture.vectors[k] @ torch.diag(mixture.variances[k]) @ mixture.vectors[k].T
        torch.testing.assert_close(own.mean(0), mixture.means[k], rtol=0, atol=0.03)
        torch.testing.assert_close(torch.cov(own.T), covariance, rtol=0, atol=0.03)
    late, _ = mixture.sample(10, key, start=500)
    assert torch.equal(late, samples[500:510])


@pytest.mark.parametrize(
    ("weights", "means", "covariances"),
    [
        (torch.ones(2), torch.zeros(3, 2), torch.ones(3)),
        (torch.tensor([1.0, 0.0]), torch.zeros(2, 2), torch.ones(2)),
        (torch.ones(2), torch.zeros(2, 2), torch.ones(2, 3, 3)),
        (torch.ones(2), torch.zeros(2, 2), torch.ones(3)),
    ],
)
def test_malformed_mixtures_are_refused(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    with pytest.raises(UserError, match="GaussianMixture"):
        GaussianMixture(KarrasVE(), weights, means, covariances)


# Networks


@pytest.mark.parametrize("schedule", [KarrasVE(), SCHEDULES["vp-linear"]], ids=["karras-ve", "vp-linear"])
def test_a_network_that_emits_the_truth_is_the_exact_denoiser(schedule: Schedule) -> None:
    """What the network is fed, and what is made of what it emits: an eps network that computes the
    mixture's noise.
    """
    mixture = three_gaussians(schedule)

    class Oracle(nn.Module):
        def forward(self, x: Tensor, label: Tensor, condition: Condition) -> Tensor:
            t = (label + 1) / 1000
            alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            return (x - alpha * mixture(x, t, condition)) / sigma

    denoiser = NetworkDenoiser(Oracle(), schedule, Epsilon(), TimestepInputs(), (2,), classes=2)
    x, t, labels = normals(16, 2), (torch.arange(16).double() * 60 + 2) / 1000, torch.arange(16) % 3 - 1
    torch.testing.assert_close(denoiser(x, t, labels), mixture(x, t, labels), rtol=1e-8, atol=1e-8)


def test_edm_inputs_have_unit_variance() -> None:
    for schedule in SCHEDULES.values():
        t = _times(schedule, 9)
        scale, _ = EDMInputs(0.5).scale_and_label(schedule, t)
        torch.testing.assert_close(
            scale**2 * (0.25 * schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2),
            torch.ones(9, dtype=torch.float64),
            rtol=1e-12,
            atol=0,
        )


# Wrappers


def test_guidance_one_is_conditional_and_costs_nothing_more_zero_is_null_and_others_cost_two() -> None:
    denoiser = tiny_denoiser(classes=3)
    x, t, labels = normals(5, 2, dtype=torch.float32), torch.full((5,), 0.01), torch.tensor([0, 1, 2, 0, 1])
    conditional, null = denoiser(x, t, labels), denoiser(x, t)
    assert not torch.allclose(conditional, null, rtol=1e-2)
    for scale, expected in ((1.0, conditional), (0.0, null), (2.5, null + 2.5 * (conditional - null))):
        with torch.no_grad(), cost.metered() as meter:
            guided = Guided(denoiser, scale)(x, t, labels)
        assert meter.evaluations == (1 if scale == 1 else 2) * len(x)
        assert torch.equal(guided, expected) if scale == 1 else True
        torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


def test_a_condition_may_carry_the_scale_sample_by_sample() -> None:
    mixture = three_gaussians(KarrasVE())
    x, t, labels = normals(4, 2), torch.tensor(0.01), torch.tensor([0, 1, 0, 1])
    scales = torch.tensor([0.0, 1.0, 2.0, 7.5])
    whole = Guided(mixture)(x, t, Condition(labels=labels, guidance=scales))
    rows = [Guided(mixture, float(w))(x[i : i + 1], t, labels[i : i + 1]) for i, w in enumerate(scales)]
    torch.testing.assert_close(whole, torch.cat(rows), rtol=1e-12, atol=1e-12)


def test_guidance_without_what_it_needs_is_refused() -> None:
    mixture = three_gaussians(KarrasVE())
    x, t = normals(4, 2), torch.tensor(0.01)
    with pytest.raises(UserError, match="needs a condition"):
        Guided(mixture, 2.0)(x, t)
    with pytest.raises(UserError, match="without a scale"):
        Guided(mixture)(x, t, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("old", ["karras-ve", "vp-linear", "flow"])
@pytest.mark.parametrize("new", list(SCHEDULES))
def test_a_rescheduled_mixture_is_the_mixture_under_the_new_schedule(old: str, new: str) -> None:
    inner, expected = three_gaussians(SCHEDULES[old]), three_gaussians(SCHEDULES[new])
    seen = Rescheduled(inner, SCHEDULES[new])
    assert seen.schedule == SCHEDULES[new]
    t = SCHEDULES[new].time_at_sigma(torch.tensor([0.02, 0.1, 0.5, 2.0, 10.0, 50.0], dtype=torch.float64))
    x = SCHEDULES[new].add_noise(normals(6, 2), t, normals(6, 2, seed=1))
    torch.testing.assert_close(seen(x, t), expected(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("old", ["karras-ve", "vp-linear"])
def test_a_ratio_beyond_the_trained_range_is_answered_at_its_end(old: str) -> None:
    """Pure noise of a flow, asked of a denoiser that never saw pure noise."""
    schedule = SCHEDULES[old]
    inner = three_gaussians(schedule)
    z = normals(6, 2)
    one = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(
        Rescheduled(inner, RectifiedFlow())(z, one), inner(float(schedule.sigma(1.0)) * z, one), rtol=1e-12, atol=1e-12
    )


def test_below_the_trained_range_a_rescheduled_denoiser_keeps_the_signal() -> None:
    """A flow is asked at less noise than a Karras teacher was trained for: the answer is x itself
    up to that noise, not x scaled to the noise that the teacher expects.
    """
    schedule = KarrasVE(sigma_min=0.002, sigma_max=80.0)
    inner, flow = three_gaussians(schedule), RectifiedFlow(epsilon=1e-4)
    seen = Rescheduled(inner, flow)
    x0, t = normals(50, 2), torch.full((50,), 2e-4, dtype=torch.float64)
    estimate = seen(flow.add_noise(x0, t, normals(50, 2, seed=1)), t)
    assert float((estimate - x0).abs().max()) < 0.002
    # At the end of the range itself both ratios agree.
    edge = flow.time_at_sigma(0.002).expand(50)
    x = flow.add_noise(x0, edge, normals(50, 2, seed=1))
    torch.testing.assert_close(
        seen(x, edge), inner(x / (1 - edge[:, None]), schedule.time_at_sigma(0.002)), rtol=1e-9, atol=1e-9
    )


def test_wrappers_keep_shape_and_classes() -> None:
    denoiser = tiny_denoiser(classes=3)
    for wrapped in (Guided(denoiser, 2.0), Rescheduled(denoiser, RectifiedFlow())):
        assert (wrapped.shape, wrapped.classes) == ((2,), 3)


def test_copies_are_independent_and_freezing_stops_weights_but_not_inputs() -> None:
    model = tiny_denoiser()
    copy = copy_of(model)
    x, t = normals(3, 2, dtype=torch.float32), torch.tensor(0.01)
    assert torch.equal(copy(x, t), model(x, t))
    with torch.no_grad():
        next(copy.parameters()).add_(1.0)
    assert not torch.equal(copy(x, t), model(x, t))
    freeze(model)
    x.requires_grad_()
    model(x, t).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(value.grad is None for value in model.parameters())


# Averages


class _Weight(nn.Module):
    def __init__(self, values: Tensor):
        super().__init__()
        self.weight = nn.Parameter(values.clone())
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return x * self.weight


@pytest.mark.parametrize("half_life", [1, 7, 50])
def test_half_life_halves_the_distance(half_life: int) -> None:
    model = _Weight(torch.zeros(3, dtype=torch.float64))
    averaged = Averaged(model, HalfLife(half_life, ramp=0.0))
    with torch.no_grad():
        model.weight.fill_(1.0)
    for expected in (0.5, 0.75, 0.875):
        for _ in range(half_life):
            averaged.update(model)
        torch.testing.assert_close(
            averaged.average.weight, torch.full((3,), expected, dtype=torch.float64), rtol=1e-9, atol=0
        )


def test_ramp_keeps_the_half_life_to_a_fraction_of_the_run() -> None:
    decay = HalfLife(1000.0, ramp=0.05)
    for update in (1, 20, 400):
        assert decay.beta(update) == pytest.approx(0.5 ** (1 / (0.05 * update)))
    assert decay.beta(20_000) == decay.beta(10**6) == pytest.approx(0.5 ** (1 / 1000))


def test_no_half_life_is_the_model_itself() -> None:
    model = _Weight(torch.zeros(3))
    averaged = Averaged(model, HalfLife(0.0))
    with torch.no_grad():
        model.weight.copy_(normals(3, dtype=torch.float32))
        model.count.fill_(4.0)
    averaged.update(model)
    assert torch.equal(averaged.average.weight, model.weight)
    assert torch.equal(averaged.average.count, model.count)
    x = normals(2, 3, dtype=torch.float32)
    assert torch.equal(averaged(x, torch.zeros(())), model(x, torch.zeros(())).detach())
    assert not averaged.average.weight.requires_grad


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.28])
def test_power_function_weights_are_the_profile_and_have_the_std_asked_for(std: float) -> None:
    """The model's weights at update n are the n-th unit vector, so that the average holds its own
    profile.
    """
    updates = 600
    decay = PowerFunction(std)
    model = _Weight(torch.ones(updates, dtype=torch.float64))
    averaged = Averaged(model, decay)
    for n in range(updates):
        with torch.no_grad():
            model.weight.zero_()
            model.weight[n] = 1.0
        averaged.update(model)
    power = decay.gamma + 1
    edges = torch.arange(updates + 1, dtype=torch.float64) / updates
    # The integral of (gamma + 1) t^gamma over each update's share of the run.
    torch.testing.assert_close(averaged.average.weight.detach(), (edges**power).diff(), rtol=1e-8, atol=1e-15)
    middle = (edges[1:] + edges[:-1]) / 2
    weights = averaged.average.weight.detach()
    mean = (weights * middle).sum()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert math.sqrt(float((weights * (middle - mean) ** 2).sum())) == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("std", [0.0, 0.3, -0.1])
def test_impossible_widths_are_refused(std: float) -> None:
    with pytest.raises(UserError, match="PowerFunction"):
        _ = PowerFunction(std).gamma


# The stable target field


@every_schedule
def test_a_field_of_one_sample_is_that_sample_bit_for_bit(schedule: Schedule) -> None:
    """The delta of SDS, from one sample and from itself alone at every level."""
    for dtype in (torch.float32, torch.float64):
        sample = normals(1, 2, 3, 3, dtype=dtype)
        field = StableTargetField(schedule, sample)
        t = torch.linspace(schedule.t_min, schedule.t_max, 7, dtype=torch.float64)
        x = schedule.add_noise(sample.expand(7, 2, 3, 3), t, normals(7, 2, 3, 3, seed=1, dtype=dtype))
        assert torch.equal(field(x, t), sample.expand(7, 2, 3, 3))
        assert torch.equal(field.effective_size(x, t), torch.ones(7, dtype=torch.float64))


@every_schedule
def test_a_field_is_eq_18(schedule: Schedule) -> None:
    references, x, t = normals(5, 2, 2), normals(3, 2, 2, seed=1), torch.tensor([0.1, 0.4, 0.8])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    for row in range(3):
        distance = (x[row] - alpha[row] * references).square().sum((1, 2))
        weights = torch.softmax(-distance / (2 * sigma[row] ** 2), 0)
        expected = (weights[:, None, None] * references).sum(0)
        torch.testing.assert_close(StableTargetField(schedule, references)(x, t)[row], expected, rtol=1e-9, atol=1e-9)


def test_a_field_tends_to_the_exact_denoiser_as_one_over_root_n() -> None:
    mixture = three_gaussians(KarrasVE())
    t = KarrasVE().time_at_sigma(0.8)
    x0, _ = mixture.sample(64, Key(0, "query"))
    x = KarrasVE().add_noise(x0.double(), t, normals(64, 2))
    exact, sizes, errors = mixture(x, t), (128, 2048), []
    for size in sizes:
        squares = [
            (
                StableTargetField(KarrasVE(), mixture.sample(size, Key(seed, f"references-{size}"))[0].double())(x, t)
                - exact
            )
            .square()
            .mean()
            for seed in range(24)
        ]
        errors.append(math.sqrt(float(torch.stack(squares).mean())))
    slope = math.log(errors[1] / errors[0]) / math.log(sizes[1] / sizes[0])
    assert slope == pytest.approx(-0.5, abs=0.1)
    assert errors[1] < 0.05


@every_schedule
def test_effective_size_runs_from_one_to_all(schedule: Schedule) -> None:
    references = normals(40, 2)
    field = StableTargetField(schedule, references)
    t = schedule.time_at_sigma(2 * float(schedule.rho(schedule.t_min)))
    near = field.effective_size(schedule.alpha(t) * references, t)
    assert float(near.median()) < 1.05
    assert float(near.min()) >= 1.0 - 1e-12
    far = field.effective_size(schedule.prior_scale * normals(40, 2, seed=1), time(schedule.t_max))
    assert float(far.mean()) > 39.0
    assert float(far.max()) <= 40.0 + 1e-12


def test_labels_restrict_the_field_to_their_class() -> None:
    references, labels = normals(30, 2), torch.arange(30) % 3
    field = StableTargetField(KarrasVE(), references, labels)
    x, t = normals(6, 2, seed=1), torch.tensor(0.02)
    for label in range(3):
        alone = StableTargetField(KarrasVE(), references[labels == label])
        torch.testing.assert_close(field(x, t, torch.full((6,), label)), alone(x, t), rtol=1e-12, atol=1e-12)
    assert torch.equal(field(x, t, torch.full((6,), -1)), field(x, t))
    with pytest.raises(UserError, match="no reference of a class"):
        field(x, t, torch.full((6,), 7))


# Files


def _models() -> dict[str, nn.Module]:
    unet = build({"kind": "small-unet", "channels": 1, "width": 8, "depth": 2, "classes": 3})
    latent = build({"kind": "latent-mlp", "latent": 4, "dim": 2, "width": 8, "classes": 2})
    return {
        "mlp": tiny_denoiser(DiscreteVP("cosine", steps=50), classes=2),
        "unet": randomised(NetworkDenoiser(unet, RectifiedFlow(), V(), TimestepInputs(1000.0, 0.0), (1, 8, 8), 3)),
        "generator": randomised(Generator(latent, (4,), (2,), 2)),
    }


@pytest.mark.parametrize("kind", ["mlp", "unet", "generator"])
def test_a_model_comes_back_from_its_file_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = _models()[kind]
    extra = {"steps": 12, "note": "änderung"}
    digests = {save_model(tmp_path / name, model, extra) for name in ("a.safetensors", "b.safetensors")}
    assert len(digests) == 1
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded, kept = load_model(tmp_path / "a.safetensors")
    assert kept == extra
    assert type(loaded) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    latent = model.latent_shape if isinstance(model, Generator) else model.shape
    x, t, labels = normals(2, *latent, dtype=torch.float32), torch.tensor([0.3, 0.7]), torch.tensor([0, 1])
    assert torch.equal(loaded(x, t, labels), model(x, t, labels))
    if isinstance(model, NetworkDenoiser):
        assert (loaded.schedule, loaded.prediction, loaded.inputs, loaded.shape) == (
            model.schedule,
            model.prediction,
            model.inputs,
            model.shape,
        )
    assert save_model(tmp_path / "c.safetensors", loaded, extra) == digests.pop()


def test_what_cannot_be_rebuilt_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GaussianMixture cannot be stored"):
        save_model(tmp_path / "m.safetensors", three_gaussians(KarrasVE()))
    with pytest.raises(UserError, match="is not registered"):
        save_model(tmp_path / "m.safetensors", NetworkDenoiser(nn.Linear(2, 2), KarrasVE(), EDM(), EDMInputs(), (2,)))
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("edit", ["missing", "renamed", "extra", "shape"])
def test_loading_is_strict_and_names_the_key(edit: str, tmp_path: Path) -> None:
    model = tiny_denoiser()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = {name: value + 1 for name, value in before.items()}
    key = "network.leave.bias"
    value = tensors[key]
    named = {"missing": key, "renamed": key, "extra": "network.leave.twin", "shape": key}[edit]
    if edit in ("missing", "renamed"):
        del tensors[key]
    if edit in ("renamed", "extra"):
        tensors["network.leave.twin"] = value
    if edit == "shape":
        tensors[key] = torch.zeros(3)
    with pytest.raises(UserError, match=named) as caught:
        load_strictly(model, tensors, "some/file")
    assert "some/file" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    save_model(tmp_path / "good", tiny_denoiser())
    _, metadata = read_tensors(tmp_path / "good")
    write_tensors(tmp_path / "bad", tensors, metadata)
    with pytest.raises(UserError, match=named) as caught:
        load_model(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        {"format": 2},
        {"format": None},
        {"model": None},
        {"model": {}},
        {"model": {"kind": "oracle"}},
        {"kind": "oracle"},
        {"network": {"kind": "no-such"}},
        {"network": {"kind": "residual-mlp", "heads": 3}},
        {"schedule": {"kind": "no-such"}},
        {"prediction": {"kind": "no-such"}},
        {"inputs": {"kind": "no-such"}},
        {"inputs": {"kind": "edm", "offset": 1}},
    ],
    ids=json.dumps,
)
def test_a_file_of_another_kind_is_refused_by_name(edit: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, tiny_denoiser())
    tensors, metadata = read_tensors(path)
    metadata = (
        {**metadata, **edit}
        if set(edit) & {"format", "model"}
        else {**metadata, "model": {**metadata["model"], **edit}}
    )
    write_tensors(path, tensors, metadata)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(path)
