"""Adapters in files, ours and other programs' alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.denoisers import load_adapter
from fewstep.denoisers.stored_adapter import adapter_in
from fewstep.networks.adapters.low_rank_pair import LowRankPair, add_to_weights
from fewstep.system.files import is_of_ours
from fewstep.zoo.lora.fused import fitting
from fewstep.zoo.lora.lora_layers import LoraLayers
from fewstep.zoo.lora.lora_reader import read_lora, refuse_pickle


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """``pairs``: by the path of the layer in the network that they were read for. ``notes``: what a
    user should know of how the file was read. ``extra``: what a file of ours says besides, such as
    how a distilled adapter is sampled.
    """

    pairs: Mapping[str, LowRankPair]
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AddedAdapter:
    """An adapter's file, or the folder of a run whose student is one, and how much of it is
    added: 1 for as much as it was trained with.
    """

    path: Path
    weight: float = 1.0


def add_adapters(network: nn.Module, adapters: Sequence[AddedAdapter]) -> list[AdapterFile]:
    """Adds adapters to a network's weights, in place, and returns what their files say.

    Raises ``UserError`` naming the file for one that cannot be read, or does not fit.
    """
    files = []
    for each in adapters:
        file = read_adapter(each.path, network)
        add_to_weights(network, file.pairs, each.weight)
        files.append(file)
    return files


def read_adapter(path: Path, network: nn.Module) -> AdapterFile:
    """The adapter in a file, or of a run's folder its student's, for a network.

    Raises ``UserError`` naming the file where it cannot be read, is no adapter, or does not fit.
    """
    path = adapter_in(path)
    refuse_pickle(path)
    if is_of_ours(path):
        stored = load_adapter(path)
        pairs = fitting(LoraLayers.of(network), stored.on(network), str(path))
        return AdapterFile(pairs, (), stored.extra)
    found = read_lora(path, network)
    return AdapterFile(found.pairs, found.notes)
