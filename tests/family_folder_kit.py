"""Whole tiny pipelines of each family: text encoders, tokenizers and codecs of random weights
beside the transformers of ``family_kit``.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from family_kit import CASES
from pipeline_kit import LENGTH, write_tokenizer

PROMPTS = ["a red fox", "blue"]
WIDTH = 12
"""Of a token in the widest text encoder."""

_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_TEMPLATE = (
    "{% for m in messages %}" + _TURN + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("red", -1.0)]
    made = T5TokenizerFast(vocab=[*pieces, *((each, -3.0) for each in string.ascii_lowercase)], extra_ids=0)
    made.model_max_length = 64
    return made


def _gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *string.printable[:95]]
    made = GemmaTokenizerFast(vocab={each: number for number, each in enumerate(dict.fromkeys(words))}, merges=[])
    made.padding_side = "right"
    return made


def _qwen_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    letters = sorted(ByteLevel.alphabet())
    vocabulary = {each: number for number, each in enumerate([*letters, "re", "red"])}
    made = Qwen2TokenizerFast(vocab=vocabulary, merges=[("r", "e"), ("re", "d")])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = _TEMPLATE
    return made


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _clip(tokenizer: Any, width: int, projected: bool = True) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )


def _decoder_settings(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "max_position_embeddings": 1024,
    }


def _sd3(folder: Path) -> dict[str, Any]:
    first, second, third = _clip_tokenizer(folder / "1"), _clip_tokenizer(folder / "2"), _t5_tokenizer()
    return {
        "tokenizer": first,
        "tokenizer_2": second,
        "tokenizer_3": third,
        "text_encoder": _clip(first, 4),
        "text_encoder_2": _clip(second, 6),
        "text_encoder_3": _t5(third),
        "vae": _vae(),
    }


def _flux(folder: Path) -> dict[str, Any]:
    first, second = _clip_tokenizer(folder / "1"), _t5_tokenizer()
    return {
        "tokenizer": first,
        "tokenizer_2": second,
        "text_encoder": _clip(first, 6, projected=False),
        "text_encoder_2": _t5(second),
        "vae": _vae(),
    }


def _pixart(folder: Path) -> dict[str, Any]:
    tokenizer = _t5_tokenizer()
    return {"tokenizer": tokenizer, "text_encoder": _t5(tokenizer), "vae": _vae(shift=None)}


def _sana(folder: Path) -> dict[str, Any]:
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = _gemma_tokenizer()
    encoder = Gemma2Model(Gemma2Config(**_decoder_settings(tokenizer)))
    vae = diffusers.AutoencoderDC(
        latent_channels=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41407,
    )
    return {"tokenizer": tokenizer, "text_encoder": encoder, "vae": vae}


def _qwen(folder: Path) -> dict[str, Any]:
    import diffusers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _qwen_tokenizer()
    text = {**_decoder_settings(tokenizer), "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 1]}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )
    return {"tokenizer": tokenizer, "text_encoder": encoder, "vae": vae}


def _z_image(folder: Path) -> dict[str, Any]:
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = _qwen_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": Qwen3Model(Qwen3Config(**_decoder_settings(tokenizer))),
        "vae": _vae(),
    }


def _vae(shift: float | None = 0.0609) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.5305,
        shift_factor=shift,
    )


_PARTS: Mapping[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "sd3": ("StableDiffusion3Pipeline", _sd3),
    "flux": ("FluxPipeline", _flux),
    "pixart": ("PixArtSigmaPipeline", _pixart),
    "sana": ("SanaPipeline", _sana),
    "qwen-image": ("QwenImagePipeline", _qwen),
    "z-image": ("ZImagePipeline", _z_image),
}
NAMES = tuple(_PARTS)
PIXELS = {"sana": 32}
"""Sides of pictures that are not 16."""


def family_pipeline(name: str, folder: Path) -> Any:
    """diffusers' own pipeline, whole; ``folder`` takes files of its tokenizers."""
    import diffusers

    class_name, make = _PARTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = make(folder)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    case = CASES[name]
    made = getattr(diffusers, class_name)(transformer=case.network(), scheduler=case.scheduler(), **parts)
    made.set_progress_bar_config(disable=True)
    return made


def class_pipeline() -> Any:
    """diffusers' own ``DiTPipeline``."""
    import diffusers

    case = CASES["dit"]
    vae = _vae(shift=None).eval().requires_grad_(False)
    return diffusers.DiTPipeline(transformer=case.network(), vae=vae, scheduler=case.scheduler())


def size_of(name: str) -> int:
    """The side of its pictures, in pixels."""
    return PIXELS.get(name, 16)


def pictures(name: str, rows: int = 2) -> Tensor:
    """Pictures of that side."""
    side = size_of(name)
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(7)) * 2 - 1
