"""Tiny CLIP models of random weights, as transformers saves them, and pictures for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline_kit import LENGTH, write_tokenizer

SIDE = 24
PROCESSING: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def clip_folder(folder: Path, eos: int | None = None, act: str = "quick_gelu", processing: Any = None) -> Path:
    """A folder of a CLIPModel with its tokenizer. ``eos``: what the text encoder is told ends a
    text, the tokenizer's own token unless given.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    write_tokenizer(folder)
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **layers,
        "hidden_act": act,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id if eos is None else eos,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**layers, "hidden_act": act, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
        for parameter in model.parameters():
            # Wide, so that pictures and captions are apart.
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSING, **(processing or {})}))
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft spots of colour with noise on them."""
    random = np.random.default_rng(seed)
    spots = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = random.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(spots, dtype=np.int64) + noise).clip(0, 255).astype(np.uint8))


def write_pictures(
    folder: Path, sizes: list[tuple[int, int]], captions: list[str] | None = None, seed: int = 0
) -> Path:
    """A folder of PNGs 000000.png, 000001.png, ..., with ``metadata.jsonl`` where captions are
    given.
    """
    folder.mkdir(parents=True)
    names = [f"{number:06d}.png" for number in range(len(sizes))]
    for number, (name, (width, height)) in enumerate(zip(names, sizes, strict=True)):
        picture(width, height, seed + number).save(folder / name)
    if captions is not None:
        rows = [json.dumps({"file_name": name, "text": text}) for name, text in zip(names, captions, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder
