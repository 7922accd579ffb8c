"""The consistency models' checkpoints: the network that a state dict describes, written here once
more in plain functions by its names, and what the files mean.
"""

from __future__ import annotations

import math
import os
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, group_norm, interpolate, linear, silu

from fewstep.denoisers import NetworkDenoiser, load_model, save_model
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.prediction import EDM, Consistency, Prediction
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow
from fewstep.zoo import consistency_models
from fewstep.zoo.consistency_models import NETWORKS, load_as, load_edm_teacher, load_student

WIDTH = 128


def description(adaptive: bool, classes: int) -> dict[str, Any]:
    return {
        "kind": "dhariwal-unet",
        "img_resolution": 8,
        "model_channels": WIDTH,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
        "adaptive_scale": adaptive,
        "classes": classes,
    }


class Release:
    """ADM as its names say, with weights that come into being where they are first used;
    ``tensors`` is then the state dict.
    """

    def __init__(self, adaptive: bool, classes: int):
        self.adaptive, self.classes = adaptive, classes
        self.tensors: dict[str, Tensor] = {}

    def weight(self, name: str, *shape: int) -> Tensor:
        if name not in self.tensors:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            self.tensors[name] = torch.randn(shape, generator=generator) * (
                0.7 / math.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.4
            )
        return self.tensors[name]

    def convolved(self, name: str, x: Tensor, out: int, size: int) -> Tensor:
        return conv2d(
            x,
            self.weight(f"{name}.weight", out, x.shape[1], size, size),
            self.weight(f"{name}.bias", out),
            padding=size // 2,
        )

    def dense(self, name: str, x: Tensor, out: int) -> Tensor:
        return linear(x, self.weight(f"{name}.weight", out, x.shape[1]), self.weight(f"{name}.bias", out))

    def normed(self, name: str, x: Tensor) -> Tensor:
        return group_norm(x, 32, self.weight(f"{name}.weight", x.shape[1]), self.weight(f"{name}.bias", x.shape[1]))

    def residual(self, name: str, x: Tensor, embedded: Tensor, out: int, resample: Any = None) -> Tensor:
        hidden = silu(self.normed(f"{name}.in_layers.0", x))
        if resample is not None:
            hidden, x = resample(hidden), resample(x)
        hidden = self.convolved(f"{name}.in_layers.2", hidden, out, 3)
        told = self.dense(f"{name}.emb_layers.1", silu(embedded), 2 * out if self.adaptive else out)[:, :, None, None]
        added, factor, offset = (0.0, 1 + told[:, :out], told[:, out:]) if self.adaptive else (told, 1.0, 0.0)
        hidden = self.normed(f"{name}.out_layers.0", hidden + added) * factor + offset
        hidden = self.convolved(f"{name}.out_layers.3", silu(hidden), out, 3)
        return hidden + (x if x.shape[1] == out else self.convolved(f"{name}.skip_connection", x, out, 1))

    def attended(self, name: str, x: Tensor) -> Tensor:
        """Heads of 64 channels; the 3 C channels go by query, key, value, then head."""
        batch, channels, height, width = x.shape
        q, k, v = (
            self.convolved(f"{name}.qkv", self.normed(f"{name}.norm", x), 3 * channels, 1)
            .reshape(batch, 3, channels // 64, 64, height * width)
            .unbind(1)
        )
        weights = torch.softmax(torch.einsum("bhdq,bhdk->bhqk", q, k) / 8, dim=3)
        return x + self.convolved(
            f"{name}.proj_out", torch.einsum("bhqk,bhdk->bhdq", weights, v).reshape(x.shape), channels, 1
        )

    def __call__(self, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        waves = times[:, None] * torch.exp(-math.log(10000) * torch.arange(WIDTH // 2) / (WIDTH // 2))
        embedded = self.dense(
            "time_embed.2",
            silu(self.dense("time_embed.0", torch.cat([waves.cos(), waves.sin()], 1), 4 * WIDTH)),
            4 * WIDTH,
        )
        if labels is not None:
            embedded = embedded + self.weight("label_emb.weight", self.classes, 4 * WIDTH)[labels]
        skips = [self.convolved("input_blocks.0.0", x, WIDTH, 3)]
        skips.append(self.residual("input_blocks.1.0", skips[-1], embedded, WIDTH))
        skips.append(self.residual("input_blocks.2.0", skips[-1], embedded, WIDTH, lambda a: avg_pool2d(a, 2)))
        skips.append(
            self.attended("input_blocks.3.1", self.residual("input_blocks.3.0", skips[-1], embedded, 2 * WIDTH))
        )
        hidden = self.attended("middle_block.1", self.residual("middle_block.0", skips[-1], embedded, 2 * WIDTH))
        hidden = self.residual("middle_block.2", hidden, embedded, 2 * WIDTH)
        for index, (out, attends) in enumerate(((2 * WIDTH, True), (2 * WIDTH, True), (WIDTH, False), (WIDTH, False))):
            hidden = self.residual(f"output_blocks.{index}.0", torch.cat([hidden, skips.pop()], 1), embedded, out)
            hidden = self.attended(f"output_blocks.{index}.1", hidden) if attends else hidden
            if index == 1:
                hidden = self.residual(
                    "output_blocks.1.2", hidden, embedded, out, lambda a: interpolate(a, scale_factor=2, mode="nearest")
                )
        return self.convolved("out.2", silu(self.normed("out.0", hidden)), 3, 3)


def released(adaptive: bool, classes: int) -> Release:
    network = Release(adaptive, classes)
    network(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64) if classes else None)
    return network


@pytest.mark.parametrize("student", [False, True])
@pytest.mark.parametrize(("adaptive", "classes"), [(True, 5), (False, 0)])
def test_a_checkpoint_is_the_network_that_its_names_say(tmp_path, adaptive, classes, student):
    network = released(adaptive, classes)
    torch.save(network.tensors, tmp_path / "release.pt")
    denoiser = load_as(tmp_path / "release.pt", description(adaptive, classes), Consistency() if student else EDM(0.5))
    sigma = torch.tensor([0.002, 0.05, 1.0, 80.0], dtype=torch.float64)
    x = (
        torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        * (0.25 + sigma**2).sqrt().float()[:, None, None, None]
    )
    labels = torch.tensor([0, 4, 2, 3]) if classes else None
    emitted = network(x / (0.25 + sigma**2).sqrt().float()[:, None, None, None], 250 * sigma.log().float(), labels)
    above = sigma - 0.002 if student else sigma
    skip, out = 0.25 / (above**2 + 0.25), above * 0.5 / (sigma**2 + 0.25).sqrt()
    expected = skip.float()[:, None, None, None] * x + out.float()[:, None, None, None] * emitted
    found = denoiser(x, denoiser.schedule.time_at_sigma(sigma), labels)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert (denoiser.shape, denoiser.classes) == ((3, 8, 8), classes)
    assert not any(p.requires_grad for p in denoiser.parameters())
    if student:
        assert torch.allclose(found[0], x[0], rtol=0, atol=1e-7)


def test_a_student_is_stored_and_read_again_bit_for_bit(tmp_path):
    torch.save({name: value.half() for name, value in released(True, 5).tensors.items()}, tmp_path / "release.pt")
    student = load_as(tmp_path / "release.pt", description(True, 5), Consistency())
    save_model(tmp_path / "ours.safetensors", student)
    again, _ = load_model(tmp_path / "ours.safetensors")
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.01, 1.0])
    assert isinstance(again, NetworkDenoiser)
    assert torch.equal(again(x, t, torch.tensor([1, 3])), student(x, t, torch.tensor([1, 3])))


def test_the_consistency_prediction_is_the_identity_at_its_lowest_level():
    prediction = Consistency(0.5, 0.01)
    for schedule in (KarrasVE(0.01, 80.0), DiscreteVP("linear")):
        t = schedule.time_at_sigma(torch.tensor([0.011, 5.0], dtype=torch.float64))
        skip, out = prediction.coefficients(schedule, schedule.time_at_sigma(0.01))
        assert (float(skip * schedule.alpha(schedule.time_at_sigma(0.01))), float(out)) == pytest.approx(
            (1.0, 0.0), abs=1e-9
        )
        x0, x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.allclose(prediction.to_x0(schedule, prediction.target(schedule, x0, x, t), x, t), x0)
    # By x / alpha and sigma / alpha alone, as for every prediction.
    vp, ve = DiscreteVP("linear"), KarrasVE(0.01, 200.0)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    (skip, out), (skip_ve, out_ve) = (
        prediction.coefficients(vp, t),
        prediction.coefficients(ve, ve.time_at_sigma(vp.rho(t))),
    )
    assert torch.allclose(skip * vp.alpha(t), skip_ve)
    assert torch.allclose(out, out_ve)
    assert Prediction.from_description(prediction.describe()) == prediction
    with pytest.raises(UserError, match="consistency prediction cannot be used with RectifiedFlow"):
        prediction.check(RectifiedFlow())
    with pytest.raises(UserError, match=r"'sigma_min' is 0\.0, and must be above 0"):
        Consistency(0.5, 0.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_the_released_networks_has_a_name(name):
    """The names cover our network exactly: each of its parameters is named by one of theirs."""
    with torch.device("meta"):
        ours = {key.rpartition(".")[0] for key, _ in build(NETWORKS[name]).named_parameters()}
    assert ours <= set(consistency_models._names(NETWORKS[name]).values())
    assert len(set(consistency_models._names(NETWORKS[name]).values())) == len(
        consistency_models._names(NETWORKS[name])
    )


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_other_files_and_names_are_refused(tmp_path):
    path, tensors = tmp_path / "release.pt", released(True, 5).tensors
    with pytest.raises(
        UserError,
        match="no network 'celeba' in the consistency models' release; it must be one of imagenet64, "
        "lsun-bedroom256, lsun-cat256",
    ):
        load_edm_teacher(path, "celeba")
    with pytest.raises(UserError, match=r"release\.pt: there is no such file"):
        load_student(path, "imagenet64")
    torch.save(tensors, path)
    with pytest.raises(UserError, match=r"release\.pt: (has an unknown|lacks|tensor '.*' is)"):
        load_student(path, "lsun-cat256")
    torch.save({**tensors, "more.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"has an unknown tensor 'more\.weight'"):
        load_as(path, description(True, 5), EDM(0.5))
    torch.save({name: value for name, value in tensors.items() if name != "out.2.bias"}, path)
    with pytest.raises(UserError, match=r"lacks tensor 'out_conv\.bias'"):
        load_as(path, description(True, 5), EDM(0.5))
    torch.save({**tensors, "out.2.bias": torch.zeros(4)}, path)
    with pytest.raises(
        UserError, match=r"tensor 'out_conv\.bias' is torch.float32 \(4,\), the network needs torch.float32 \(3,\)"
    ):
        load_as(path, description(True, 5), EDM(0.5))


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.zeros(1)}}, {"a": Hostile()}, None])
def test_what_is_no_state_dict_is_refused_unread(tmp_path, content):
    path = tmp_path / "release.pt"
    if content is None:
        path.write_bytes(b"not a file of tensors")
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"release\.pt: is not a state dict"):
        load_as(path, description(True, 5), EDM(0.5))


def test_tensors_of_other_shapes_and_types_are_refused_by_name(tmp_path):
    whole, path = released(True, 4).tensors, tmp_path / "release.pt"
    attention = next(name for name in whole if name.endswith("qkv.weight"))
    changes = {
        attention: (torch.zeros(()), whole[attention][:-1], whole[attention].to(torch.int8)),
        "label_emb.weight": (torch.zeros(()), torch.zeros(4), torch.zeros(2, 3, 4)),
        "out.2.bias": (torch.zeros(3, dtype=torch.complex64),),
    }
    for name, values in changes.items():
        for value in values:
            torch.save({**whole, name: value}, path)
            with pytest.raises(
                UserError, match=r"release\.pt: tensor '.*' is .*(does not belong|of a floating type|the network needs)"
            ):
                consistency_models.load_as(path, description(True, 4), EDM(0.5))
