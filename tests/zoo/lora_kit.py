"""Networks, and random adapters of theirs, for tests of adapters in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.networks import build
from fewstep.networks.adapters.low_rank_pair import LowRankPair

SD = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
XL = {
    **SD,
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 20,
    "transformer_layers_per_block": [1, 2],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}
NETWORKS: dict[str, Mapping[str, Any]] = {
    "sd": {"kind": "diffusers-text-unet", "config": SD},
    "xl": {"kind": "diffusers-text-unet", "config": XL},
    "captions": {"kind": "caption-unet", "widths": [8, 16], "channels": 4, "groups": 4, "heads": 2, "text_width": 12},
    "unet2d": {
        "kind": "diffusers-unet2d",
        "config": {
            "sample_size": 8,
            "block_out_channels": [8, 16],
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        },
    },
    "small": {"kind": "small-unet", "channels": 4, "width": 8},
    "mlp": {"kind": "residual-mlp", "dim": 3, "width": 8},
}


def network_of(name: str) -> nn.Module:
    """A network of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(NETWORKS[name])


def layers_of(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """By path."""
    return {path: each for path, each in network.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))}


def pairs_of(network: nn.Module, every: int = 1, alpha: Callable[[int], float] | None = None) -> dict[str, LowRankPair]:
    """Random low-rank weights of each ``every``-th layer, of ranks 2 to 4 in turn, and of alphas
    that are no layer's rank.
    """
    draws = torch.Generator().manual_seed(3)
    alpha = alpha or (lambda index: (1.5, 5.0, 7.0)[index % 3])
    pairs = {}
    for index, (path, layer) in enumerate(list(layers_of(network).items())[::every]):
        rank = 2 + index % 3
        outputs, *inputs = layer.weight.shape
        down = 0.3 * torch.randn(rank, *inputs, generator=draws)
        up = 0.3 * torch.randn(outputs, rank, *(1 for _ in inputs[1:]), generator=draws)
        pairs[path] = LowRankPair(down, up, alpha(index))
    return pairs


def added(network: nn.Module, pairs: Mapping[str, LowRankPair]) -> dict[str, Tensor]:
    """The weights with (alpha / rank) up down, by their definition: for each output o and input i
    the sum over r.
    """
    found = {path: layer.weight.detach().clone() for path, layer in layers_of(network).items()}
    for path, pair in pairs.items():
        up = pair.up.reshape(len(pair.up), pair.rank)
        found[path] += (pair.alpha / pair.rank) * torch.einsum("or,r...->o...", up, pair.down)
    return found


def output(unet: Any) -> Tensor:
    """What diffusers' U-Net computes of fixed inputs, in its type."""
    draws = torch.Generator().manual_seed(5)
    x, text = (
        torch.randn(2, 4, 8, 8, generator=draws),
        torch.randn(2, 5, unet.config.cross_attention_dim, generator=draws),
    )
    more = {}
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        more["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=draws).to(unet.dtype),
            "time_ids": torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]).expand(2, 6),
        }
    with torch.no_grad():
        return unet(x.to(unet.dtype), torch.tensor([3.0, 700.0]), text.to(unet.dtype), return_dict=False, **more)[0]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The entries and the header of a safetensors file."""
    with safe_open(path, framework="pt") as stream:
        header = dict(stream.metadata() or {})
    return load_file(path), header


def write_file(path: Path, tensors: Mapping[str, Tensor], **said: Any) -> Path:
    """A safetensors file, with ``said`` as what diffusers keeps of peft's configuration."""
    header = {"lora_adapter_metadata": json.dumps(said)} if said else None
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=header)
    return path
