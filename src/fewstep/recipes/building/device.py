"""From a recipe's ``training.device`` to a device of this machine: the one place that asks whether
there is a GPU; and where networks are built.
"""

from __future__ import annotations

from typing import Literal

import torch

from fewstep.errors import UserError
from fewstep.recipes.config import Distributed, Training
from fewstep.system.launch import local_number
from fewstep.training.layout import is_sharded
from fewstep.training.offload import HOST, check_offload

DeviceName = Literal["auto", "cpu", "cuda"]


def resolve_device(name: DeviceName) -> torch.device:
    """The CPU, or this process's GPU: number ``LOCAL_RANK``, which torchrun sets, and 0 without it.

    ``auto`` is a GPU where there is one.

    Raises ``UserError`` for ``cuda`` where there is no GPU, and for more processes on a machine
    than it has GPUs.
    """
    cards = 0 if name == "cpu" else torch.cuda.device_count()
    if cards == 0:
        if name == "cuda":
            raise UserError(
                "'training.device: cuda' needs a GPU that torch can use, and finds none on this machine; "
                "set it to 'auto' or 'cpu', or install torch for your GPU."
            )
        return torch.device("cpu")
    card = local_number()
    if card >= cards:
        raise UserError(
            f"this is process {card + 1} of this machine, which has {cards} GPU(s): start one process a GPU "
            f"(--nproc-per-node {cards}), or set 'training.device: cpu'."
        )
    return torch.device("cuda", card)


def building_device(training: Training, spread: Distributed, device: torch.device) -> torch.device:
    """Where the networks of a run that works on ``device`` are built: there, or on the CPU where
    they will be sharded, since no GPU need hold one whole, or will wait for their turn, since none
    need hold all.

    Raises ``UserError`` where they cannot wait.
    """
    if training.offload:
        check_offload(spread.mode, device)
        return HOST
    return HOST if is_sharded(spread.mode) else device
