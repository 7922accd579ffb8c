"""An optimizer's moments as a checkpoint holds them, and the way back.

A checkpoint holds flat named tensors alone. What a library's optimizer keeps in mappings of its own
has their names in its name, after a slash; a whole number, such as a count of steps, is an int64
without dimensions, which no optimizer keeps as a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.system import distributed
from fewstep.training.saving.checkpoint import Checkpoint


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as flat named tensors."""
    return dict(_flat(optimizer.state_dict()["state"], prefix))


def _flat(state: Mapping[Any, Any], place: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        name = f"{place}/{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, torch.tensor(value) if isinstance(value, int) else value


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, checkpoint: Checkpoint) -> None:
    """The inverse of ``optimizer_tensors``; what is shaped like its parameter is laid out like
    it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in checkpoint.read(f"{prefix}/", _MomentsLike(parameters)).items():
        index, *folders, key = name.split("/")
        parameter, entry = parameters[int(index)], state.setdefault(int(index), {})
        for folder in folders:
            entry = entry.setdefault(folder, {})
        entry[key] = _kept(value, parameter)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _kept(value: Tensor, parameter: Tensor) -> Tensor | int:
    """An entry as the optimizer keeps it."""
    if value.ndim == 0 and value.dtype == torch.int64:
        return int(value)
    return distributed.like(value, parameter) if value.shape == parameter.shape else value


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
