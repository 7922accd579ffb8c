"""What a network takes, without running it: on the meta device shapes are computed and numbers are
not, so that a network of any size is measured in a second and no memory.

- Parameters and their bytes.
- What a forward pass keeps for the backward pass, for one sample: the distinct storages that
  autograd saves, the weights left out. The difference of two batch sizes, so that what does not
  grow with the batch cancels.
- Floating-point operations of a forward pass, as torch counts them: two for each multiplication and
  addition of a matrix product or convolution, nothing for what is done element by element.

The first two are exact (a test compares them with a real pass); elementwise operations are a few
per cent of the third.

Besides: what a run's state takes (``state_bytes``), weights of all networks, gradients, optimizers
and averages, on top of which activations come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fewstep.networks.adapters import bases_of
from fewstep.training.phase import Stage, named_networks


@dataclass(frozen=True)
class Footprint:
    """``parameters``: how many, ``trained`` of which want a gradient; ``weights``: bytes with the
    buffers; ``kept``: bytes a sample that a forward keeps for the backward; ``operations``: of a
    forward of one sample; ``largest``: bytes of the largest block (a child that is used whole: an
    entry of a list or dictionary of blocks, or a layer beside them); ``inside``: the most that a
    single block keeps, bytes a sample, which is what recomputation of one block at a time needs
    besides the blocks' inputs.
    """

    parameters: int
    trained: int
    weights: int
    kept: int
    operations: int
    largest: int
    inside: int


class KeptBytes:
    """Bytes that autograd keeps alive while it is open: ``now``, and at the ``peak``.

    Storages count once; those of ``weights`` not at all.
    """

    def __init__(self, *weights: nn.Module):
        self.now = 0
        self.peak = 0
        self._weights = {_storage(value) for module in weights for value in _with_base(module)}
        self._counts: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._pack, _Held.unpack)

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, value: Tensor) -> _Held:
        # Without its tangent, which would hold the graph that holds it.
        held = _Held(self, value.detach())
        if held.storage not in self._weights:
            self._counts[held.storage] = self._counts.get(held.storage, 0) + 1
            if self._counts[held.storage] == 1:
                self.now += value.untyped_storage().nbytes()
                self.peak = max(self.peak, self.now)
        return held

    def release(self, storage: int, size: int) -> None:
        """Called when autograd lets go of a tensor that it had saved."""
        if storage in self._counts:
            self._counts[storage] -= 1
            if not self._counts[storage]:
                del self._counts[storage]
                self.now -= size


class _Held:
    """A saved tensor, which tells when it is let go of."""

    def __init__(self, by: KeptBytes, value: Tensor):
        self.by = by
        self.value = value
        self.storage = _storage(value)

    def unpack(self) -> Tensor:
        return self.value

    def __del__(self) -> None:
        self.by.release(self.storage, self.value.untyped_storage().nbytes())


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _of_attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *others: object, **options: object) -> int:
    """Operations of attention among queries, keys and values of these shapes."""
    return int(sdpa_flop_count(q, k, v))


# What ``attention`` is on the meta device: torch counts the kernels of GPUs only.
_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _of_attention}


def operations_counted() -> FlopCounterMode:
    """A context that counts the operations of what is run in it, on the meta device as well."""
    return FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)


def measure_footprint(network: nn.Module, forward: Callable[[int], Tensor]) -> Footprint:
    """The footprint of a network on the meta device; ``forward(rows)`` runs it on so many samples
    there and returns what it emits.
    """
    kept, inside = zip(*(_kept(network, forward, rows) for rows in (1, 2)), strict=True)
    with operations_counted() as counter, torch.no_grad():
        forward(1)
    every = [parameter for part in (network, *bases_of(network)) for parameter in part.parameters()]
    sizes = [parameter.numel() for parameter in every]
    trained = [parameter.numel() for parameter in every if parameter.requires_grad]
    return Footprint(
        sum(sizes),
        sum(trained),
        bytes_of(network) + sum(map(bytes_of, bases_of(network))),
        kept[1] - kept[0],
        int(counter.get_total_flops()),
        max(map(bytes_of, _blocks(network)), default=0),
        inside[1] - inside[0],
    )


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each once."""
    return sum(value.numel() * value.element_size() for value in [*module.parameters(), *module.buffers()])


def _with_base(module: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers of a module, and of what its adapters stand on."""
    for part in (module, *bases_of(module)):
        yield from _tensors(part)


def _kept(network: nn.Module, forward: Callable[[int], Tensor], rows: int) -> tuple[int, int]:
    """Bytes that a forward keeps, and the most that one block does."""
    begun: list[int] = []
    most = 0

    def before(*_: object) -> None:
        begun.append(kept.now)

    def after(*_: object) -> None:
        nonlocal most
        most = max(most, kept.now - begun.pop())

    hooks = [
        hook
        for block in _blocks(network)
        for hook in (block.register_forward_pre_hook(before), block.register_forward_hook(after))
    ]
    with KeptBytes(network) as kept, torch.enable_grad():
        # Held until its size is read.
        emitted = forward(rows)
        now = kept.now
    for hook in hooks:
        hook.remove()
    del emitted
    return now, most


def _blocks(network: nn.Module) -> list[nn.Module]:
    """What is used whole: children, and the entries of those that are lists or dictionaries; a
    wrapper's are those of what it wraps, an adapter's those of its base.
    """
    children = [child for part in (bases_of(network) or [network]) for child in part.children()]
    while len(children) == 1 and list(children[0].children()):
        children = list(children[0].children())
    found: list[nn.Module] = []
    for child in children:
        found += child.children() if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else [child]
    return found


def state_bytes(stages: Sequence[Stage], *frozen: nn.Module) -> int:
    """The bytes that the largest stage holds: every network that any stage writes and the
    ``frozen`` ones once, and for what the stage trains a gradient and its optimizer's moments.
    """
    weights = _bytes(
        {id(p): p for network in [*named_networks(stages).values(), *frozen] for p in _tensors(network)}.values()
    )
    return weights + max(_bytes_to_train(stage) for stage in stages)


def _bytes_to_train(stage: Stage) -> int:
    gradients = {id(p): p for phase in stage.phases for p in phase.trained.parameters()}
    return _bytes(gradients.values()) + moments_of(stage)


def moments_of(stage: Stage) -> int:
    """Bytes of the moments of a stage's optimizers."""
    return sum(phase.optimizer.moment_bytes(phase.trained.parameters()) for phase in stage.phases)


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
