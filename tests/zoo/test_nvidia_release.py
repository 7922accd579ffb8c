"""NVIDIA's files as denoisers: each preconditioning's formula around the network that the file
holds, and files that do not fit refused.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from release_kit import NETWORKS, Watch, random_network, release, wrapped, written
from torch import Tensor, nn

import fewstep as fs
from fewstep.condition import Condition
from fewstep.denoisers import IDDPMInputs, NetworkDenoiser, VEInputs, VPInputs, load_model, save_model
from fewstep.denoisers.inputs import Inputs
from fewstep.errors import UserError
from fewstep.prediction import Prediction, ScaledScore
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow
from fewstep.system.ledger import file_digest
from fewstep.zoo import nvidia
from fewstep.zoo.download import local_file

WRAPPERS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")


def stored(tmp_path: Path, *arguments: Any, **changes: Any) -> Path:
    path = tmp_path / "network.pkl"
    path.write_bytes(release(*arguments, **changes))
    return path


def formula(wrapper: str, network: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """D(x; sigma) by Karras et al. 2022, Tab. 1, in float64 numbers a sample."""
    rows = []
    for row, level in enumerate(sigma.tolist()):
        skip, out, scale = 1.0, -level, 1 / math.sqrt(level**2 + 1)
        if wrapper == "EDMPrecond":
            skip, out = 0.25 / (level**2 + 0.25), level * 0.5 / math.sqrt(level**2 + 0.25)
            scale, label = 1 / math.sqrt(level**2 + 0.25), math.log(level) / 4
        elif wrapper == "VPPrecond":
            label = 999 * (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + level**2)) - 0.1) / 19.9
        elif wrapper == "VEPrecond":
            out, scale, label = level, 1.0, math.log(level / 2)
        else:
            label = 999 - int(np.abs(np.array(levels_by_recursion()) - level).argmin())
        emitted = network(
            scale * x[row : row + 1], torch.tensor([label], dtype=torch.float32), condition[row : row + 1]
        )
        rows.append(skip * x[row : row + 1] + out * emitted[:, :3])
    return torch.cat(rows)


def levels_by_recursion(steps: int = 1000) -> list[float]:
    """iDDPM's noise levels, one from the other (Karras et al. 2022, Tab. 1)."""
    levels = [0.0]
    for j in range(steps, 0, -1):
        above, below = (math.sin(math.pi / 2 * i / steps / 1.008) ** 2 for i in (j - 1, j))
        levels.insert(0, math.sqrt((levels[0] ** 2 + 1) / max(above / below, 0.001) - 1))
    return levels


# Equalities


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_file_is_its_formula_around_its_network(tmp_path, wrapper, name, classes):
    denoiser = nvidia.load(stored(tmp_path, wrapper, name, classes))
    schedule = denoiser.schedule
    assert (denoiser.shape, denoiser.classes, type(schedule)) == ((3, 8, 8), classes, KarrasVE)
    assert not any(p.requires_grad for p in denoiser.parameters())
    sigma = torch.from_numpy(np.geomspace(schedule.sigma_min, schedule.sigma_max, 5))
    x = (
        torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        * (0.25 + sigma**2).sqrt().float()[:, None, None, None]
    )
    condition = Condition(labels=torch.arange(5) % 4 - (torch.arange(5) == 4).long()) if classes else Condition()
    with torch.no_grad():
        found = denoiser(x, schedule.time_at_sigma(sigma), condition)
        expected = formula(wrapper, random_network(name, classes, wrapper == "iDDPMPrecond"), x, sigma, condition)
    error = (found - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3)).clamp(min=1)
    assert float(error.max()) < 1e-5


@pytest.mark.parametrize(
    ("wrapper", "low", "high"),
    [
        ("EDMPrecond", 0.002, 80.0),
        ("VPPrecond", 1.0005e-3, 152.167),
        ("VEPrecond", 0.02, 100.0),
        ("iDDPMPrecond", 0.0064254, 81.0),
    ],
)
def test_the_noise_levels_are_those_of_the_files_sampler(tmp_path, wrapper, low, high):
    schedule = nvidia.load(stored(tmp_path, wrapper)).schedule
    assert (schedule.sigma_min, schedule.sigma_max) == pytest.approx((low, high), rel=1e-5)


def test_levels_that_a_file_sets_are_kept_within_the_samplers(tmp_path):
    schedule = nvidia.load(stored(tmp_path, sigma_min=0.01, sigma_max=50.0, sigma_data=0.7)).schedule
    assert (schedule.sigma_min, schedule.sigma_max) == (0.01, 50.0)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_loaded_network_is_stored_and_read_again_bit_for_bit(tmp_path, wrapper):
    denoiser = nvidia.load(stored(tmp_path, wrapper, "DhariwalUNet", 4))
    save_model(tmp_path / "ours.safetensors", denoiser)
    again, _ = load_model(tmp_path / "ours.safetensors")
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.9])
    assert isinstance(again, NetworkDenoiser)
    assert torch.equal(again(x, t, torch.tensor([1, 3])), denoiser(x, t, torch.tensor([1, 3])))


def test_what_is_described_is_what_is_in_the_file(tmp_path):
    path = stored(tmp_path, "VPPrecond", "SongUNet", 4)
    summary = nvidia.describe(path)
    assert summary.parameters == sum(p.numel() for p in random_network("SongUNet", 4).parameters())
    assert (summary.preconditioning, summary.network, summary.shape, summary.classes) == (
        "VPPrecond",
        "SongUNet",
        (3, 8, 8),
        4,
    )
    assert (summary.size, summary.sha256) == (path.stat().st_size, file_digest(path))
    assert f"SHA-256 {summary.sha256}" in str(summary)
    assert f"{summary.parameters:,} parameters" in str(summary)


def test_nothing_is_run_while_a_network_is_loaded(tmp_path):
    path = stored(tmp_path)
    nvidia.load(path)
    with Watch(str(path)) as watch:
        state = torch.get_rng_state()
        nvidia.load(path)
    assert watch.events == []
    assert torch.equal(torch.get_rng_state(), state)


# Inputs and the prediction on their own


def test_iddpms_levels_are_those_of_the_recursion():
    assert IDDPMInputs().levels.numpy() == pytest.approx(np.array(levels_by_recursion()), rel=1e-9)
    schedule = KarrasVE(0.01, 80.0)
    levels = IDDPMInputs().levels[[50, 500, 998]]
    _, label = IDDPMInputs().scale_and_label(schedule, schedule.time_at_sigma(levels))
    assert label.tolist() == [949, 499, 1]


def test_vps_label_and_level_are_inverse():
    inputs, times = VPInputs(), (1e-5, 0.1, 0.5, 1.0)
    schedule = KarrasVE(1e-4, 200.0)
    levels = torch.tensor([inputs.level(u) for u in times], dtype=torch.float64)
    _, label = inputs.scale_and_label(schedule, schedule.time_at_sigma(levels))
    assert label.tolist() == pytest.approx([999 * u for u in times], rel=1e-6)


@pytest.mark.parametrize(
    "inputs", [VPInputs(), VEInputs(), IDDPMInputs(steps=100), fs.denoisers.EDMInputs(0.5, 1000.0)]
)
def test_inputs_see_the_same_process_on_every_schedule(inputs):
    """x / alpha and sigma / alpha are all that counts: the network is fed alike under VP and VE."""
    vp, ve = DiscreteVP("linear"), KarrasVE(0.001, 200.0)
    t = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    (scale, label), (scale_ve, label_ve) = (
        inputs.scale_and_label(vp, t),
        inputs.scale_and_label(ve, ve.time_at_sigma(vp.rho(t))),
    )
    assert label.tolist() == pytest.approx(label_ve.tolist(), rel=1e-9)
    assert (scale * vp.alpha(t)).tolist() == pytest.approx(scale_ve.tolist(), rel=1e-9)
    assert Inputs.from_description(inputs.describe()) == inputs
    with pytest.raises(UserError, match=r"inputs cannot be used with RectifiedFlow"):
        inputs.check(RectifiedFlow())
    with pytest.raises(UserError, match="unknown field 'more'"):
        Inputs.from_description({**inputs.describe(), "more": 1})


def test_a_scaled_score_is_the_noise_turned_around():
    schedule, t = DiscreteVP("linear"), torch.tensor([0.2, 0.7], dtype=torch.float64)
    x0, noise = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = schedule.add_noise(x0, t, noise)
    assert torch.allclose(ScaledScore().to_x0(schedule, -noise, x, t), x0, atol=1e-12)
    assert torch.allclose(ScaledScore().target(schedule, x0, x, t), -noise, atol=1e-12)
    assert Prediction.from_description(ScaledScore().describe()) == ScaledScore()
    with pytest.raises(UserError, match="scaled-score prediction cannot be used with RectifiedFlow"):
        ScaledScore().check(RectifiedFlow())


# Refusals


def changed(tmp_path: Path, wrapper: str = "EDMPrecond", **arguments: Any) -> Path:
    """A file whose network says that it was made from other arguments."""
    around = wrapped(wrapper, "SongUNet", random_network("SongUNet", doubled=wrapper == "iDDPMPrecond"))
    around.model._init_kwargs.update(arguments)  # type: ignore[union-attr, operator]
    path = tmp_path / "changed.pkl"
    path.write_bytes(written({"ema": around}))
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"img_resolution": 10**9}, r"has 1000000000 for img_resolution, which must be a whole number from 1 to 1024"),
        ({"model_channels": -4}, "has -4 for model_channels"),
        ({"model_channels": True}, "has True for model_channels"),
        ({"num_blocks": 10**6}, "for num_blocks"),
        ({"channel_mult": [1] * 17}, "for channel_mult, which must be a list of at most 16"),
        ({"channel_mult": [1, 2.5]}, "has 2.5 for channel_mult"),
        ({"dropout": float("nan")}, "has nan for dropout"),
        ({"embedding_type": 3}, "has 3 for embedding_type"),
        ({"embedding_type": "other"}, "'embedding_type' is 'other'"),
        ({"device": "cuda"}, "made with 'device', which the release's does not take"),
        ({"model_channels": 8}, r"the network 'SongUNet': tensor '.*' is torch.float32 .*, the network needs"),
        ({"model_channels": 1024, "channel_mult": [16] * 2}, "the network 'SongUNet': "),
        ({"num_blocks": 2}, "the network 'SongUNet': lacks tensor"),
        ({"out_channels": 6}, "6 channels out and 3 in, which EDMPrecond does not have"),
    ],
)
def test_arguments_that_are_not_the_tensors_are_refused(tmp_path, arguments, sentence):
    with pytest.raises(UserError, match=rf"changed\.pkl: .*{sentence}"):
        nvidia.load(changed(tmp_path, **arguments))


@pytest.mark.parametrize(
    ("wrapper", "changes", "sentence"),
    [
        ("EDMPrecond", {"sigma_data": 0.0}, "has 0.0 for sigma_data"),
        ("EDMPrecond", {"sigma_min": 90.0}, "'sigma_min' must be below 'sigma_max'"),
        ("VPPrecond", {"beta_d": 1e9}, "for beta_d"),
        ("VPPrecond", {"beta_d": 1000.0, "beta_min": 100.0}, r"whose highest noise level is 1\.94e\+130"),
        ("VPPrecond", {"M": 2.5}, "has 2.5 for M"),
        ("iDDPMPrecond", {"M": 500}, "table of noise levels is not the one of its constants"),
        ("iDDPMPrecond", {"C_2": 0.1}, "table of noise levels is not the one of its constants"),
        ("VEPrecond", {"sigma_max": "100"}, "has '100' for sigma_max"),
        ("VEPrecond", {"sigma_max": None}, "has nothing for sigma_max"),
    ],
)
def test_preconditionings_out_of_range_are_refused(tmp_path, wrapper, changes, sentence):
    with pytest.raises(UserError, match=rf"network\.pkl: .*{sentence}"):
        nvidia.load(stored(tmp_path, wrapper, **changes))


def test_other_content_is_refused(tmp_path):
    path = stored(tmp_path)
    with pytest.raises(UserError, match=r"network\.pkl: holds no network 'net'; it holds 'ema'"):
        nvidia.load(path, key="net")
    other = nn.Module()
    other.released_name = "StyleGAN"  # type: ignore[assignment]
    path.write_bytes(written({"ema": other}))
    with pytest.raises(
        UserError, match="holds a 'StyleGAN', which is none of EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond"
    ):
        nvidia.load(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="it holds none at all"):
        nvidia.describe(path)


# Files from elsewhere


def test_a_url_is_fetched_once_and_its_digest_can_be_asked_for(tmp_path, monkeypatch):
    content, calls = release(), []

    def fetched(url: str, to: str, progress: bool) -> None:
        calls.append(url)
        Path(to).write_bytes(content)

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    url = "https://example.org/edm/network.pkl?download=1"
    first = nvidia.describe(url)
    assert nvidia.describe(url) == first
    assert calls == [url]
    assert first.path.parent == tmp_path / "cache"
    assert first.path.name.endswith("-network.pkl")
    assert local_file("https://example.org/other/network.pkl") != first.path
    assert nvidia.load(url, sha256=first.sha256.upper()).shape == (3, 8, 8)
    with pytest.raises(UserError, match=f"its SHA-256 is {first.sha256}, not the expected 00"):
        nvidia.load(url, sha256="00")


def test_what_cannot_be_fetched_is_refused(tmp_path, monkeypatch):
    def failing(url: str, to: str, progress: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", failing)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\)"):
        nvidia.load("https://example.org/network.pkl")
    for url in ("http://example.org/network.pkl", "file:///etc/passwd", "ftp://example.org/network.pkl"):
        with pytest.raises(UserError, match="only https is fetched"):
            nvidia.load(url)
    with pytest.raises(UserError, match=r"none\.pkl: there is no such file"):
        nvidia.load(tmp_path / "none.pkl")
