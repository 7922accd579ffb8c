r"""How a run's networks lie over its processes.

The engines are torch's; here is only what is laid out, and when.

Each process computes the mean loss of its rows of the global batch, so that the mean of the
gradients over processes is the gradient of the global mean:

- ``Alone``: one process.
- ``Replicated``: every process holds everything, and ``DistributedDataParallel`` averages gradients
  while the backward pass goes on. What it wraps is not a network but a phase's loss
  (``PhaseLoss``): a phase may run its network several times, through other methods than
  ``forward``, and differentiate within (R1, balanced losses); all that is then one forward call to
  DDP, and one backward.
- ``Sharded``: FSDP2 (``fully_shard``). Every *unit*, a raw network with its own parameters, is
  sharded over the processes by its blocks, frozen ones as well, which have neither gradients nor
  optimizers. Wrappers (denoisers, averages) are not units: one network may be in several. An
  adapter and the base that it shares with others are two units. With ``replicas`` k, k groups of
  processes hold a copy each (HSDP).

A unit is sharded in place, so that objectives, targets and averages, which hold references, need
not know. Where a module has entries besides ``forward`` they are registered. After a forward pass
every unit is resharded, the outermost too: optimizers, averages and checkpoints see shards at any
time.

What is to be sharded over GPUs is built on the CPU, since a GPU need not hold it whole;
``fully_shard`` moves one block after another, and ``lay_out`` the buffers beside them.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import distributed as dist
from torch import nn

from fewstep.denoisers import Averaged, Denoiser, FrozenTrunk, Generator
from fewstep.errors import UserError
from fewstep.networks.adapters import bases_of
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.objectives.games.adversarial import CleanCritic
from fewstep.system import distributed
from fewstep.training.phase import Phase, PhaseLoss

# What only holds networks; each may be held by several.
_HOLDERS = (Denoiser, Generator, Averaged, FrozenTrunk, CleanCritic)


class Layout(abc.ABC):
    """See the module's docstring."""

    @abc.abstractmethod
    def lay_out(self, modules: Iterable[nn.Module]) -> None:
        """Lays out the networks in ``modules``, in place; once, before anything is loaded into them
        or trained.
        """

    @abc.abstractmethod
    def prepared(self, phase: Phase) -> nn.Module:
        """The phase's loss as a module, called with a step as ``PhaseLoss`` is; its backward leaves
        the gradients that the optimizer is to use.
        """

    def holding(self, phase: Phase) -> contextlib.AbstractContextManager[None]:
        """Around all forward and backward passes of a phase's turn."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def accumulating(self, phase: Phase, loss: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Inside, gradients are added up in the process; the next backward outside exchanges the
        sum.
        """


class Alone(Layout):
    """One process."""

    def lay_out(self, modules: Iterable[nn.Module]) -> None:
        return

    def prepared(self, phase: Phase) -> nn.Module:
        return PhaseLoss(phase)

    def accumulating(self, phase: Phase, loss: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Replicated(Layout):
    """Every process holds everything."""

    def lay_out(self, modules: Iterable[nn.Module]) -> None:
        return

    def prepared(self, phase: Phase) -> nn.Module:
        # A term may leave parameters out for a while (an adversarial term that begins later).
        return nn.parallel.DistributedDataParallel(
            PhaseLoss(phase), forward_sync_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )

    @contextlib.contextmanager
    def accumulating(self, phase: Phase, loss: nn.Module) -> Iterator[None]:
        assert isinstance(loss, nn.parallel.DistributedDataParallel)
        with loss.no_sync():
            yield


class Sharded(Layout):
    """Networks are sharded; ``replicas`` groups of processes hold a copy each.

    ``device``: "cpu" or "cuda". ``halved``: parameters are gathered in bfloat16.

    Raises ``UserError`` when the processes cannot be divided so.
    """

    def __init__(self, replicas: int = 1, device: str = "cpu", halved: bool = False):
        if replicas < 1 or distributed.size() % replicas:
            raise UserError(
                f"'distributed.replicas' is {replicas}, which does not divide the {distributed.size()} "
                "processes; use a divisor."
            )
        self.replicas, self.device, self.halved = replicas, device, halved
        self._units: list[nn.Module] = []

    def lay_out(self, modules: Iterable[nn.Module]) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        processes = distributed.size()
        shape, names = (
            ((processes,), ("shard",))
            if self.replicas == 1
            else ((self.replicas, processes // self.replicas), ("replica", "shard"))
        )
        mesh = init_device_mesh(self.device, shape, mesh_dim_names=names)
        modules = list(modules)
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.halved else None,
            reduce_dtype=torch.float32 if self.halved else None,
            cast_forward_inputs=False,
        )
        self._units = units(modules)
        _check_apart(self._units)
        for unit in self._units:
            for part in [*blocks(unit), unit]:
                fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
            for name in _entries(unit):
                register_fsdp_forward_method(unit, name)
        for buffer in (buffer for module in (*modules, *self._units) for buffer in module.buffers()):
            buffer.data = buffer.to(self.device)

    def prepared(self, phase: Phase) -> nn.Module:
        return PhaseLoss(phase)

    @contextlib.contextmanager
    def holding(self, phase: Phase) -> Iterator[None]:
        """Where a loss is made of gradients, weights that were gathered stay so until the turn is
        over: the second backward pass begins with them, before anything gathers them again.
        """
        from torch.distributed.fsdp import FSDPModule

        if not any(term.objective.differentiates_twice for term in phase.terms):
            yield
            return
        parts = [part for unit in self._units for part in unit.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.set_reshard_after_backward(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.set_reshard_after_backward(True, recurse=False)
                part.reshard()

    @contextlib.contextmanager
    def accumulating(self, phase: Phase, loss: nn.Module) -> Iterator[None]:
        from torch.distributed.fsdp import FSDPModule

        parts = [unit for unit in units([phase.network, *phase.owned]) if isinstance(unit, FSDPModule)]
        for part in parts:
            part.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for part in parts:
                part.set_requires_gradient_sync(True)


def is_sharded(mode: str) -> bool:
    """Whether this process' networks will be sharded: in a group, where ``mode`` is "fsdp"."""
    return dist.is_initialized() and mode == "fsdp"


def build_layout(mode: str, replicas: int, device: str, halved: bool) -> Layout:
    """The layout of this group of processes: ``mode`` is "ddp" or "fsdp"; a process alone is
    ``Alone``.
    """
    if is_sharded(mode):
        return Sharded(replicas, device, halved)
    return Replicated() if dist.is_initialized() else Alone()


def _check_apart(found: Sequence[nn.Module]) -> None:
    owner: dict[int, nn.Module] = {}
    for unit in found:
        for parameter in unit.parameters():
            if owner.setdefault(id(parameter), unit) is not unit:
                raise UserError(
                    "'distributed.mode: fsdp' cannot shard two networks that share weights (here a "
                    f"{type(unit).__name__}'s); use 'distributed.mode: ddp', or adapters on one base."
                )


def units(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The raw networks in modules, once each: outermost modules with parameters that are no mere
    holders of others. A part of one, named by itself, is none.
    """
    found = {id(unit): unit for unit in _networks(modules)}
    parts = {id(part) for unit in found.values() for part in unit.modules() if part is not unit}
    return [unit for identity, unit in found.items() if identity not in parts]


def _networks(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        # What roles share is a network of its own, and so are their adapters.
        yield from bases_of(module)
        if isinstance(module, FrozenTrunk):
            yield from _networks([module.denoiser])
        if isinstance(module, _HOLDERS):
            yield from _networks(module.children())
        elif any(True for _ in module.parameters()):
            yield module


def blocks(unit: nn.Module) -> list[nn.Module]:
    """The blocks of a network: the entries of its outermost lists and dictionaries of modules."""
    found: list[nn.Module] = []
    for child in unit.children():
        inner = list(child.children()) if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else []
        found += [entry for entry in inner if any(True for _ in entry.parameters())] if inner else blocks(child)
    return found


def _entries(unit: nn.Module) -> Sequence[str]:
    """The methods besides ``forward`` by which a network is called."""
    return unit.entries if isinstance(unit, DenoisingNetwork) else ()
