"""What a run holds at a time where networks that are not used wait in the host's memory
(``training.offload``): the most of its phases, first actions and measurements, and not the sum.

What each uses is found as the run finds it (``training.offload``). A target that walks a path is
asked for its slot, and once for its teacher: which of them is more is known to the run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewstep.denoisers import Averaged
from fewstep.resumable import Resumable
from fewstep.targets import Backtracked
from fewstep.training.layout import units
from fewstep.training.offload import networks_in, now_in_use
from fewstep.training.phase import Phase, Stage

Asked = Callable[[Resumable], Sequence[nn.Module]]


@dataclass(frozen=True)
class Waiting:
    """``state``: the most bytes that are held at a time. ``carried``: bytes that go to the device
    and back from it while each phase of a stage takes one turn, in the stage in which that is most.
    """

    state: int
    carried: int


def where_idle_waits(
    stages: Sequence[Stage], student: nn.Module, average: Averaged, measured: Sequence[Sequence[nn.Module]]
) -> Waiting:
    """What is held and carried by a run of these stages, in which ``average`` follows ``student``;
    ``measured``: the networks of each measurement.

    Exact but for what is around networks, such as the count of an average.
    """
    held, carried = 0, 0
    for asked in (_node_in_force, now_in_use):
        for stage in stages:
            used = [_used(asked, phase, *([average] if phase.network is student else [])) for phase in stage.phases]
            turns = [_bytes(each) + _of_training(phase) for each, phase in zip(used, stage.phases, strict=True)]
            held = max(held, _bytes(_used(asked, stage.begin)), *turns)
            carried = max(carried, 2 * _brought(stage.phases, used))
    return Waiting(max([held, *(_bytes(_used(now_in_use, parts)) for parts in measured)]), carried)


def _node_in_force(found: Resumable) -> Sequence[nn.Module]:
    return found.networks()[1:] if isinstance(found, Backtracked) else now_in_use(found)


def _used(asked: Asked, *parts: Any) -> dict[int, Tensor]:
    """The tensors of the networks that parts use, by identity."""
    found = units(networks_in(*parts, asked=asked))
    return {id(value): value for unit in found for value in (*unit.parameters(), *unit.buffers())}


def _of_training(phase: Phase) -> int:
    """Bytes of a phase's gradients and moments."""
    return _bytes({id(value): value for value in phase.trained.parameters()}) + phase.optimizer.moment_bytes(
        phase.trained.parameters()
    )


def _brought(phases: Sequence[Phase], used: Sequence[dict[int, Tensor]]) -> int:
    """Bytes that each phase finds missing after the one before it; the first comes after the
    last.
    """
    if len(phases) == 1:
        return 0
    missing = [
        {key: value for key, value in now.items() if key not in before}
        for before, now in zip([used[-1], *used[:-1]], used, strict=True)
    ]
    moments = sum(phase.optimizer.moment_bytes(phase.trained.parameters()) for phase in phases)
    return sum(map(_bytes, missing)) + moments


def _bytes(tensors: dict[int, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
