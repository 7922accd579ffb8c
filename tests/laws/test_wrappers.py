"""Laws of thresholds and of models in files: what is within bounds is untouched, what is beyond is
where a hand puts it, and every kind of model comes back bit for bit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from law_kit import SCHEDULES, normals, randomised, three_gaussians, tiny_denoiser
from torch import Tensor, nn

from fewstep.denoisers import (
    Averaged,
    DynamicThreshold,
    EDMInputs,
    Generator,
    Guided,
    HalfLife,
    Headed,
    Reflected,
    Rescheduled,
    StaticThreshold,
    StraightThrough,
    load_model,
    save_model,
)
from fewstep.denoisers.jumps import TrajectoryDenoiser
from fewstep.denoisers.model_files import describe_model, model_from
from fewstep.denoisers.threshold import Threshold
from fewstep.denoisers.wrappers import Boundary
from fewstep.errors import UserError
from fewstep.networks import FeatureHead, build
from fewstep.prediction import EDM
from fewstep.schedule import KarrasVE, RectifiedFlow
from fewstep.system.files import read_tensors, write_tensors

THRESHOLDS: dict[str, Threshold] = {
    "static": StaticThreshold(0.8),
    "infinite": StaticThreshold(math.inf),
    "dynamic": DynamicThreshold(0.5, 0.9),
    "straight-static": StraightThrough(StaticThreshold(0.8)),
    "straight-dynamic": StraightThrough(DynamicThreshold(0.5, 0.9)),
}
every_threshold = pytest.mark.parametrize("threshold", THRESHOLDS.values(), ids=THRESHOLDS.keys())


# Thresholds


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize(
    "bound",
    [math.inf, StaticThreshold(math.inf), StraightThrough(StaticThreshold(math.inf)), DynamicThreshold(100.0, 0.5)],
    ids=str,
)
def test_where_nothing_is_clamped_a_reflected_denoiser_is_the_denoiser_bit_for_bit(schedule, bound) -> None:
    exact = three_gaussians(schedule)
    t = torch.linspace(schedule.t_min, 0.9, 20, dtype=torch.float64)
    x = schedule.add_noise(normals(20, 2), t, normals(20, 2, seed=1))
    reflected = Reflected(exact, bound)
    assert torch.equal(reflected(x, t), exact(x, t))
    assert (reflected.schedule, reflected.shape, reflected.classes) == (exact.schedule, exact.shape, exact.classes)


def test_a_number_is_a_static_bound_and_the_estimate_is_clamped_to_it() -> None:
    exact, x = three_gaussians(KarrasVE()), 3 * normals(50, 2)
    t = torch.full((50,), 0.01, dtype=torch.float64)
    plain, reflected = exact(x, t), Reflected(exact, bound=1)(x, t)
    assert bool((plain.abs() > 1).any())
    assert torch.equal(reflected, torch.where(plain > 1, 1.0, torch.where(plain < -1, -1.0, plain)))
    assert torch.equal(Reflected(exact, StaticThreshold(1.0))(x, t), reflected)
    assert Reflected(exact).threshold == StaticThreshold(1.0)


def test_dynamic_thresholds_against_a_hand_computation() -> None:
    # |x| sorted: 0, 1, 2, 3, 4; the 0.75-quantile is 3 and the 0.6-quantile 2.4. The second row's
    # is below the bound, which is then the size: a plain clamp.
    x = torch.tensor([[-4.0, 0.0, 1.0, 3.0, -2.0], [0.1, -0.2, 0.3, 0.4, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(
        DynamicThreshold(1.5, 0.75).apply(x)[0], torch.tensor([-1.5, 0.0, 0.5, 1.5, -1.0], dtype=torch.float64)
    )
    torch.testing.assert_close(
        DynamicThreshold(1.2, 0.6).apply(x)[0], torch.tensor([-1.2, 0.0, 0.5, 1.2, -1.0], dtype=torch.float64)
    )
    assert torch.equal(
        DynamicThreshold(1.5, 0.75).apply(x)[1], torch.tensor([0.1, -0.2, 0.3, 0.4, 1.5], dtype=torch.float64)
    )


def test_dynamic_thresholds_are_torchs_quantile_sample_by_sample() -> None:
    x, p, bound = 2 * normals(7, 3, 5, 5), 0.937, 0.7
    size = torch.quantile(x.abs().flatten(1), p, dim=1).clamp(min=bound)[:, None, None, None]
    torch.testing.assert_close(
        DynamicThreshold(bound, p).apply(x), x.clamp(-size, size) * bound / size, rtol=1e-13, atol=1e-14
    )
    assert torch.equal(DynamicThreshold(bound, p).apply(x)[2:3], DynamicThreshold(bound, p).apply(x[2:3]))
    # At p = 1 nothing meets the bound but the largest value.
    assert int((DynamicThreshold(bound, 1.0).apply(x).abs() >= bound * (1 - 1e-12)).sum()) == 7


@every_threshold
def test_thresholds_keep_type_bounds_and_order(threshold: Threshold) -> None:
    bound = {"infinite": math.inf, "static": 0.8, "dynamic": 0.5}[
        next(n.split("-")[-1] for n, t in THRESHOLDS.items() if t is threshold)
    ]
    for dtype in (torch.float32, torch.float64):
        x = 2 * normals(4, 40, dtype=dtype)
        found = threshold.apply(x)
        assert found.dtype == dtype
        assert float(found.abs().max()) <= bound * (1 + 1e-6)
        order = x.argsort(dim=1)
        assert bool((found.gather(1, order).diff(dim=1) >= 0).all())
        assert torch.equal(threshold.apply(-x), -found)


@pytest.mark.parametrize("inner", [StaticThreshold(0.8), DynamicThreshold(0.5, 0.9)], ids=["static", "dynamic"])
def test_straight_through_has_the_value_exactly_and_the_identitys_gradient(inner: Threshold) -> None:
    x, weights = (2 * normals(4, 40, dtype=torch.float32)).requires_grad_(), normals(4, 40, seed=1, dtype=torch.float32)
    value = StraightThrough(inner).apply(x)
    assert torch.equal(value, inner.apply(x))
    assert torch.equal(torch.autograd.grad((value * weights).sum(), x)[0], weights)
    hard = torch.autograd.grad((inner.apply(x) * weights).sum(), x)[0]
    assert not torch.equal(hard, weights)
    _, tangent = torch.func.jvp(StraightThrough(inner).apply, (x.detach(),), (weights,))
    assert torch.equal(tangent, weights)


def test_a_hard_clamp_has_no_gradient_where_it_bites_and_all_of_it_elsewhere() -> None:
    x = torch.tensor([[-2.0, -0.5, 0.5, 2.0]]).requires_grad_()
    StaticThreshold(1.0).apply(x).sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_a_reflected_students_network_is_told_where_to_go_by_straight_through_only() -> None:
    student = tiny_denoiser()
    x, t = 50 * normals(8, 2, dtype=torch.float32), torch.full((8,), 0.5)
    assert float(student(x, t).detach().abs().min()) > 1e-3
    gradients = []
    for threshold in (StaticThreshold(1e-3), StraightThrough(StaticThreshold(1e-3))):
        student.zero_grad()
        Reflected(student, threshold)(x, t).sum().backward()
        gradients.append(float(student.network.leave.weight.grad.abs().sum()))
    assert gradients[0] == 0
    assert gradients[1] > 0


@every_threshold
def test_a_threshold_comes_back_from_its_description(threshold: Threshold) -> None:
    assert Threshold.from_description(json.loads(json.dumps(threshold.describe()))) == threshold


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StaticThreshold(0.0), "above 0"),
        (lambda: StaticThreshold(math.nan), "finite"),
        (lambda: DynamicThreshold(math.inf), "finite"),
        (lambda: DynamicThreshold(1.0, 99.5), "at most 1"),
        (lambda: DynamicThreshold(1.0, 0.0), "above 0"),
        (lambda: Threshold.from_description({"kind": "soft"}), "unknown kind"),
        (lambda: Threshold.from_description({"kind": "static", "width": 1}), "unknown field 'width'"),
        (lambda: Threshold.from_description(StraightThrough(StraightThrough(StaticThreshold())).describe()), "nesting"),
    ],
)
def test_thresholds_without_a_meaning_are_refused(make, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


# Files


def trajectory() -> TrajectoryDenoiser:
    network = build({"kind": "residual-mlp", "dim": 2, "width": 8, "depth": 1, "classes": 3, "end": True})
    model = TrajectoryDenoiser(network, KarrasVE(), EDM(0.5), EDMInputs(0.5), (2,), 3)
    randomised(model)
    return model


def stored_models() -> dict[str, nn.Module]:
    teacher = tiny_denoiser(classes=3)
    return {
        "denoiser": teacher,
        "trajectory": trajectory(),
        "rescheduled": Rescheduled(teacher, RectifiedFlow()),
        "boundary": Boundary(teacher),
        **{f"reflected-{name}": Reflected(teacher, threshold) for name, threshold in THRESHOLDS.items()},
        "nested": Boundary(Reflected(Rescheduled(teacher, RectifiedFlow()), 0.7)),
        "reflected-trajectory": Reflected(trajectory(), 0.7),
    }


@pytest.mark.parametrize("name", stored_models())
def test_every_kind_of_model_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    model = stored_models()[name]
    digest = save_model(tmp_path / "a.safetensors", model, {"steps": 3})
    loaded, extra = load_model(tmp_path / "a.safetensors")
    assert extra == {"steps": 3}
    assert describe_model(loaded) == describe_model(model)
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    x, t, labels = (
        3 * normals(6, 2, dtype=torch.float32),
        torch.linspace(0.05, 0.9, 6, dtype=torch.float64),
        torch.arange(6) % 3,
    )

    def call(it: nn.Module) -> Tensor:
        return it(x, t, labels)

    assert torch.equal(call(loaded), call(model))
    assert loaded.schedule == model.schedule
    if isinstance(loaded, TrajectoryDenoiser):
        assert torch.equal(loaded.jump(x, t, t / 3, labels), model.jump(x, t, t / 3, labels))
    assert save_model(tmp_path / "b.safetensors", loaded, {"steps": 3}) == digest


def test_wrappers_of_what_cannot_be_stored_are_refused_by_name(tmp_path: Path) -> None:
    teacher = tiny_denoiser()
    models = {
        "GaussianMixture": Reflected(three_gaussians(KarrasVE())),
        "Guided": Boundary(Guided(teacher, 2.0)),
        "Averaged": Averaged(teacher, HalfLife(3)),
        "Headed": Headed(teacher, FeatureHead(8)),
    }
    for name, model in models.items():
        with pytest.raises(UserError, match=f"{name} cannot be stored"):
            save_model(tmp_path / "m.safetensors", model)
    assert not list(tmp_path.iterdir())


def _nested(levels: int) -> dict:
    description = describe_model(tiny_denoiser())
    for _ in range(levels):
        description = {"kind": "boundary", "of": description}
    return description


def test_hostile_depth_is_bounded() -> None:
    assert isinstance(model_from(_nested(8)), Boundary)
    for levels in (9, 50_000):
        with pytest.raises(UserError, match="nests more than 8"):
            model_from(_nested(levels))


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"kind": "boundary", "of": {"kind": "oracle"}}, "unknown kind of model 'oracle'"),
        ({"kind": "boundary"}, "incomplete"),
        ({"kind": "boundary", "of": None}, "malformed"),
        ({"kind": ["boundary"]}, "malformed"),
        ({"kind": "reflected", "of": describe_model(tiny_denoiser())}, "incomplete"),
        (
            {"kind": "reflected", "of": describe_model(tiny_denoiser()), "threshold": {"kind": "soft"}},
            "threshold: unknown kind 'soft'",
        ),
        (
            {"kind": "reflected", "of": describe_model(tiny_denoiser()), "threshold": {"kind": "static", "bound": "1"}},
            "malformed",
        ),
        (
            {
                "kind": "reflected",
                "of": describe_model(tiny_denoiser()),
                "threshold": {"kind": "straight-through", "of": 3},
            },
            "malformed",
        ),
        (
            {"kind": "rescheduled", "of": describe_model(tiny_denoiser()), "schedule": {"kind": "no-such"}},
            "unknown kind 'no-such'",
        ),
        (
            {"kind": "boundary", "of": describe_model(Generator(build({"kind": "latent-mlp"}), (2,), (2,)))},
            "wraps a generator as 'boundary'",
        ),
    ],
)
def test_malformed_nested_descriptions_are_refused_and_the_file_is_named(
    description: dict, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, tiny_denoiser())
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "model": description})
    with pytest.raises(UserError, match=said) as caught:
        load_model(path)
    assert "model.safetensors" in str(caught.value)


def test_a_wrappers_tensors_are_loaded_strictly(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, Reflected(tiny_denoiser()))
    tensors, metadata = read_tensors(path)
    write_tensors(path, {key.removeprefix("denoiser."): value for key, value in tensors.items()}, metadata)
    with pytest.raises(UserError, match=r"lacks tensor 'denoiser\.network"):
        load_model(path)
