"""An optimizer's moments as a checkpoint holds them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.system import distributed
from fewstep.training.saving.checkpoint import Checkpoint


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as flat named tensors."""
    return {
        f"{prefix}/{index}/{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, checkpoint: Checkpoint) -> None:
    """The inverse of ``optimizer_tensors``; what is shaped like its parameter is laid out like
    it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.read(f"{prefix}/", _MomentsLike(parameters)).items():
        index, key = name.split("/")
        parameter = parameters[int(index)]
        state.setdefault(int(index), {})[key] = (
            distributed.like(value, parameter) if value.shape == parameter.shape else value
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class _MomentsLike(Mapping[str, Tensor]):
    """Each parameter, under any name that begins with its index."""

    def __init__(self, parameters: list[Tensor]):
        self._parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._parameters[int(name.split("/", maxsplit=1)[0])]
        except (ValueError, IndexError) as error:
            raise KeyError(name) from error

    def __iter__(self) -> Any:
        return iter(str(index) for index in range(len(self._parameters)))

    def __len__(self) -> int:
        return len(self._parameters)
