"""Tiny text-to-image pipelines of random weights, shaped as Stable Diffusion 1.5 and 2 and as
SDXL.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.condition import Condition

LENGTH = 12
SIDE, FACTOR = 8, 2
"""Of latents; and of a picture's side to theirs."""
PROMPTS = ["a red digit seven", "blue"]

_BLOCKS = {
    "sample_size": SIDE,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {**_BLOCKS, "attention_head_dim": 2, "cross_attention_dim": 12},
    "sd2": {**_BLOCKS, "attention_head_dim": [2, 4], "cross_attention_dim": 12, "use_linear_projection": True},
    "sdxl": {
        **_BLOCKS,
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 12 + 20,
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 10 + 6 * 4,
    },
}
NAMES = tuple(_UNETS)
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    """Bytes and three merges, as ``vocab.json`` and ``merges.txt``."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("b", "l")]
    tokens = [*letters, *(f"{each}</w>" for each in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def pipeline(name: str, folder: Path, scheduler: Any = None, **changes: Any) -> Any:
    """diffusers' own pipeline; ``folder`` takes the files of its tokenizers. ``changes``: of the
    U-Net's configuration.
    """
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    prediction = "v_prediction" if name == "sd2" else "epsilon"
    scheduler = scheduler or diffusers.DDIMScheduler(**SCHEDULE, prediction_type=prediction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "unet": diffusers.UNet2DConditionModel(**{**_UNETS[name], **changes}),
            "vae": diffusers.AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
                block_out_channels=[8, 8],
                norm_num_groups=4,
                sample_size=SIDE * FACTOR,
                scaling_factor=0.13025 if name == "sdxl" else 0.18215,
            ),
            "text_encoder": CLIPTextModel(_text_config(tokenizer, 12)),
        }
        if name == "sdxl":
            write_tokenizer(folder / "tokenizer_2", pad="!")
            second = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
            parts["text_encoder_2"] = CLIPTextModelWithProjection(_text_config(second, 20))
    parts = {part: module.eval().requires_grad_(False) for part, module in parts.items()}
    if name == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            **parts, tokenizer=tokenizer, tokenizer_2=second, scheduler=scheduler, add_watermarker=False
        )
    return diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _text_config(tokenizer: Any, width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=10,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def noise(rows: int = 2, seed: int = 1) -> Tensor:
    """Latents to start from."""
    return torch.randn(rows, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def condition(context: Mapping[str, Tensor], rows: int, sizes: Tensor | None = None) -> Condition:
    """What an encoder made, a row a sample, with ``sizes`` (1, 6) as time ids."""
    given = {name: value.expand(rows, *value.shape[1:]) for name, value in context.items()}
    return Condition(context=given if sizes is None else {**given, "time_ids": sizes.expand(rows, 6)})


def times_of(timesteps: Sequence[int], last: float) -> Tensor:
    """Indices as times, and the time at which the last step ends."""
    return torch.tensor([*((int(index) + 1) / 1000 for index in timesteps), last], dtype=torch.float64)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, apart from it."""
    return {name: value.clone() for name, value in module.state_dict().items()}
