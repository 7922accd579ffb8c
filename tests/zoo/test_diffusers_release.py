"""diffusers' folders as denoisers: the estimate of x0 is the scheduler's own, and what is not understood is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import cost
from fewstep.condition import Condition
from fewstep.data import digits
from fewstep.denoisers import Guided, NetworkDenoiser, load_model, save_model
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.recipes import config
from fewstep.recipes.teachers import build_teacher, sketched_teacher
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow
from fewstep.zoo import diffusers_models
from fewstep.zoo.diffusers_files import Choice

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
    scheduler = diffusers.DDPMScheduler(100, 1e-3, 0.03, beta_schedule=betas, prediction_type=prediction, clip_sample=False)
    path, network = folder(tmp_path, scheduler, flat=flat)
    denoiser = diffusers_models.load(path)
    assert isinstance(denoiser.schedule, DiscreteVP)
    x = noised()
    for index in (0, 40, 99):
        t = torch.full((3,), (index + 1) / 100, dtype=torch.float64)
        expected = scheduler.step(network(x, index).sample, index, x).pred_original_sample
        assert torch.allclose(denoiser(x, t), expected, rtol=2e-4, atol=2e-5)
        assert float(denoiser.schedule.alpha(t[0])) ** 2 == pytest.approx(float(scheduler.alphas_cumprod[index]), rel=2e-4)


def test_edms_estimate_is_the_schedulers(tmp_path):
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.7)
    path, network = folder(tmp_path, scheduler)
    denoiser = diffusers_models.load(path)
    assert denoiser.schedule == KarrasVE(0.01, 50.0)
    for sigma in (0.01, 0.5, 50.0):
        level, x = torch.tensor(sigma), noised() * sigma
        label = scheduler.precondition_noise(level)
        expected = scheduler.precondition_outputs(x, network(scheduler.precondition_inputs(x, level), label).sample, level)
        assert torch.allclose(denoiser(x, denoiser.schedule.time_at_sigma(sigma)), expected, rtol=1e-4, atol=1e-5)


def test_a_consistency_models_estimate_is_the_schedulers(tmp_path):
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, clip_denoised=False)
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


# Which files


def same_as_diffusers(denoiser: NetworkDenoiser, network: Any, labels: Tensor | None = None) -> None:
    """What the network emits is what diffusers' own emits."""
    x, t = noised(), torch.tensor([0.01, 0.4, 1.0])
    expected = network(x, t * 100 - 1, class_labels=labels).sample
    found = denoiser.network(x, t * 100 - 1, Condition(labels=labels))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_variants_and_shards_give_what_diffusers_gives(tmp_path, variant, shards):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100))
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    saved = network.half() if variant else network
    saved.save_pretrained(path / "unet", variant=variant, max_shard_size="20KB" if shards else "1GB")
    assert (len(list((path / "unet").glob("*.safetensors"))) > 1) == shards
    own = diffusers.UNet2DModel.from_pretrained(path / "unet", variant=variant, torch_dtype=torch.float32)
    same_as_diffusers(diffusers_models.load(path), own)
    named = set(diffusers_models.files_of(path))
    assert named == {"scheduler", *(each.name for each in (path / "unet").iterdir())}


def test_the_plain_weights_come_before_variants_unless_one_is_named(tmp_path):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100))
    for name, factor in (("fp16", 0.5), ("non_ema", 2.0)):
        other = diffusers.UNet2DModel.from_config(network.config)
        other.load_state_dict({key: factor * value for key, value in network.state_dict().items()})
        other.save_pretrained(path / "unet", variant=name)
    same_as_diffusers(diffusers_models.load(path), network)
    same_as_diffusers(diffusers_models.load(path, choice=Choice(variant="non_ema")), other)
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds the variants fp16, non_ema of its weights; set 'teacher\.variant'"):
        diffusers_models.load(path)
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bf16\.safetensors: there is no such file"):
        diffusers_models.load(path, choice=Choice(variant="bf16"))


def test_a_training_checkpoint_holds_the_average_beside_the_weights(tmp_path):
    from diffusers.training_utils import EMAModel

    _, network = folder(tmp_path / "run", diffusers.DDPMScheduler(100))
    checkpoint = tmp_path / "run" / "checkpoint-500"
    average = EMAModel(network.parameters(), model_cls=diffusers.UNet2DModel, model_config=network.config)
    for parameter in network.parameters():
        parameter.data += 1
    average.save_pretrained(checkpoint / "unet_ema")
    before = diffusers.UNet2DModel.from_pretrained(tmp_path / "run" / "unet")
    # The scheduler is the run's, a folder above.
    same_as_diffusers(diffusers_models.load(checkpoint), before)
    same_as_diffusers(diffusers_models.load(checkpoint / "unet_ema"), before)
    network.save_pretrained(checkpoint / "unet")
    with pytest.raises(UserError, match=r"holds the trained weights \(unet\) and their average \(unet_ema\); set 'teacher\.subfolder'"):
        diffusers_models.load(checkpoint)
    same_as_diffusers(diffusers_models.load(checkpoint, choice=Choice("unet_ema")), before)
    same_as_diffusers(diffusers_models.load(checkpoint, choice=Choice("unet")), network)
    with pytest.raises(UserError, match="has no folder 'vae'"):
        diffusers_models.load(checkpoint, choice=Choice("vae"))


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        ({}, r"has no 'weight_map'"),
        ({"weight_map": {"conv_in.weight": "../secret.safetensors"}}, r"says of the tensor 'conv_in\.weight' that it is in .*secret"),
        ({"weight_map": {"conv_in.weight": 1}}, r"that it is in 1, which is no file"),
        ({"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00013-of-00012.safetensors"}}, r"00013-of-00012\.safetensors: there is no such file, though"),
        ({"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00002-of-00012.safetensors"}}, r"holds the tensor '.*', of which .*index\.json says otherwise"),
    ],
)
def test_an_index_that_does_not_fit_its_parts_is_refused(tmp_path, spoilt, sentence):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100))
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(path / "unet", max_shard_size="20KB")
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps(spoilt))
    with pytest.raises(UserError, match=sentence):
        diffusers_models.load(path)
    whole["weight_map"]["conv_in.novel"] = next(iter(whole["weight_map"].values()))
    index.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"names the tensor 'conv_in\.novel', which is not in its file"):
        diffusers_models.load(path)
    index.unlink()
    with pytest.raises(UserError, match=r"holds parts of its weights .* but no index of them"):
        diffusers_models.load(path)


# Classes and "no class"


def test_one_embedding_more_than_classes_is_that_of_no_class(tmp_path):
    path, network = folder(tmp_path, diffusers.DDPMScheduler(100, clip_sample=False), classes=11)
    denoiser = diffusers_models.load(path, classes=10)
    assert (denoiser.classes, denoiser.network.classes) == (10, 10)
    x, t = noised(), torch.tensor([0.2, 0.2, 0.7])
    emitted = [network(x, t * 100 - 1, class_labels=torch.tensor(ids)).sample for ids in ([3, 10, 0], [10, 10, 10])]
    expected = [denoiser.prediction.to_x0(denoiser.schedule, each, x, t.double()) for each in emitted]
    assert torch.allclose(denoiser(x, t, torch.tensor([3, -1, 0])), expected[0], rtol=0, atol=1e-5)
    assert torch.allclose(denoiser(x, t), expected[1], rtol=0, atol=1e-5)
    guided = Guided(denoiser, 2.0)(x, t, torch.tensor([3, 1, 0]))
    assert not torch.allclose(guided, denoiser(x, t, torch.tensor([3, 1, 0])), atol=1e-3)
    with pytest.raises(UserError, match="needs a class from 0 to 9 for each sample: or -1 for 'no class'"):
        denoiser(x, t, torch.tensor([3, 10, 0]))
    save_model(tmp_path / "ours.safetensors", denoiser)
    again, _ = load_model(tmp_path / "ours.safetensors")
    labels = torch.tensor([3, -1, 0])
    assert torch.equal(again(x, t, labels), denoiser(x, t, labels))
    assert diffusers_models.load(path).classes == diffusers_models.load(path, classes=11).classes == 11


def test_a_recipe_takes_a_teacher_of_ten_classes_with_eleven_embeddings(tmp_path):
    with torch.random.fork_rng(devices=[]):
        network = diffusers.UNet2DModel(**{**CONFIG, "in_channels": 1, "out_channels": 1}, num_class_embeds=11)
    network.save_pretrained(tmp_path / "unet_ema")
    diffusers.DDPMScheduler(100).save_pretrained(tmp_path / "scheduler")
    choice = config.DiffusersTeacher(kind="diffusers", path=str(tmp_path), subfolder="unet_ema")
    teacher = build_teacher(choice, digits())
    assert teacher.classes == 10
    assert sketched_teacher(choice, config.DigitsData(kind="digits")).classes == 10


# Flows


@pytest.mark.parametrize("prediction", ["flow_prediction", "sample"])
def test_flow_sigmas_are_a_rectified_flow(tmp_path, prediction):
    scheduler = diffusers.DPMSolverMultistepScheduler(100, use_flow_sigmas=True, prediction_type=prediction, solver_order=1, flow_shift=3.0)
    path, network = folder(tmp_path, scheduler)
    denoiser = diffusers_models.load(path)
    assert denoiser.schedule == RectifiedFlow(0.01)
    scheduler.set_timesteps(10)
    x = noised()
    for index in (0, 4, 8):
        scheduler._step_index = index
        # diffusers rounds the timestep that the network is given, and ours is asked at that level.
        timestep = int(scheduler.timesteps[index])
        scheduler.sigmas[index] = timestep / 100
        expected = scheduler.convert_model_output(network(x, timestep).sample, sample=x)
        assert torch.allclose(denoiser(x, torch.full((3,), timestep / 100, dtype=torch.float64)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_flow_sigmas_with_the_predictions_of_other_processes_are_refused(tmp_path, prediction):
    path, _ = folder(tmp_path, diffusers.DPMSolverMultistepScheduler(100, prediction_type=prediction))
    assert isinstance(diffusers_models.load(path).schedule, DiscreteVP)
    rewritten(path / "scheduler" / "scheduler_config.json", use_flow_sigmas=True)
    with pytest.raises(UserError, match=f"'use_flow_sigmas' is true, which makes it a rectified flow, and prediction_type is '{prediction}'"):
        diffusers_models.load(path)
    rewritten(path / "scheduler" / "scheduler_config.json", use_flow_sigmas="false")
    with pytest.raises(UserError, match="'use_flow_sigmas' must be true or false"):
        diffusers_models.load(path)


# Refusals


def rewritten(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**content, **changes}.items() if value != "gone"}))


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "configuration of a FlowMatchEulerDiscreteScheduler; it must be one of DDPMScheduler"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, r"its betas \(sigmoid"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "its betas"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "its betas"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "gone"}, "lacks the entry 'num_train_timesteps'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1}, "DiscreteVP: need at least 2 steps"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "100"}, "'num_train_timesteps' must be a number, it is \"100\""),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 99.5}, "'num_train_timesteps' must be a whole number"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "'num_train_timesteps' must be a whole number"),
        ("scheduler/scheduler_config.json", {"beta_start": "0.0001"}, "'beta_start' must be a number, it is \"0.0001\""),
        ("scheduler/scheduler_config.json", {"beta_end": True}, "'beta_end' must be a number, it is true"),
        ("scheduler/scheduler_config.json", {"beta_end": float("nan")}, "'beta_end' must be a number, it is NaN"),
        ("scheduler/scheduler_config.json", {"beta_schedule": ["linear"]}, r"its betas \(\[\"linear\"\]"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": "false"}, "'rescale_betas_zero_snr' must be true or false, it is \"false\""),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_min": "0.002", "sigma_max": 80}, "'sigma_min' must be a number"),
        ("scheduler/scheduler_config.json", {"_class_name": "CMStochasticIterativeScheduler", "sigma_data": [0.5], "sigma_min": 1, "sigma_max": 80}, "'sigma_data' must be a number"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "is the configuration of a UNet2DConditionModel"),
        ("unet/config.json", {"novel": 1}, "takes no 'novel'"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "embeds 0 classes of type timestep"),
        ("unet/config.json", {"sample_size": None}, "must have a sample_size"),
        ("unet/config.json", {"sample_size": -8}, "must have a sample_size .* it has -8"),
        ("unet/config.json", {"sample_size": "8"}, 'must have a sample_size .* it has "8"'),
        ("unet/config.json", {"sample_size": [8, 0]}, "must have a sample_size"),
        ("unet/config.json", {"sample_size": True}, "must have a sample_size"),
        ("unet/config.json", {"in_channels": "3", "out_channels": "3"}, "must have a sample_size"),
        ("unet/config.json", {"num_class_embeds": "10"}, r"unet.config\.json: 'num_class_embeds' must be a whole number"),
        ("unet/config.json", {"num_class_embeds": 0}, r"'num_class_embeds' must be a whole number"),
        ("unet/config.json", {"block_out_channels": ["8", "16"]}, r"unet.config\.json: .* cannot be built"),
        ("unet/config.json", {"layers_per_block": 2}, "lacks tensor"),
    ],
)
def test_configurations_that_are_not_known_are_refused(tmp_path, file, changes, sentence):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    rewritten(path / file, **changes)
    with pytest.raises(UserError, match=sentence):
        diffusers_models.load(path)


def test_folders_that_are_not_whole_are_refused(tmp_path):
    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        diffusers_models.load(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"pickled weights \(\.bin\) are not read"):
        diffusers_models.load(path)
    (path / "scheduler" / "scheduler_config.json").write_text("[")
    with pytest.raises(UserError, match=r"scheduler_config\.json: is missing or not JSON"):
        diffusers_models.load(path)
    with pytest.raises(UserError, match="neither a folder nor an id of the hub"):
        diffusers_models.load(tmp_path / "none")


def test_the_hub_is_asked_for_the_pinned_revision_and_no_pickles(tmp_path, monkeypatch):
    import huggingface_hub

    path, _ = folder(tmp_path, diffusers.DDPMScheduler(100))
    asked: list[Any] = []
    variant = tmp_path / "diffusion_pytorch_model.fp16.safetensors"

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        if revision is None:
            raise OSError("offline")
        if variant.is_file() and "*diffusion_pytorch_model*.safetensors" in allow_patterns:
            variant.rename(path / "unet" / variant.name)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert diffusers_models.load("owner/name", "abc").shape == (3, 8, 8)
    assert asked == [("owner/name", "abc", ["*.json", "*diffusion_pytorch_model.safetensors"])]
    (path / "unet" / "diffusion_pytorch_model.safetensors").rename(variant)
    assert diffusers_models.load("owner/name", "abc").shape == (3, 8, 8)
    assert asked[1:] == [asked[0], ("owner/name", "abc", ["*.json", "*diffusion_pytorch_model*.safetensors"])]
    with pytest.raises(UserError, match=r"owner/name: could not be fetched from the hub \(offline\)"):
        diffusers_models.load("owner/name")


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
