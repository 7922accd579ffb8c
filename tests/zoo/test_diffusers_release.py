"""diffusers' folders as denoisers: the estimate of x0 is the scheduler's own, and what is not
understood is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import cost
from fewstep.condition import Condition
from fewstep.denoisers import Guided, NetworkDenoiser, load_model, save_model
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.schedule import DiscreteVP, KarrasVE, ShiftedFlow
from fewstep.zoo import diffusers_models

diffusers = pytest.importorskip("diffusers")

CONFIG = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def folder(path: Path, scheduler: Any, classes: int = 0, flat: bool = False) -> tuple[Path, Any]:
    """A pipeline's folder and its network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**CONFIG, num_class_embeds=classes or None).eval().requires_grad_(False)
    network.save_pretrained(path if flat else path / "unet")
    scheduler.save_pretrained(path if flat else path / "scheduler")
    return path, network


def noised() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddpms_estimate_is_the_schedulers(tmp_path, betas, prediction, flat):
    scheduler = diffusers.DDPMScheduler(
        100, 1e-3, 0.03, beta_schedule=betas, prediction_type=prediction, clip_sample=False
    )
    path, network = folder(tmp_path, scheduler, flat=flat)
    denoiser = diffusers_models.load(path)
    assert isinstance(denoiser.schedule, DiscreteVP)
    x = noised()
    for index in (0, 40, 99):
        t = torch.full((3,), (index + 1) / 100, dtype=torch.float64)
        expected = scheduler.step(network(x, index).sample, index, x).pred_original_sample
        assert torch.allclose(denoiser(x, t), expected, rtol=2e-4, atol=2e-5)
        assert float(denoiser.schedule.alpha(t[0])) ** 2 == pytest.approx(
            float(scheduler.alphas_cumprod[index]), rel=2e-4
        )


def test_edms_estimate_is_the_schedulers(tmp_path):
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.7)
    path, network = folder(tmp_path, scheduler)
    denoiser = diffusers_models.load(path)
    assert denoiser.schedule == KarrasVE(0.01, 50.0)
    for sigma in (0.01, 0.5, 50.0):
        level, x = torch.tensor(sigma), noised() * sigma
        label = scheduler.precondition_noise(level)
        expected = scheduler.precondition_outputs(
            x, network(scheduler.precondition_inputs(x, level), label).sample, level
        )
        assert torch.allclose(denoiser(x, denoiser.schedule.time_at_sigma(sigma)), expected, rtol=1e-4, atol=1e-5)


def test_a_consistency_models_estimate_is_the_schedulers(tmp_path):
    scheduler = diffusers.CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, clip_denoised=False
    )
    path, network = folder(tmp_path, scheduler, classes=4)
    denoiser = diffusers_models.load(path)
    scheduler.set_timesteps(1)
    timestep = scheduler.timesteps[0]
    x, labels = noised() * 80, torch.tensor([0, 3, 1])
    emitted = network(scheduler.scale_model_input(x, timestep), timestep, class_labels=labels).sample
    # Sampling in one step adds noise of size 0: what comes out is the estimate.
    expected = scheduler.step(emitted, timestep, x, generator=torch.Generator().manual_seed(0)).prev_sample
    found = denoiser(x, torch.tensor(1.0), labels)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    lowest = denoiser(x, denoiser.schedule.t_min, labels)
    assert torch.allclose(lowest, x, rtol=0, atol=1e-4)


def test_features_are_the_middle_blocks_and_cost_no_decoder(tmp_path):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    denoiser, seen, decoded = diffusers_models.load(path), [], []
    x, t = noised(), torch.full((3,), 0.5)
    assert isinstance(denoiser.network.unet, diffusers.UNet2DModel)
    denoiser.network.unet.mid_block.register_forward_hook(lambda *given: seen.append(given[2]))
    denoiser.network.unet.up_blocks[0].register_forward_hook(lambda *given: decoded.append(given[2]))
    with cost.metered() as meter:
        found = denoiser.features(x, t)
    assert torch.equal(found, seen[0])
    assert (tuple(found.shape), denoiser.network.bottleneck, meter.evaluations, decoded) == ((3, 16, 4, 4), 16, 3, [])
    denoiser(x, t)
    assert len(decoded) == 1
    assert denoiser.network.leave is denoiser.network.unet.conv_out


def test_a_loaded_network_is_stored_and_read_again_bit_for_bit(tmp_path):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100), classes=4)
    state = torch.get_rng_state()
    denoiser = diffusers_models.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    save_model(tmp_path / "ours.safetensors", denoiser)
    again, _ = load_model(tmp_path / "ours.safetensors")
    assert isinstance(again, NetworkDenoiser)
    t, labels = torch.full((3,), 0.5), torch.tensor([0, 1, 3])
    assert torch.equal(again(noised(), t, labels), denoiser(noised(), t, labels))


def test_the_first_releases_names_of_attention_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    before = diffusers_models.load(path)
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(weights)
    for new, former in old.items():
        tensors = {name.replace(f".{new}.", f".{former}."): value for name, value in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, weights)
    t = torch.full((3,), 0.5)
    assert torch.equal(diffusers_models.load(path)(noised(), t), before(noised(), t))


# Refusals


def rewritten(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**content, **changes}.items() if value != "gone"}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline's folder, to be copied."""
    return folder(tmp_path_factory.mktemp("whole"), diffusers.DDPMScheduler(100))[0]


SCHEDULER, NETWORK = "scheduler/scheduler_config.json", "unet/config.json"


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (
            SCHEDULER,
            {"_class_name": "ScoreSdeVeScheduler"},
            "configuration of a ScoreSdeVeScheduler, which must be one of DDPMScheduler",
        ),
        (SCHEDULER, {"_class_name": ["DDPMScheduler"]}, "has list for _class_name"),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, "has 'sigmoid' for beta_schedule, which must be one of linear"),
        (SCHEDULER, {"beta_schedule": ["linear"]}, "has list for beta_schedule, which must be a text"),
        (
            SCHEDULER,
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr with prediction_type 'epsilon': no signal is left at the last step",
        ),
        (
            SCHEDULER,
            {"rescale_betas_zero_snr": "false"},
            "has 'false' for rescale_betas_zero_snr, which must be true or false",
        ),
        (SCHEDULER, {"trained_betas": [0.1, 0.2]}, r"has trained_betas, a table of its own .* \(it must be null\)"),
        (
            SCHEDULER,
            {"prediction_type": "flow"},
            "has 'flow' for prediction_type, which with a variance preserving schedule must be one of epsilon",
        ),
        (
            SCHEDULER,
            {"prediction_type": "flow_prediction"},
            "has 'flow_prediction' for prediction_type, which with a variance preserving",
        ),
        (SCHEDULER, {"prediction_type": None}, "has nothing for prediction_type, which must be a text"),
        (
            SCHEDULER,
            {"_class_name": "PNDMScheduler", "prediction_type": "sample"},
            "must be one of epsilon, v_prediction",
        ),
        (
            SCHEDULER,
            {"use_flow_sigmas": True},
            "has 'epsilon' for prediction_type, which of a flow must be one of flow_prediction",
        ),
        (SCHEDULER, {"use_flow_sigmas": 1}, "has 1 for use_flow_sigmas, which must be true or false"),
        (SCHEDULER, {"num_train_timesteps": "gone"}, "lacks the entry 'num_train_timesteps'"),
        (SCHEDULER, {"num_train_timesteps": 1}, "has 1 for num_train_timesteps, which must be a whole number from 2"),
        (SCHEDULER, {"num_train_timesteps": "100"}, "has '100' for num_train_timesteps"),
        (SCHEDULER, {"num_train_timesteps": 100.0}, r"has 100\.0 for num_train_timesteps"),
        (SCHEDULER, {"num_train_timesteps": True}, "has True for num_train_timesteps"),
        (SCHEDULER, {"beta_start": "0.001"}, r"has '0\.001' for beta_start, which must be a number"),
        (SCHEDULER, {"beta_end": [0.02]}, "has list for beta_end"),
        (SCHEDULER, {"beta_end": float("nan")}, "has nan for beta_end"),
        (
            SCHEDULER,
            {"beta_start": 0.03},
            r"has 0\.03 for beta_start and 0\.02 for beta_end, where 0 < beta_start <= beta_end < 1",
        ),
        (SCHEDULER, {"num_train_timesteps": 99_999}, "betas that leave .* of the signal at the last step"),
        (SCHEDULER, {"thresholding": "yes"}, "has 'yes' for thresholding"),
        (NETWORK, {"_class_name": "UNet2DConditionModel"}, "is the configuration of a 'UNet2DConditionModel'"),
        (NETWORK, {"novel": 1}, "takes no 'novel'"),
        (NETWORK, {"class_embed_type": "timestep"}, "embeds 0 classes of type timestep"),
        (NETWORK, {"sample_size": None}, "has nothing for sample_size"),
        (NETWORK, {"sample_size": -8}, "has -8 for sample_size, which must be a whole number from 1"),
        (NETWORK, {"sample_size": "8"}, "has '8' for sample_size"),
        (NETWORK, {"sample_size": [8, 8, 8]}, "has 3 numbers for sample_size"),
        (NETWORK, {"sample_size": [8, 8.0]}, r"has 8\.0 for sample_size"),
        (NETWORK, {"sample_size": 9}, "has 9 x 9 for sample_size, .* a multiple of 2"),
        (NETWORK, {"in_channels": "3"}, "has '3' for in_channels"),
        (NETWORK, {"out_channels": 6}, "has 6 for out_channels and 3 for in_channels"),
        (NETWORK, {"layers_per_block": [1, 1]}, "has list for layers_per_block"),
        (NETWORK, {"layers_per_block": 2}, "lacks tensor"),
        (NETWORK, {"block_out_channels": 8}, "has 8 for block_out_channels, which must be a list"),
        (NETWORK, {"block_out_channels": ["8", 16]}, "has '8' for block_out_channels"),
        (NETWORK, {"down_block_types": "DownBlock2D"}, "has 'DownBlock2D' for down_block_types, which must be a list"),
        (NETWORK, {"down_block_types": ["DownBlock2D", "Novel2D"]}, "cannot be built"),
        # Each of these diffusers takes, and computes something else, or fails when the network is
        # called.
        (NETWORK, {"flip_sin_to_cos": "false"}, "has 'false' for flip_sin_to_cos, which must be true or false"),
        (NETWORK, {"freq_shift": "0"}, "has '0' for freq_shift"),
        (NETWORK, {"norm_eps": "1e-05"}, "has '1e-05' for norm_eps"),
        (NETWORK, {"time_embedding_type": "unknown"}, "has 'unknown' for time_embedding_type"),
        (
            NETWORK,
            {"time_embedding_type": "learned", "num_train_timesteps": 100},
            "has 'learned' for time_embedding_type",
        ),
        (NETWORK, {"num_class_embeds": -1}, "has -1 for num_class_embeds"),
    ],
)
def test_configurations_that_are_not_known_are_refused(tmp_path, whole, file, changes, sentence):
    path = shutil.copytree(whole, tmp_path / "pipeline")
    rewritten(path / file, **changes)
    about = ("unet/" if changes.get("layers_per_block") == 2 else file).replace(".", r"\.")
    with pytest.raises(UserError, match=f"{about}.*{sentence}"):
        diffusers_models.load(path)


@pytest.mark.parametrize(
    ("scheduler", "changes", "sentence"),
    [
        ("EDMEulerScheduler", {"sigma_data": "0.5"}, r"has '0\.5' for sigma_data"),
        ("EDMEulerScheduler", {"sigma_min": 90.0}, r"has 90\.0 for sigma_min and 80\.0 for sigma_max"),
        ("EDMEulerScheduler", {"sigma_max": float("inf")}, "has inf for sigma_max"),
        ("EDMEulerScheduler", {"prediction_type": ["epsilon"]}, r"has \['epsilon'\] for prediction_type"),
        ("EDMEulerScheduler", {"sigma_data": "gone"}, "lacks the entry 'sigma_data'"),
        ("CMStochasticIterativeScheduler", {"sigma_data": -1}, "has -1 for sigma_data"),
        ("CMStochasticIterativeScheduler", {"clip_denoised": 0}, "has 0 for clip_denoised"),
    ],
)
def test_noise_levels_that_are_no_numbers_are_refused(tmp_path, scheduler, changes, sentence):
    path, _ = folder(tmp_path, getattr(diffusers, scheduler)())
    rewritten(path / SCHEDULER, **changes)
    with pytest.raises(
        UserError, match=rf"scheduler_config\.json: {sentence}.*; correct the file, or get it from its source again\.$"
    ):
        diffusers_models.remarks_of(path)


def test_folders_that_are_not_whole_are_refused(tmp_path):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        diffusers_models.load(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: there is no such file; save the model"):
        diffusers_models.load(path)
    weights.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pickled weights \(\.bin\) are there and are not read"):
        diffusers_models.load(path)
    weights.write_bytes(whole)
    scheduler = path / "scheduler" / "scheduler_config.json"
    for content in (b"[", b"\xff", b"[]"):
        scheduler.write_bytes(content)
        with pytest.raises(UserError, match=r"scheduler_config\.json: is (missing or not JSON|no JSON object)"):
            diffusers_models.load(path)
    scheduler.unlink()
    for bare in (path, path / "unet"):
        with pytest.raises(
            UserError,
            match=r"has neither scheduler/scheduler_config\.json nor scheduler_config\.json, .*whole pipeline's folder",
        ):
            diffusers_models.load(bare)
    with pytest.raises(UserError, match="neither a folder nor an id of the hub"):
        diffusers_models.load(tmp_path / "none")


# Which files are read


def stored(path: Path, network: Any, **how: Any) -> None:
    """The pipeline's weights, written anew as diffusers writes them."""
    for old in (path / "unet").glob("diffusion_pytorch_model*"):
        old.unlink()
    network.save_pretrained(path / "unet", **how)


def as_diffusers_has_it(path: Path, x: Tensor, **how: Any) -> Tensor:
    network = diffusers.UNet2DModel.from_pretrained(
        path, subfolder="unet", low_cpu_mem_usage=False, local_files_only=True, **how
    )
    return network.float()(x, 39).sample


def estimate(path: Path, **how: Any) -> Tensor:
    return diffusers_models.load(path, **how)(noised(), torch.full((3,), 0.4))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_only_variant_is_taken_and_computed_in_float32(tmp_path, kind, sharded):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100, prediction_type="sample", clip_sample=False))
    stored(path, network.to(kind), variant="fp16", **({"max_shard_size": "10KB"} if sharded else {}))
    assert bool(list((path / "unet").glob("*.index.*"))) == sharded
    found = estimate(path)
    assert found.dtype == torch.float32
    assert torch.allclose(found, as_diffusers_has_it(path, noised(), variant="fp16"), rtol=1e-5, atol=1e-5)
    assert torch.equal(estimate(path, variant="fp16"), found)
    assert [said for said in diffusers_models.remarks_of(path) if "in the variant 'fp16' only" in said]
    with pytest.raises(UserError, match=r"no safetensors weights of the variant 'ema' \(variants there: fp16\)"):
        diffusers_models.load(path, variant="ema")


def test_the_usual_weights_go_before_variants_and_of_several_variants_one_is_named(tmp_path):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100))
    usual = estimate(path)
    network.conv_out.weight.add_(0.5)
    network.save_pretrained(path / "unet", variant="ema")
    assert torch.equal(estimate(path), usual)
    changed = estimate(path, variant="ema")
    assert not torch.allclose(changed, usual, atol=0.1)
    assert [
        file.name for name, file in diffusers_models.files_of(path, variant="ema").items() if name.startswith("diff")
    ] == ["diffusion_pytorch_model.ema.safetensors"]
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(path / "unet", variant="fp16")
    with pytest.raises(UserError, match=r"in the variants ema, fp16 only; set 'teacher\.variant'"):
        diffusers_models.load(path)


def test_shards_are_read_by_their_index(tmp_path):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100, prediction_type="sample", clip_sample=False))
    before = estimate(path)
    stored(path, network, max_shard_size="20KB")
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    shards = sorted(file.name for file in (path / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(estimate(path), before)
    assert torch.allclose(before, as_diffusers_has_it(path, noised()), rtol=1e-5, atol=1e-5)
    (path / "unet" / "stray.safetensors").write_bytes(b"")
    assert set(diffusers_models.files_of(path)) == {"config.json", "scheduler", index.name, *shards}

    places = json.loads(index.read_text())["weight_map"]
    first = min(places)
    for wrong in (
        "../stolen.safetensors",
        "/etc/stolen.safetensors",
        "a/b.safetensors",
        "..",
        "x\\y.safetensors",
        "weights.bin",
        3,
        None,
    ):
        rewritten(index, weight_map={**places, first: wrong})
        with pytest.raises(
            UserError,
            match=rf"index\.json: places tensor '{first}' in .*, which is no name of a safetensors file in the "
            r"same folder",
        ):
            diffusers_models.load(path)
    other = next(shard for shard in shards if shard != places[first])
    rewritten(index, weight_map={**places, first: other})
    with pytest.raises(UserError, match=rf"tensor '{first}' is not where .*index\.json places it"):
        diffusers_models.load(path)
    for empty in ({}, [], None):
        rewritten(index, weight_map=empty)
        with pytest.raises(UserError, match=r"index\.json: has no 'weight_map'"):
            diffusers_models.load(path)
    rewritten(index, weight_map=places)
    (path / "unet" / shards[1]).unlink()
    with pytest.raises(UserError, match=rf"{shards[1]}: there is no such file, which {index.name} names"):
        diffusers_models.load(path)


def test_a_single_file_beside_an_index_is_passed_over_and_said(tmp_path):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100, prediction_type="sample", clip_sample=False))
    whole = path / "unet" / "diffusion_pytorch_model.safetensors"
    former = whole.read_bytes()
    network.conv_out.weight.add_(0.5)
    stored(path, network, max_shard_size="20KB")
    whole.write_bytes(former)
    assert torch.allclose(estimate(path), as_diffusers_has_it(path, noised()), rtol=1e-5, atol=1e-5)
    assert "the shards of the index are taken" in diffusers_models.remarks_of(path)[0]
    assert whole.name not in diffusers_models.files_of(path)


def test_quantised_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"].to(torch.int8)}, weights)
    with pytest.raises(UserError, match=r"tensor 'conv_in\.bias' is torch\.int8; only weights of a floating type"):
        diffusers_models.load(path)


def test_the_average_of_older_repositories(tmp_path):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100, clip_sample=False))
    usual = estimate(path)
    assert diffusers_models.remarks_of(path) == ()
    network.conv_out.weight.add_(0.5)
    network.save_pretrained(path / "unet_ema")
    assert torch.equal(estimate(path), usual)
    assert (
        "its average is in 'unet_ema', which 'teacher.subfolder: unet_ema' takes"
        in diffusers_models.remarks_of(path)[0]
    )
    average = estimate(path, subfolder="unet_ema")
    assert not torch.allclose(average, usual, atol=0.1)
    with pytest.raises(UserError, match=r"model_ema: there is no such folder; .*\(unet, unet_ema is there\)"):
        diffusers_models.load(path, subfolder="model_ema")
    (path / "unet").rename(tmp_path / "elsewhere")
    assert torch.equal(estimate(path), average)
    assert "the network of 'unet_ema', an average over training, is taken" in diffusers_models.remarks_of(path)[0]


def test_what_is_read_is_what_decides_the_checksum(tmp_path):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    before = diffusers_models.files_of(path)
    assert before == {
        "config.json": path / NETWORK,
        "scheduler": path / SCHEDULER,
        "diffusion_pytorch_model.safetensors": path / "unet" / "diffusion_pytorch_model.safetensors",
    }
    for name in (
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/other.safetensors",
        "scheduler_config.json",
        "unet/x.index.json",
        "config.json",
    ):
        (path / name).write_bytes(b"")
    assert diffusers_models.files_of(path) == before


def test_clipping_and_thresholding_are_said_to_be_left_out(tmp_path):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100, thresholding=True))
    assert "clip_sample and thresholding of its sampler is left out" in diffusers_models.remarks_of(path)[0]
    rewritten(path / SCHEDULER, clip_sample=False, thresholding=False)
    assert diffusers_models.remarks_of(path) == ()
    rewritten(path / SCHEDULER, clip_sample="gone")
    assert "clip_sample of its" in diffusers_models.remarks_of(path)[0]


@pytest.mark.parametrize("prediction", ["flow_prediction", "sample"])
def test_a_flows_estimate_is_the_schedulers(tmp_path, prediction):
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type=prediction, flow_shift=3.0)
    path, network = folder(tmp_path, scheduler)
    denoiser = diffusers_models.load(path)
    assert denoiser.schedule == ShiftedFlow(3.0, 1e-3)
    scheduler.set_timesteps(5)
    x = noised()
    for number, sigma in enumerate(scheduler.sigmas[:5]):
        scheduler._step_index = number
        # Their timesteps are cut to whole numbers, ours are the noise level itself.
        expected = scheduler.convert_model_output(network(x, sigma * 1000).sample, sample=x)
        time = sigma.double() / (3 - 2 * sigma.double())
        assert torch.allclose(denoiser(x, time.expand(3)), expected, rtol=1e-4, atol=1e-5)
        assert abs(float(sigma) * 1000 - float(scheduler.timesteps[number])) <= 1


# Classes


def test_the_embedding_behind_the_last_class_is_no_class(tmp_path):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100, prediction_type="sample"), classes=11)
    denoiser = diffusers_models.load(path, classes=10)
    x, t = noised(), torch.full((3,), 0.4)
    assert denoiser.classes == 10
    expected = network(x, 39, class_labels=torch.tensor([3, 10, 9])).sample
    assert torch.allclose(denoiser(x, t, torch.tensor([3, -1, 9])), expected, rtol=1e-5, atol=1e-5)
    unconditional = network(x, 39, class_labels=torch.tensor([10, 10, 10])).sample
    assert torch.allclose(denoiser(x, t), unconditional, rtol=1e-5, atol=1e-5)
    guided = Guided(denoiser, 2.0)(x, t, torch.tensor([3, 1, 9]))
    conditional = network(x, 39, class_labels=torch.tensor([3, 1, 9])).sample
    assert torch.allclose(guided, 2 * conditional - unconditional, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="a class from 0 to 9 for each sample, or -1 for 'no class'"):
        denoiser(x, t, torch.tensor([3, 10, 9]))
    save_model(tmp_path / "ours.safetensors", denoiser)
    again, _ = load_model(tmp_path / "ours.safetensors")
    assert torch.equal(again(x, t, torch.tensor([3, -1, 9])), denoiser(x, t, torch.tensor([3, -1, 9])))
    # Nothing in the folder says so: without the key all are classes.
    assert diffusers_models.load(path).classes == 11
    for wrong in (9, 12):
        with pytest.raises(UserError, match=f"has 11 for num_class_embeds, 'teacher.classes' says {wrong}"):
            diffusers_models.load(path, classes=wrong)


def test_classes_have_sizes_on_the_meta_device(tmp_path):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100), classes=11)
    denoiser = diffusers_models.load(path, classes=10).to("meta")
    with torch.device("meta"):
        assert denoiser(torch.zeros(2, 3, 8, 8), torch.full((2,), 0.5, device="cpu"), torch.zeros(2, 10)).shape == (
            2,
            3,
            8,
            8,
        )


def test_the_hub_is_asked_for_what_is_read_alone(tmp_path, monkeypatch):
    import huggingface_hub

    path, network = folder(tmp_path / ("0" * 40), diffusers.DDPMScheduler(100))
    asked: list[Any] = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, *allow_patterns))
        if revision == "gone":
            raise OSError("offline")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    stem = "unet/diffusion_pytorch_model"
    usual = ("owner/name", "0" * 40, f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors")
    # Of one commit, also where the recipe takes the newest.
    assert diffusers_models.load("owner/name").shape == (3, 8, 8)
    assert asked == [("owner/name", None, "*.json"), usual]
    stored(path, network, variant="fp16")
    asked.clear()
    diffusers_models.load("owner/name", "main")
    assert asked == [("owner/name", "main", "*.json"), usual, ("owner/name", "0" * 40, f"{stem}*.safetensors")]
    asked.clear()
    diffusers_models.load("owner/name", "main", variant="fp16")
    assert asked[1:] == [("owner/name", "0" * 40, f"{stem}*.fp16*.safetensors")]
    with pytest.raises(UserError, match=r"owner/name: could not be fetched from the hub \(offline\)"):
        diffusers_models.load("owner/name", "gone")


def test_labels_and_ends_that_the_network_has_no_place_for_are_refused():
    network = build({"kind": "diffusers-unet2d", "config": {**CONFIG, "num_class_embeds": 4}, "classes": 4})
    x, label = noised(), torch.zeros(3)
    for labels in (None, torch.tensor([0, -1, 2]), torch.tensor([0, 1, 4])):
        with pytest.raises(UserError, match="needs a class from 0 to 3 for each sample"):
            network(x, label, Condition(labels=labels))
    with pytest.raises(UserError, match="takes no end label"):
        network(x, label, Condition(), label)
    with pytest.raises(UserError, match="embeds 4 classes of type None, not 0 labels"):
        build({"kind": "diffusers-unet2d", "config": {**CONFIG, "num_class_embeds": 4}})
