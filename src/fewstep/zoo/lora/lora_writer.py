"""Adapters (LoRA) as files that other programs read. Nothing of ours is in them, so that any
reader of the form reads them whole.

``peft``: what diffusers and peft read. alphas are in the header only, where diffusers' pipelines
look for them; a reader that does not look, as diffusers' ``load_lora_adapter`` with neither
``weight_name`` nor ``use_safetensors``, takes the rank for alpha.

``kohya``: what A1111 reads. Its SDXL has the original names of layers, Stable Diffusion 1 and 2
diffusers' (as kohya's trainer names them). All layers get one alpha, the commonest, and the factor
of another goes into ``up``: diffusers reads such files with one alpha for all attention layers.

``comfyui``: ComfyUI knows layers by their original names alone, and takes each layer's alpha.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.system.files import write_foreign_tensors
from fewstep.zoo.lora.fused import fitting
from fewstep.zoo.lora.lora_alphas import METADATA, checked_alpha
from fewstep.zoo.lora.lora_layers import LoraLayers

_Content = tuple[dict[str, Tensor], dict[str, str]]


def write_lora(path: Path, pairs: Mapping[str, LowRankPair], network: nn.Module, form: str) -> str:
    """Writes the low-rank weights of layers of ``network``, by their paths in it, in the types that
    they have; returns the file's digest (64 hexadecimal digits).

    Raises ``UserError`` for another form, a layer that the network does not have or that the form
    has no name for, weights of another shape, and an alpha that is 0 or not finite; ``NotFinite``
    for weights that are not finite. Nothing is written then.
    """
    if form not in _FORMS:
        raise UserError(f"there is no form '{form}' of an adapter's file; it must be one of {', '.join(_FORMS)}.")
    layers = LoraLayers.of(network)
    given = fitting(layers, pairs, "the adapter")
    for layer, pair in given.items():
        checked_alpha(pair.alpha, f"the adapter's layer '{layer}' has", "there")
    tensors, header = _FORMS[form](given, layers)
    return write_foreign_tensors(Path(path), tensors, header)


def _peft(pairs: Mapping[str, LowRankPair], layers: LoraLayers) -> _Content:
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        tensors[f"{path}.lora_A.weight"] = pair.down
        tensors[f"{path}.lora_B.weight"] = pair.up
    rank, alpha = _commonest(pair.rank for pair in pairs.values()), _common_alpha(pairs)
    named = {layers.relative(path): pair for path, pair in pairs.items()}
    # A regular expression, which would be that of every layer whose name ends so without "^".
    patterns = {f"^{re.escape(name)}": pair for name, pair in named.items()}
    settings = {
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {name: pair.rank for name, pair in patterns.items() if pair.rank != rank},
        "alpha_pattern": {name: _number(pair.alpha) for name, pair in patterns.items() if pair.alpha != alpha},
        "target_modules": sorted(named),
    }
    said = {f"{layers.prefix}{name}": value for name, value in settings.items()}
    return tensors, {METADATA: json.dumps(said, indent=2, sort_keys=True)}


def _kohya(pairs: Mapping[str, LowRankPair], layers: LoraLayers) -> _Content:
    tensors: dict[str, Tensor] = {}
    if layers.prefix == "transformer.":
        raise UserError(
            "kohya's files of transformers have the names of each model's first release, which are not known here; "
            "write the form 'peft', which diffusers and ComfyUI read."
        )
    alpha = _common_alpha(pairs)
    for path, pair in pairs.items():
        name = layers.underscored(path)
        # Raises for a name of two layers.
        layers.find(name, True)
        up = pair.up if pair.alpha == alpha else (pair.up.double() * (pair.alpha / alpha)).to(pair.up.dtype)
        tensors[f"lora_unet_{name}.lora_down.weight"] = pair.down
        tensors[f"lora_unet_{name}.lora_up.weight"] = up
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return tensors, {"format": "pt"}


def _comfyui(pairs: Mapping[str, LowRankPair], layers: LoraLayers) -> _Content:
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        if path not in layers.originals:
            raise UserError(
                f"ComfyUI has no name for layer '{path}': it knows networks of Stable Diffusion 1, 2 and XL; "
                "write the form 'peft'."
            )
        name = f"diffusion_model.{layers.originals[path]}"
        tensors[f"{name}.lora_A.weight"] = pair.down
        tensors[f"{name}.lora_B.weight"] = pair.up
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha, dtype=torch.float32)
    return tensors, {"format": "pt"}


_FORMS: Mapping[str, Callable[[Mapping[str, LowRankPair], LoraLayers], _Content]] = {
    "peft": _peft,
    "kohya": _kohya,
    "comfyui": _comfyui,
}


def _commonest(values: Any) -> Any:
    """The value that is there most often, the smallest of several."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _common_alpha(pairs: Mapping[str, LowRankPair]) -> float:
    return float(_commonest(pair.alpha for pair in pairs.values()))


def _number(alpha: float) -> float:
    """A whole number as such, which peft writes."""
    return int(alpha) if float(alpha).is_integer() else alpha
