"""What a run's state takes: weights of all networks, gradients, optimizers and averages, in bytes.

Activations come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from fewstep.training.phase import Stage, named_networks


def state_bytes(stages: Sequence[Stage], *frozen: nn.Module) -> int:
    """The bytes that the largest stage holds: every network that any stage writes and the
    ``frozen`` ones once, and for what the stage trains a gradient and its optimizer's moments.
    """
    weights = _bytes(
        {id(p): p for network in [*named_networks(stages).values(), *frozen] for p in _tensors(network)}.values()
    )
    return weights + max(_bytes_to_train(stage) for stage in stages)


def _bytes_to_train(stage: Stage) -> int:
    copies = {id(p): (1 + phase.optimizer.moments, p) for phase in stage.phases for p in phase.trained.parameters()}
    return sum(count * _bytes([parameter]) for count, parameter in copies.values())


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
