"""Text-to-image pipelines as teachers: prompts, estimates and whole samples are diffusers' own."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.data.prompts import embed, read_prompts
from fewstep.denoisers import Guided, load_model, save_model
from fewstep.errors import UserError
from fewstep.networks import DiffusersTextUNet
from fewstep.recipes.building.prompting import prompt_conditions
from fewstep.schedule import ZeroSNRVP
from fewstep.solvers import EULER, solve
from fewstep.zoo.pipelines import TextPipeline, from_pipeline, load_pipeline, time_ids
from pipeline_kit import (
    FACTOR,
    LENGTH,
    NAMES,
    PROMPTS,
    SCHEDULE,
    SIDE,
    condition,
    noise,
    pipeline,
    times_of,
)

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

every_pipeline = pytest.mark.parametrize("name", NAMES)
LONG = "a very long prompt of many words " * 4


@pytest.fixture(scope="module")
def pipes(tmp_path_factory) -> dict[str, Any]:
    """diffusers' pipelines, and the folders in which they are saved."""
    made = {name: pipeline(name, tmp_path_factory.mktemp(name)) for name in NAMES}
    for name, pipe in made.items():
        pipe.save_pretrained(tmp_path_factory.getbasetemp() / "saved" / name)
        pipe.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folders(pipes, tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp() / "saved"


def embeddings(name: str, pipe: Any, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the pipeline's own ``encode_prompt`` gives: of the prompts, and of none."""
    if name == "sdxl":
        text, null, pooled, null_pooled = pipe.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=True)
        return {"text": text, "pooled": pooled}, {"text": null, "pooled": null_pooled}
    text, null = pipe.encode_prompt(prompts, "cpu", 1, True)
    return {"text": text}, {"text": null}


def of_prompts(ours: TextPipeline, name: str) -> Condition:
    """The condition of both prompts."""
    return condition(ours.encoder(PROMPTS), 2, time_ids(SIDE * FACTOR, SIDE * FACTOR) if name == "sdxl" else None)


def guided_sample(ours: TextPipeline, scale: float, times: Tensor, cache: Path) -> Tensor:
    """Latents of both prompts, guided as runs guide: away from the owner's unconditional prompt."""
    prompts = embed(read_prompts(PROMPTS), lambda: ours.encoder, ours.encoder.identity, cache)
    owner = prompt_conditions(prompts, ours.denoiser, ours.codec.factor)
    with torch.no_grad():
        return solve(EULER, Guided(ours.denoiser, scale, owner), noise(), times, owner.of(torch.arange(2)))


# Prompts


@every_pipeline
def test_prompts_are_encoded_as_the_pipeline_encodes_them(name: str, pipes, folders) -> None:
    encoder = load_pipeline(folders / name).encoder
    prompts = [*PROMPTS, "", LONG, "Über  ALLES! 123"]
    expected, null = embeddings(name, pipes[name], prompts)
    found = encoder(prompts)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(encoder.null()[key], null[key][:1], rtol=1e-6, atol=1e-6)
        assert not value.requires_grad
        assert bool(encoder.null()[key].any()) == (name != "sdxl")
    encoder.rows = 2
    for key, value in encoder(prompts).items():
        torch.testing.assert_close(value, found[key], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder([LONG])["text"], found["text"][3:4], rtol=1e-5, atol=1e-6)


def test_an_empty_prompt_is_encoded_where_no_zeros_are_forced(pipes, tmp_path) -> None:
    pipe = pipes["sdxl"]
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        pipe.save_pretrained(tmp_path)
        for ours in (load_pipeline(tmp_path), from_pipeline(pipe)):
            assert not ours.zeros_for_empty
            for key, value in embeddings("sdxl", pipe, PROMPTS)[1].items():
                torch.testing.assert_close(ours.encoder.null()[key], value[:1], rtol=1e-6, atol=1e-6)
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=True)


@every_pipeline
def test_tokens_are_counted_before_they_are_cut(name: str, folders) -> None:
    encoder = load_pipeline(folders / name).encoder
    assert encoder.length == LENGTH
    assert encoder.tokens("") == 2
    # One merge after another makes one token of three letters; of four letters two are one token.
    assert encoder.tokens("red") == 3
    assert encoder.tokens("blue") == 5
    assert encoder.tokens(LONG) > 50
    assert encoder.tokens("blue") == 5
    assert encoder([LONG])["text"].shape[1] == LENGTH
    for wrong in ("red", [3], []):
        with pytest.raises(UserError, match="a text encoder"):
            encoder(wrong)


# Estimates and samples


@every_pipeline
def test_estimates_are_the_schedulers(name: str, pipes, folders) -> None:
    ours, pipe = load_pipeline(folders / name), pipes[name]
    assert isinstance(ours.denoiser.network, DiffusersTextUNet)
    assert ours.denoiser.shape == (4, SIDE, SIDE)
    assert not any(value.requires_grad for value in ours.denoiser.parameters())
    given, x = of_prompts(ours, name), noise()
    more = {"text_embeds": given.context.get("pooled"), "time_ids": given.context.get("time_ids")}
    pipe.scheduler.set_timesteps(1000)
    for index in (0, 399, 950, 999):
        with torch.no_grad():
            emitted = pipe.unet(x, index, given.context["text"], added_cond_kwargs=more).sample
            expected = pipe.scheduler.step(emitted, index, x).pred_original_sample
            found = ours.denoiser(x, torch.tensor((index + 1) / 1000), given)
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


@every_pipeline
@pytest.mark.parametrize("to_clean", [False, True])
def test_a_guided_ddim_sample_is_the_pipelines(name: str, to_clean: bool, pipes, folders, tmp_path) -> None:
    ours, pipe = load_pipeline(folders / name), pipes[name]
    config = {**pipe.scheduler.config, "set_alpha_to_one": to_clean}
    usual, pipe.scheduler = pipe.scheduler, diffusers.DDIMScheduler.from_config(config)
    try:
        theirs = pipe(PROMPTS, num_inference_steps=5, guidance_scale=3.0, latents=noise(), output_type="latent").images
        times = times_of(pipe.scheduler.timesteps, 0.0 if to_clean else 1e-3)
    finally:
        pipe.scheduler = usual
    found = guided_sample(ours, 3.0, times, tmp_path)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        pictures = ours.codec.decode(found)
        decoded = pipe.vae.decode(theirs / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    assert pictures.shape == (2, 3, SIDE * FACTOR, SIDE * FACTOR)
    torch.testing.assert_close(pictures, decoded, rtol=1e-3, atol=1e-3)
    assert ours.codec.latent_shape(SIDE * FACTOR) == ours.denoiser.shape


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_one_step_of_a_student_is_lcms_at_399(name: str, pipes, folders) -> None:
    ours, pipe = load_pipeline(folders / name), pipes[name]
    usual, pipe.scheduler = pipe.scheduler, diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    try:
        theirs = pipe(
            PROMPTS, num_inference_steps=1, timesteps=[399], guidance_scale=0.0, latents=noise(), output_type="latent"
        ).images
    finally:
        pipe.scheduler = usual
    with torch.no_grad():
        found = ours.denoiser(noise(), torch.tensor(0.4), of_prompts(ours, name))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_a_network_that_embeds_its_guidance_samples_as_the_pipeline_does(tmp_path) -> None:
    pipe = pipeline("sd15", tmp_path, diffusers.LCMScheduler(**SCHEDULE), time_cond_proj_dim=16)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS, num_inference_steps=1, timesteps=[399], guidance_scale=4.0, latents=noise(), output_type="latent"
    ).images
    ours = from_pipeline(pipe)
    given = of_prompts(ours, "sd15")
    with torch.no_grad():
        found = ours.denoiser(
            noise(), torch.tensor(0.4), Condition(context=given.context, guidance=torch.full((2,), 4.0))
        )
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_no_signal_at_the_last_step_is_read_with_velocities_and_refused_with_noise(tmp_path) -> None:
    settings = {**SCHEDULE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    pipe = pipeline("sd2", tmp_path, diffusers.DDIMScheduler(**settings, prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(PROMPTS, num_inference_steps=4, guidance_scale=3.0, latents=noise(), output_type="latent").images
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    ours = from_pipeline(pipe)
    assert isinstance(ours.denoiser.schedule, ZeroSNRVP)
    found = guided_sample(ours, 3.0, times_of(pipe.scheduler.timesteps, 0.0), tmp_path / "cache")
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    pipe.scheduler = diffusers.DDIMScheduler(**settings, prediction_type="epsilon")
    with pytest.raises(UserError, match=r"StableDiffusionPipeline\.scheduler: has true for rescale_betas_zero_snr"):
        from_pipeline(pipe)


# Where it comes from


@every_pipeline
def test_a_pipeline_in_memory_is_the_same_as_its_folder(name: str, pipes, folders) -> None:
    read, held = load_pipeline(folders / name), from_pipeline(pipes[name])
    assert read.encoder.identity == held.encoder.identity
    assert read.codec.identity == held.codec.identity
    assert (read.guidance, read.zeros_for_empty) == (held.guidance, held.zeros_for_empty)
    assert held.files == {}
    given, t = of_prompts(read, name), torch.tensor([0.2, 0.9])
    assert torch.equal(read.denoiser(noise(), t, given), held.denoiser(noise(), t, given))
    # Neither holds the other's weights.
    before = held.denoiser(noise(), t, given)
    pipes[name].unet.conv_out.weight.add_(1.0)
    assert torch.equal(held.denoiser(noise(), t, given), before)
    pipes[name].unet.conv_out.weight.sub_(1.0)


@every_pipeline
def test_the_default_guidance_is_diffusers(name: str, pipes, folders) -> None:
    default = inspect.signature(type(pipes[name]).__call__).parameters["guidance_scale"].default
    assert load_pipeline(folders / name).guidance == default


@every_pipeline
def test_a_stored_denoiser_is_read_again_bit_for_bit(name: str, folders, tmp_path) -> None:
    state = torch.get_rng_state()
    ours = load_pipeline(folders / name)
    assert torch.equal(torch.get_rng_state(), state)
    save_model(tmp_path / "model.safetensors", ours.denoiser)
    again, _ = load_model(tmp_path / "model.safetensors")
    given, t = of_prompts(ours, name), torch.tensor([0.2, 0.9])
    assert torch.equal(again(noise(), t, given), ours.denoiser(noise(), t, given))
    save_model(tmp_path / "again.safetensors", again)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_page_shows_what_works(folders) -> None:
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
    match = re.search(r"## Text to image, from Python.*?```python\n(.*?)```", page, re.DOTALL)
    assert match is not None
    code = match.group(1).replace('"runs/stable-diffusion", variant="fp16"', repr(str(folders / "sd15")))
    names: dict[str, Any] = {}
    exec(compile(code, "teachers.md", "exec"), names)
    assert names["pictures"].shape == (1, 3, SIDE * FACTOR, SIDE * FACTOR)
    assert names["text"]["text"].shape == (1, LENGTH, 12)
