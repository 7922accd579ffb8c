"""Adapters (LoRA) from files of other programs, in all forms that ``lora_keys`` lists.

Every entry of a file is used, counted as a text encoder's, or refused by name; none is left out in
silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.system.files import opened_tensors
from fewstep.zoo.lora.lora_alphas import PeftAlphas, checked_alpha, peft_alphas
from fewstep.zoo.lora.lora_keys import LoraKey, Part, parsed_key
from fewstep.zoo.lora.lora_layers import PEFT_PREFIX, LoraLayers
from fewstep.zoo.nvidia.machine import shown_foreign
from fewstep.zoo.state_dicts import is_torch_file


@dataclass(frozen=True, eq=False)
class LoraFile:
    """``pairs``: the low-rank weights, float32, by the layer's path in the network that they were
    read for. ``notes``: what a user should know of how the file was read, each a sentence.
    """

    pairs: dict[str, LowRankPair]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """An entry's key in the file, and the layer's name there."""

    key: str
    layer: str


def read_lora(path: Path, network: nn.Module) -> LoraFile:
    """An adapter for ``network``, which has no adapter on it.

    alpha is the file's own (``X.alpha``), or peft's (see ``lora_alphas``), or else the rank, as
    diffusers takes it; which is a note. Layers of the network that the file does not name have no
    pair.

    Raises ``UserError`` naming file and entry for a file that is no safetensors file, entries that
    are unknown or of another kind of adapter, layers that the network does not have, weights of
    other shapes, halves of a pair, two entries for one weight, values that are not finite, and an
    alpha that is 0 or no finite number.
    """
    path = Path(path)
    refuse_pickle(path)
    layers = LoraLayers.of(network)
    with opened_tensors(path) as stream:
        parts, left_out = _sorted_out(path, sorted(stream.keys()), layers)
        alphas = peft_alphas(path, stream.metadata() or {})
        pairs: dict[str, LowRankPair] = {}
        without: list[str] = []
        for layer, entries in parts.items():
            pair, said = _pair(path, layer, entries, stream, layers, alphas)
            pairs[layer] = pair
            if not said:
                without.append(layer)
    notes = []
    if left_out:
        notes.append(f"{path}: {left_out} entries of text encoders are left out; they are not the denoiser's.")
    if without:
        notes.append(f"{path}: says no alpha for {len(without)} of {len(pairs)} layers; their rank is taken for it.")
    return LoraFile(pairs, tuple(notes))


def refuse_pickle(path: Path) -> None:
    """Raises ``UserError`` for a file that is a pickle, which is not read."""
    if is_torch_file(path):
        raise UserError(
            f"{path}: is a pickle, which is a program, and is not read; save the adapter as safetensors by the program "
            "that made it."
        )


def _sorted_out(path: Path, keys: list[str], layers: LoraLayers) -> tuple[dict[str, dict[Part, _Entry]], int]:
    """The entries of each layer, by path, in the network's order; and the number of text encoders'
    entries.
    """
    found: dict[str, dict[Part, _Entry]] = {}
    strange: list[tuple[str, LoraKey]] = []
    left_out = 0
    for key in keys:
        try:
            entry = parsed_key(key)
            layer = None if entry is None else layers.find(entry.layer, entry.underscored)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if entry is None:
            left_out += 1
        elif layer is None:
            strange.append((key, entry))
        else:
            parts = found.setdefault(layer, {})
            if entry.part in parts:
                raise UserError(
                    f"{path}: entries {shown_foreign(parts[entry.part].key)} and {shown_foreign(key)} are both "
                    f"'{entry.part}' of layer '{layer}'; a file holds one adapter."
                )
            parts[entry.part] = _Entry(key, entry.layer)
    if strange:
        key, entry = strange[0]
        if not found:
            raise UserError(
                f"{path}: none of its layers is in this network, such as {shown_foreign(entry.layer)}; it is an "
                "adapter of another family of networks."
            )
        raise UserError(
            f"{path}: entry {shown_foreign(key)} is for layer {shown_foreign(entry.layer)}, which this network does "
            "not have; it is an adapter of another base."
        )
    if not found:
        raise UserError(f"{path}: holds no low-rank weights for a denoiser; check the file.")
    return {layer: found[layer] for layer in layers.layers if layer in found}, left_out


def _pair(
    path: Path,
    layer: str,
    entries: Mapping[Part, _Entry],
    stream: Any,
    layers: LoraLayers,
    alphas: PeftAlphas | None,
) -> tuple[LowRankPair, bool]:
    """A layer's weights, and whether the file says their alpha."""
    for part, other in (("down", "up"), ("up", "down")):
        if part not in entries:
            has = next(iter(entries.values())).key
            raise UserError(
                f"{path}: has entry {shown_foreign(has)} of layer '{layer}' and no '{part}' weights of that layer"
                + (f" beside '{other}'" if other in entries else "")
                + "; the file is incomplete, get it from its source again."
            )
    down, up = (_weight(path, entries[part].key, stream) for part in ("down", "up"))
    pair = layers.check(layer, LowRankPair(down, up, 1.0), f"{path}: layer '{layer}'")
    own = _own_alpha(path, entries.get("alpha"), stream)
    name = entries["down"].layer.removeprefix(PEFT_PREFIX)
    said = None if alphas is None else alphas.of((layers.relative(layer), name), pair.rank)
    if own is not None and said is not None and abs(own - said) > 1e-6 * abs(said):
        assert alphas is not None
        raise UserError(
            f"{path}: entry {shown_foreign(entries['alpha'].key)} is {own:g}, and {alphas.where} says {said:g}; "
            "remove the wrong one."
        )
    alpha = own if own is not None else said
    return LowRankPair(pair.down, pair.up, pair.rank if alpha is None else alpha), alpha is not None


def _weight(path: Path, key: str, stream: Any) -> Tensor:
    value: Tensor = stream.get_tensor(key)
    if not value.is_floating_point():
        raise UserError(
            f"{path}: entry {shown_foreign(key)} is {value.dtype}; only weights of a floating type are read."
        )
    value = value.float()
    if not bool(torch.isfinite(value).all()):
        raise UserError(
            f"{path}: entry {shown_foreign(key)} holds values that are not finite; get the file from its source again."
        )
    return value


def _own_alpha(path: Path, entry: _Entry | None, stream: Any) -> float | None:
    if entry is None:
        return None
    value: Tensor = stream.get_tensor(entry.key)
    if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
        raise UserError(
            f"{path}: entry {shown_foreign(entry.key)} is {value.dtype} of shape {tuple(value.shape)}; an alpha is one "
            "number."
        )
    return checked_alpha(value.double().item(), f"{path}: entry {shown_foreign(entry.key)} has", "there")
