"""The published configurations of text-to-image models, less what is diffusers' default: a row a
model, by its id on the hub.

They are those of diffusers' own scripts and classes, which turn the released weights into a
pipeline; of SSD-1B, the numbers of blocks by which other programs know its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class PublishedModel:
    """``pipeline``: its class. The others: what the files of its parts say."""

    pipeline: str
    network: Config
    vae: Config
    scheduler: Config


def _betas(kind: str, start: float, end: float) -> Config:
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": kind,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
    }


def _flow(**settings: Any) -> Config:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, **settings}


def _by_tokens(last: float, most: int) -> Config:
    """A flow whose shift grows with the number of tokens, to e^``last`` at ``most``."""
    return _flow(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=last,
        base_image_seq_len=256,
        max_image_seq_len=most,
    )


_LATENT_DIFFUSION = _betas("scaled_linear", 0.00085, 0.012)
_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_VAE_512: Config = {**_VAE, "sample_size": 512, "scaling_factor": 0.18215}
_VAE_XL: Config = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
_VAE_16: Config = {
    **_VAE,
    "sample_size": 1024,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_VAE_SD3: Config = {**_VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
_VAE_FLUX: Config = {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
_BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
_VAE_SANA: Config = {
    "_class_name": "AutoencoderDC",
    "encoder_block_types": _BLOCKS,
    "decoder_block_types": _BLOCKS,
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}

_SD: Config = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SDXL: Config = {
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
# Its middle block is one residual block without attention.
_SSD_1B: Config = {
    **_SDXL,
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
_SD3: Config = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_SD35_LARGE: Config = {
    **_SD3,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
_PIXART_SIGMA: Config = {
    "_class_name": "PixArtTransformer2DModel",
    "sample_size": 128,
    "caption_channels": 4096,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
}
_SANA = PublishedModel(
    "SanaPipeline", {"_class_name": "SanaTransformer2DModel", "sample_size": 32}, _VAE_SANA, _flow(shift=3.0)
)

MODELS: Mapping[str, PublishedModel] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": PublishedModel(
        "StableDiffusionPipeline", _SD, _VAE_512, _LATENT_DIFFUSION
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": PublishedModel(
        "StableDiffusionXLPipeline", _SDXL, _VAE_XL, _LATENT_DIFFUSION
    ),
    "segmind/SSD-1B": PublishedModel("StableDiffusionXLPipeline", _SSD_1B, _VAE_XL, _LATENT_DIFFUSION),
    "stabilityai/stable-diffusion-3-medium-diffusers": PublishedModel(
        "StableDiffusion3Pipeline", _SD3, _VAE_SD3, _flow(shift=3.0)
    ),
    "stabilityai/stable-diffusion-3.5-large": PublishedModel(
        "StableDiffusion3Pipeline", _SD35_LARGE, _VAE_SD3, _flow(shift=3.0)
    ),
    "black-forest-labs/FLUX.1-dev": PublishedModel(
        "FluxPipeline",
        {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
        _VAE_FLUX,
        _by_tokens(1.15, 4096),
    ),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": PublishedModel(
        "PixArtSigmaPipeline", _PIXART_SIGMA, _VAE_XL, _betas("linear", 0.0001, 0.02)
    ),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": _SANA,
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": _SANA,
    "Qwen/Qwen-Image": PublishedModel(
        "QwenImagePipeline",
        {"_class_name": "QwenImageTransformer2DModel"},
        {"_class_name": "AutoencoderKLQwenImage"},
        _by_tokens(0.9, 8192),
    ),
    "Tongyi-MAI/Z-Image": PublishedModel(
        "ZImagePipeline",
        {"_class_name": "ZImageTransformer2DModel", "axes_lens": [1536, 512, 512]},
        _VAE_FLUX,
        _flow(shift=6.0),
    ),
}
