"""Adapters in files, ours and other programs' alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from fewstep.denoisers import load_adapter
from fewstep.denoisers.stored_adapter import adapter_in
from fewstep.networks.low_rank_pair import LowRankPair
from fewstep.networks.precision import long_copy
from fewstep.system.files import is_of_ours
from fewstep.zoo.lora import fused, read_lora

Network = TypeVar("Network", bound=nn.Module)


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


def with_adapters(network: Network, adapters: Sequence[AddedAdapter]) -> tuple[Network, list[AdapterFile]]:
    """A copy of a network, in float32 at least, with adapters added to its weights; and the files.

    Raises ``UserError`` naming the file for one that cannot be read, or does not fit.
    """
    copied, files = long_copy(network), []
    for each in adapters:
        file = read_adapter(adapter_in(each.path), copied)
        copied = fused(copied, file.pairs, each.weight)
        files.append(file)
    return copied, files


def read_adapter(path: Path, network: nn.Module) -> AdapterFile:
    """The adapter in a file, for a network.

    Raises ``UserError`` naming the file where it cannot be read, or is no adapter; whether a file
    of ours fits the network is seen when it is put on.
    """
    if is_of_ours(path):
        stored = load_adapter(path)
        return AdapterFile(stored.on(network), (), stored.extra)
    found = read_lora(path, network)
    return AdapterFile(found.pairs, found.notes)
