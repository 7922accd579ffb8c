"""Each family against diffusers' own pipeline: a whole guided sample of four steps on the same
noise, and x0 at ten times as its scheduler makes it of what the network gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from family_kit import CASES, STEPS, FamilyCase, times_of
from fewstep.condition import Condition, Conditions
from fewstep.denoisers import Guided, NetworkDenoiser
from fewstep.networks import build
from fewstep.networks.families import DiffusersTransformer
from fewstep.targets import PatchwiseGuidance
from fewstep.zoo.diffusers_schedulers import meaning_of

SCALE = 3.0
every_family = pytest.mark.parametrize("name", CASES)


def prompts(case: FamilyCase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings of prompts, and of what guidance goes away from."""
    return case.embeddings(), case.embeddings(seed=5)


def _sd3(case: FamilyCase, network: Any) -> Tensor:
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=network, scheduler=case.scheduler(), vae=None, text_encoder=None, text_encoder_2=None,
        text_encoder_3=None, tokenizer=None, tokenizer_2=None, tokenizer_3=None,
    )  # fmt: skip
    given, other = prompts(case)
    return _called(
        pipe,
        case,
        guidance_scale=SCALE,
        prompt_embeds=given["text"],
        pooled_prompt_embeds=given["pooled"],
        negative_prompt_embeds=other["text"],
        negative_pooled_prompt_embeds=other["pooled"],
        sigmas=[1.0, 0.75, 0.5, 0.25],
    )


def _flux(case: FamilyCase, network: Any) -> Tensor:
    pipe = diffusers.FluxPipeline(
        transformer=network, scheduler=case.scheduler(), vae=None, text_encoder=None, text_encoder_2=None,
        tokenizer=None, tokenizer_2=None,
    )  # fmt: skip
    given, other = prompts(case)
    packed = pipe._pack_latents(case.noise(), 2, *case.shape)
    found = _called(
        pipe,
        case,
        latents=packed,
        guidance_scale=3.5,
        true_cfg_scale=SCALE,
        prompt_embeds=given["text"],
        pooled_prompt_embeds=given["pooled"],
        negative_prompt_embeds=other["text"],
        negative_pooled_prompt_embeds=other["pooled"],
    )
    return pipe._unpack_latents(found, case.shape[1] * 8, case.shape[2] * 8, 8)


def _pixart(case: FamilyCase, network: Any) -> Tensor:
    pipe = diffusers.PixArtSigmaPipeline(
        transformer=network, scheduler=case.scheduler(), vae=None, text_encoder=None, tokenizer=None
    )
    given, other = prompts(case)
    return _called(
        pipe,
        case,
        guidance_scale=SCALE,
        prompt=None,
        negative_prompt=None,
        prompt_embeds=given["text"],
        prompt_attention_mask=given["mask"],
        negative_prompt_embeds=other["text"],
        negative_prompt_attention_mask=other["mask"],
        use_resolution_binning=False,
    )


def _sana(case: FamilyCase, network: Any) -> Tensor:
    pipe = diffusers.SanaPipeline(
        transformer=network, scheduler=case.scheduler(), vae=None, text_encoder=None, tokenizer=None
    )
    pipe.vae_scale_factor = 8
    given, other = prompts(case)
    return _called(
        pipe,
        case,
        guidance_scale=SCALE,
        negative_prompt=None,
        prompt_embeds=given["text"],
        prompt_attention_mask=given["mask"],
        negative_prompt_embeds=other["text"],
        negative_prompt_attention_mask=other["mask"],
        use_resolution_binning=False,
        sigmas=[1.0, 0.75, 0.5, 0.25],
    )


def _qwen(case: FamilyCase, network: Any) -> Tensor:
    pipe = diffusers.QwenImagePipeline(
        transformer=network, scheduler=case.scheduler(), vae=None, text_encoder=None, tokenizer=None
    )
    given, other = prompts(case)
    packed = pipe._pack_latents(case.noise(), 2, *case.shape)
    found = _called(
        pipe,
        case,
        latents=packed,
        true_cfg_scale=SCALE,
        prompt_embeds=given["text"],
        prompt_embeds_mask=given["mask"],
        negative_prompt_embeds=other["text"],
        negative_prompt_embeds_mask=other["mask"],
    )
    return pipe._unpack_latents(found, case.shape[1] * 8, case.shape[2] * 8, 8).squeeze(2)


def _z_image(case: FamilyCase, network: Any) -> Tensor:
    pipe = diffusers.ZImagePipeline(
        transformer=network, scheduler=case.scheduler(), vae=None, text_encoder=None, tokenizer=None
    )
    given, other = ([row[kept.bool()] for row, kept in zip(each["text"], each["mask"], strict=True)]
                    for each in prompts(case))  # fmt: skip
    # Its scale counts from the prompt's own estimate on.
    return _called(
        pipe,
        case,
        guidance_scale=SCALE - 1,
        prompt_embeds=given,
        negative_prompt_embeds=other,
        sigmas=[1.0, 0.75, 0.5, 0.25],
    )


def _dit(case: FamilyCase, network: Any) -> Tensor:
    """DiTPipeline decodes, draws its own noise and knows a thousand classes: its loop, by hand."""
    scheduler, labels, x = case.scheduler(), torch.tensor([1, 2]), case.noise()
    none = torch.full_like(labels, network.config.num_embeds_ada_norm)
    scheduler.set_timesteps(STEPS)
    for step in scheduler.timesteps:
        time = step.expand(2 * len(x))
        found = network(torch.cat([x, x]), timestep=time, class_labels=torch.cat([labels, none])).sample
        told, untold = found[:, : x.shape[1]].chunk(2)
        x = scheduler.step(untold + SCALE * (told - untold), step, x).prev_sample
    return x


def _called(pipe: Any, case: FamilyCase, **given: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    side = {"height": case.shape[1] * 8, "width": case.shape[2] * 8}
    found = pipe(**{"latents": case.noise(), **side, "num_inference_steps": STEPS, "output_type": "latent", **given})
    return found.images


PIPELINES: Mapping[str, Callable[[FamilyCase, Any], Tensor]] = {
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
    "sana": _sana,
    "qwen-image": _qwen,
    "z-image": _z_image,
    "dit": _dit,
}


def denoiser(case: FamilyCase, network: Any) -> NetworkDenoiser:
    """Ours, with the same weights."""
    ours = build({"kind": case.kind, "config": dict(case.config)})
    assert isinstance(ours, DiffusersTransformer)
    ours.transformer.load_state_dict(network.state_dict())
    scheduler = case.scheduler()
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    meaning = meaning_of(config, "scheduler", ours.tokens_in(case.config, case.shape))
    return NetworkDenoiser(ours, *meaning, case.shape)


def sampled(model: Any, case: FamilyCase, condition: Condition) -> Tensor:
    """Euler's steps along the schedule's own line."""
    schedule, x = model.schedule, case.noise()
    times = times_of(case)
    for now, after in pairwise(times):
        x0 = model(x, torch.full((len(x),), now, dtype=torch.float64), condition)
        eps = (x - float(schedule.alpha(now)) * x0) / float(schedule.sigma(now))
        x = float(schedule.alpha(after)) * x0 + float(schedule.sigma(after)) * eps
    return x


class Away(torch.nn.Module):
    """The estimate at SCALE from another condition to the given one."""

    def __init__(self, inner: NetworkDenoiser, other: Condition):
        super().__init__()
        self.inner, self.other, self.schedule = inner, other, inner.schedule

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        told, untold = self.inner(x, t, condition), self.inner(x, t, self.other)
        return untold + SCALE * (told - untold)


class AwayFrom(Conditions):
    """What guidance goes away from is one condition, whatever it goes towards."""

    count, identity = 0, ""

    def __init__(self, other: Condition):
        self.other = other

    def of(self, numbers: Tensor | None) -> Condition:
        return self.other

    def null(self, condition: Condition) -> Condition:
        return self.other

    def sketch(self, rows: int) -> Condition:
        return self.other


class AwayByPatches(torch.nn.Module):
    """The same as ``target.guidance: {kind: patchwise}`` has it."""

    def __init__(self, inner: NetworkDenoiser, other: Condition):
        super().__init__()
        self.inner, self.schedule = PatchwiseGuidance(SCALE).guided(inner, AwayFrom(other), 0.0), inner.schedule

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        found: Tensor = self.inner(x, t, condition)
        return found


@every_family
def test_a_sample_is_the_pipelines(name: str) -> None:
    case = CASES[name]
    network = case.network()
    given, other = case.condition(), case.condition(seed=5)
    inner = denoiser(case, network)
    with torch.no_grad():
        theirs = PIPELINES[name](case, network)
        if name == "dit":
            other = Condition(labels=torch.tensor([-1, -1]))
        found = sampled(AwayByPatches(inner, other) if name == "qwen-image" else Away(inner, other), case, given)
    assert found.shape == theirs.shape
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@every_family
def test_x0_at_ten_times_is_what_the_scheduler_makes_of_the_networks_output(name: str) -> None:
    case = CASES[name]
    network = case.network()
    model, condition = denoiser(case, network), case.condition()
    inner = model.network
    x = case.noise()
    scheduler = case.scheduler()
    for place in range(10):
        flow = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
        time = (place + 1) / 10
        now = torch.full((len(x),), time, dtype=torch.float64)
        with torch.no_grad():
            _, label = model.inputs.scale_and_label(model.schedule, now)
            emitted = inner(x, label.float(), condition)
            found = model(x, now, condition)
        if flow:
            given = {"mu": None}
            if scheduler.config.use_dynamic_shifting:
                from diffusers.pipelines.flux.pipeline_flux import calculate_shift

                given["mu"] = calculate_shift(16, 16, 4096, 0.5, 1.15)
            scheduler.set_timesteps(sigmas=[time], **given)
            # One step to the end is the estimate.
            expected = scheduler.step(emitted, scheduler.timesteps[0], x).prev_sample
        else:
            scheduler.set_timesteps(1000)
            expected = scheduler.step(emitted, round(1000 * time) - 1, x).pred_original_sample
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_guidance_is_asked_of_the_same_network() -> None:
    """``Guided`` and the definition agree on a family without a pipeline of its own names."""
    case = CASES["dit"]
    model = denoiser(case, case.network())
    now = torch.full((2,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        guided = Guided(model, SCALE)(case.noise(), now, case.condition())
        none = Condition(labels=torch.tensor([-1, -1]))
        expected = Away(model, none)(case.noise(), now, case.condition())
    # A batch of twice the size rounds otherwise, by how much differs from machine to machine.
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
