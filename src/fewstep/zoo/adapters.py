"""Adapters in files, ours and other programs' alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.denoisers import load_adapter
from fewstep.networks.low_rank_pair import LowRankPair
from fewstep.system.files import is_of_ours
from fewstep.zoo.lora import read_lora


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """``pairs``: by the path of the layer in the network that they were read for. ``notes``: what a
    user should know of how the file was read. ``extra``: what a file of ours says besides, such as
    how a distilled adapter is sampled.
    """

    pairs: Mapping[str, LowRankPair]
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


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
