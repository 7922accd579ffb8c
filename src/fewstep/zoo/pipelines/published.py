"""The sizes of text-to-image models on the hub, by their ids, so that a plan needs neither the hub
nor the weights: their published configurations, less what is diffusers' default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from fewstep.errors import UserError
from fewstep.system.locations import is_hub_id
from fewstep.zoo.pipelines.pipeline import OpenedPipeline, PipelinePart
from fewstep.zoo.pipelines.pipeline_kinds import KINDS

_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
_VAE: Mapping[str, Any] = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_SD: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SDXL: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_MODELS: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (
        "StableDiffusionPipeline",
        _SD,
        {**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        "StableDiffusionXLPipeline",
        _SDXL,
        {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
    ),
}


def published(source: str) -> OpenedPipeline | None:
    """The sizes of a published model, whose weights are not read; None for a folder, and for a
    model that is not listed here.
    """
    if source not in _MODELS or not is_hub_id(source, "models"):
        return None
    name, unet, vae = _MODELS[source]
    configs = {"unet": unet, "vae": vae}
    parts = {part: PipelinePart(dict(config), _unread, source, part) for part, config in configs.items()}
    return OpenedPipeline(KINDS[name], parts, _unread, (dict(_SCHEDULER), source), KINDS[name].pooled)


def _unread() -> NoReturn:
    raise UserError("a published model's sizes are known, and its weights were not read.")
