"""Folders of whole pipelines of each family: what is read is what diffusers computes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from family_folder_kit import NAMES, PROMPTS, family_pipeline, pictures, size_of
from family_kit import CASES, STEPS, times_of
from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.zoo.pipelines import OpenedPipeline, TextPipeline, from_pipeline, open_pipeline

SCALE, AWAY = 3.0, "a dog"
every_family = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: family_pipeline(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def folders(pipes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("saved") / name for name in NAMES}
    for name, folder in found.items():
        pipes[name].save_pretrained(folder)
    return found


def opened(folders: dict[str, Path], name: str) -> OpenedPipeline:
    return replace(open_pipeline(folders[name]), size=size_of(name))


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path]) -> dict[str, TextPipeline]:
    return {name: opened(folders, name).whole() for name in NAMES}


@every_family
def test_what_is_read_is_what_is_in_memory(name: str, pipes, folders, whole) -> None:
    read, held = whole[name], from_pipeline(pipes[name])
    assert read.encoder.identity == held.encoder.identity
    assert read.codec.identity == held.codec.identity
    for (key, one), (_, other) in zip(
        read.denoiser.state_dict().items(), held.denoiser.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key
    assert read.denoiser.shape == CASES[name].shape == opened(folders, name).sketch().shape
    assert not any(value.requires_grad for value in read.denoiser.parameters())


@every_family
def test_a_prompts_embedding_does_not_depend_on_the_others(name: str, whole) -> None:
    encoder = whole[name].encoder
    both = encoder(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        for key, value in encoder([prompt]).items():
            torch.testing.assert_close(value[0], both[key][row], rtol=1e-5, atol=1e-5)
    assert not torch.equal(both["text"][0], both["text"][1])
    assert {key: value.shape[1:] for key, value in encoder.null().items()} == {
        key: value.shape[1:] for key, value in both.items()
    }
    assert encoder.makes == {key: value.shape[-1] for key, value in both.items() if key != "mask"}
    assert 1 < encoder.tokens("blue") < encoder.tokens("a long blue ribbon that goes on")


def _sampled(read: TextPipeline, name: str, told: Condition, other: Condition, scale: float) -> Tensor:
    """Euler's steps along the schedule's own line."""
    schedule, x = read.denoiser.schedule, CASES[name].noise()
    for now, after in pairwise(times_of(CASES[name])):
        time = torch.full((len(x),), now, dtype=torch.float64)
        x0 = read.denoiser(x, time, told)
        if scale != 1:
            untold = read.denoiser(x, time, other)
            x0 = untold + scale * (x0 - untold)
        eps = (x - float(schedule.alpha(now)) * x0) / float(schedule.sigma(now))
        x = float(schedule.alpha(after)) * x0 + float(schedule.sigma(after)) * eps
    return x


@every_family
def test_a_guided_sample_of_prompts_is_the_pipelines(name: str, pipes, whole) -> None:
    read, pipe, case = whole[name], pipes[name], CASES[name]
    other = AWAY
    # Qwen-Image's pipeline rescales what guidance gives by a rule of its own.
    scale = 1.0 if name == "qwen-image" else SCALE
    side = size_of(name)
    given: dict[str, Any] = {"num_inference_steps": STEPS, "height": side, "width": side, "output_type": "latent"}
    noise = case.noise()
    asked: dict[str, dict[str, Any]] = {
        "sd3": {"guidance_scale": scale, "sigmas": [1.0, 0.75, 0.5, 0.25]},
        "flux": {"guidance_scale": 3.5, "true_cfg_scale": scale, "negative_prompt_2": None},
        "pixart": {"guidance_scale": scale, "use_resolution_binning": False, "clean_caption": False},
        "sana": {"guidance_scale": scale, "use_resolution_binning": False, "sigmas": [1.0, 0.75, 0.5, 0.25]},
        "qwen-image": {"true_cfg_scale": 1.0},
        "z-image": {"guidance_scale": scale - 1, "sigmas": [1.0, 0.75, 0.5, 0.25]},
    }
    packs = name in ("flux", "qwen-image")
    latents = pipe._pack_latents(noise, 2, *case.shape) if packs else noise
    away = {} if name == "qwen-image" else {"negative_prompt": [other] * len(PROMPTS)}
    if name == "pixart":
        away = {"negative_prompt": other}
    if name == "sana":
        away = {"negative_prompt": other}
    # Z-Image's pipeline writes into the list.
    theirs = pipe(list(PROMPTS), latents=latents, **given, **asked[name], **away).images
    if packs:
        theirs = pipe._unpack_latents(theirs, side, side, pipe.vae_scale_factor).reshape(noise.shape)
    told = Condition(context=read.encoder(PROMPTS))
    with torch.no_grad():
        # What guidance goes away from is read as the empty prompt is: Sana's instruction stays out.
        untold = Condition(context=_without_instruction(read, [other] * len(PROMPTS)))
        found = _sampled(read, name, told, untold, scale)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=2e-4 * float(theirs.abs().max()))


def _without_instruction(read: TextPipeline, prompts: list[str]) -> dict[str, Tensor]:
    encoder: Any = read.encoder
    found: dict[str, Tensor] = encoder._block(prompts, False)
    return found


@every_family
def test_a_codec_is_the_pipelines(name: str, pipes, whole) -> None:
    codec, vae, shown = whole[name].codec, pipes[name].vae, pictures(name)
    with torch.no_grad():
        latents = codec.encode(shown)
        found = codec.decode(latents)
        if name == "sana":
            inner = vae.encode(shown).latent
            theirs = inner * vae.config.scaling_factor
        elif name == "qwen-image":
            inner = vae.encode(shown.unsqueeze(2)).latent_dist.mean
            mean, std = (
                torch.tensor(each).reshape(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std)
            )
            theirs = ((inner - mean) / std).squeeze(2)
        else:
            inner = vae.encode(shown).latent_dist.mean
            theirs = (inner - vae.config.get("shift_factor", 0.0)) * vae.config.scaling_factor
        decoded = vae.decode(inner).sample.clamp(-1, 1).reshape(found.shape)
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, decoded, rtol=1e-3, atol=1e-3)
    assert codec.latent_shape(size_of(name)) == CASES[name].shape


def test_a_text_encoder_that_may_be_missing_may_be_missing(folders, pipes, tmp_path) -> None:
    """Stable Diffusion 3 without T5: its part of the text is zeros."""
    folder = shutil.copytree(folders["sd3"], tmp_path / "sd3")
    index = json.loads((folder / "model_index.json").read_text())
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
        index[part] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    found = replace(open_pipeline(folder), size=16).whole().encoder(PROMPTS)
    pipe = pipes["sd3"]
    three = pipe.text_encoder_3
    pipe.text_encoder_3 = None
    try:
        text, _, pooled, _ = pipe.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    finally:
        pipe.text_encoder_3 = three
    torch.testing.assert_close(found["text"], text)
    torch.testing.assert_close(found["pooled"], pooled)


def _rewritten(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("model_index.json", {"text_encoder": ["transformers", "LlamaModel"]}, "'LlamaModel' for 'text_encoder', and"),
        ("model_index.json", {"transformer": [None, None]}, "has no 'transformer'"),
        ("transformer/config.json", {"num_layers": 10**9}, "transformer.config.json: has 1000000000 for num_layers"),
        ("transformer/config.json", {"num_layers": 10**6}, "transformer"),
        ("transformer/config.json", {"num_attention_heads": 3}, "transformer"),
        ("transformer/config.json", {"sample_size": 100000}, "transformer.config.json"),
        ("transformer/config.json", {"norm": {"a": 1}}, "has {'a': 1} for norm"),
        ("text_encoder/config.json", {"num_layers": 10**6}, "text_encoder: is no T5EncoderModel"),
        ("text_encoder/config.json", {"d_model": 10**6}, "text_encoder: is no T5EncoderModel"),
        ("text_encoder/config.json", {"num_layers": 3}, "text_encoder: lacks 'encoder.block.2"),
        ("text_encoder/config.json", {"num_layers": 1}, "text_encoder: has, and its class has not"),
        ("tokenizer/tokenizer.json", {"model": None}, "tokenizer: is no T5Tokenizer"),
        ("vae/config.json", {"shift_factor": "x"}, "vae.config.json"),
        ("scheduler/scheduler_config.json", {"_class_name": "Euler"}, "scheduler_config.json: is the configuration of"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_folder_is_one_sentence(folders, tmp_path, file: str, changes: dict, said: str) -> None:
    folder = shutil.copytree(folders["pixart"], tmp_path / "pixart")
    _rewritten(folder / file, **changes)
    with pytest.raises(UserError, match=said) as raised:
        replace(open_pipeline(folder), size=16).whole()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("part", ["transformer/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_are_not_finite_or_pickled_are_refused(folders, tmp_path, part: str) -> None:
    folder = shutil.copytree(folders["pixart"], tmp_path / "pixart")
    path = folder / f"{part}.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("inf")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name}.*not finite"):
        replace(open_pipeline(folder), size=16).whole()
    path.rename(folder / f"{part}.bin")
    with pytest.raises(UserError, match="safetensors"):
        open_pipeline(folder)


def test_a_size_that_patches_do_not_divide_is_refused(folders) -> None:
    with pytest.raises(UserError, match="patches divide"):
        replace(open_pipeline(folders["sd3"]), size=18).sketch()
    with pytest.raises(UserError, match="multiples of 2"):
        replace(open_pipeline(folders["sd3"]), size=17).sketch()


def test_a_shift_is_that_of_the_pictures_size(folders) -> None:
    small = replace(open_pipeline(folders["flux"]), size=16).sketch().schedule
    large = replace(open_pipeline(folders["flux"]), size=32).sketch().schedule
    assert small.shift < large.shift  # type: ignore[attr-defined]
