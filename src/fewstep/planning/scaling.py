r"""A distillation on many GPUs, on paper: which way to lay it out fits, what a step takes, what is
hidden and what is lost to failures.

A run is what ``plan`` finds on the meta device. Of its network evaluations a step those of the
trained passes (a forward and a backward, three each) are known from its phases; the rest are
forward passes without a gradient: the teacher's, the fake score's, the student's of a rollout. All
networks are taken to be as large as the teacher, and each pass runs through the teacher's own
blocks (``timeline``), with the exchanges of its layout:

- ``ddp``: everything on every GPU; gradients (float32) are reduced while the backward pass goes on;
- ``fsdp``: everything sharded over all GPUs; weights (bfloat16) are gathered for each pass, twice
  where there is a backward pass, and gradients scattered; with ``replicas`` k the same in k groups
  of GPUs, and the shards of the gradients reduced between them (HSDP).

Then optimizers and averages, which are bound by the memory's rate, and small exchanges once a phase
(sums for the log, the gradients' norm), which grow with the logarithm of the GPUs.

Sharding with accumulated gradients holds those of one network whole, since they are scattered only
after the last micro-batch.

This is a model. It leaves out: kernels that are slower on few samples, reading of data, stragglers,
and what a network of other jobs does to one's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fewstep.condition import Condition
from fewstep.denoisers import NetworkDenoiser
from fewstep.errors import UserError
from fewstep.planning.cluster import Cluster
from fewstep.planning.footprint import operations_counted
from fewstep.planning.gpu_settings import FRAGMENTATION, WORKSPACE
from fewstep.planning.plan import plan_on_gpus
from fewstep.planning.sketch import sketch
from fewstep.planning.timeline import Stretch, pass_through, played
from fewstep.recipes import DistillRecipe, config
from fewstep.training.layout import blocks, units

WEIGHT, GRADIENT = 2, 4
"""Bytes of a number in an exchange: gathered in bfloat16, reduced in float32."""
STEPPED = 28
"""Bytes that Adam moves for a weight: it reads weight, gradient and two moments, and writes all but
the gradient.
"""
AVERAGED = 12
"""Bytes that an average moves for a weight."""


@dataclass(frozen=True)
class Block:
    """A part of a network that is gathered as a whole: its ``parameters``, and the ``operations``
    of its forward pass of one sample.
    """

    parameters: int
    operations: int


@dataclass(frozen=True)
class Load:
    """What a run asks of GPUs.

    ``trained`` and ``untrained``: passes a step, each through ``blocks``; ``networks``: trained
    ones, each with an optimizer. Bytes: ``state`` of everything, ``largest`` of the largest block,
    ``weights`` of one network, ``activations`` a sample by whether they are computed again,
    ``checkpoint``.
    """

    blocks: tuple[Block, ...]
    trained: float
    untrained: float
    networks: int
    state: int
    largest: int
    weights: int
    activations: dict[bool, float]
    checkpoint: int

    @property
    def parameters(self) -> int:
        """Of one network."""
        return sum(block.parameters for block in self.blocks)

    @property
    def operations(self) -> int:
        """Of a forward pass of one sample."""
        return sum(block.operations for block in self.blocks)


@dataclass(frozen=True)
class ClusterLayout:
    """``mode`` and ``replicas`` as in a recipe, with ``batch`` samples a GPU and step in
    ``accumulate`` micro-batches; ``recompute``: activations are computed again.

    Raises ``UserError`` for another mode, copies of what is not sharded, and a batch that
    micro-batches do not divide.
    """

    mode: str
    batch: int
    accumulate: int = 1
    recompute: bool = True
    replicas: int = 1

    def __post_init__(self) -> None:
        if (
            self.mode not in ("ddp", "fsdp")
            or min(self.batch, self.accumulate, self.replicas) < 1
            or (self.mode == "ddp" and self.replicas > 1)
        ):
            raise UserError(
                "a layout is 'ddp', or 'fsdp' with replicas, of at least one sample and micro-batch; got "
                f"'{self.mode}', {self.replicas}, {self.batch} and {self.accumulate}."
            )
        if self.batch % self.accumulate:
            raise UserError(
                f"{self.batch} samples a GPU cannot be taken in {self.accumulate} micro-batches; use a divisor."
            )

    def shards(self, cluster: Cluster) -> int:
        """Over how many GPUs a copy lies.

        Raises ``UserError`` when the copies do not divide the GPUs.
        """
        if cluster.gpus % self.replicas:
            raise UserError(f"{self.replicas} replicas do not divide {cluster.gpus} GPUs.")
        return 1 if self.mode == "ddp" else cluster.gpus // self.replicas


@dataclass(frozen=True)
class Estimate:
    """Of one layout on one cluster: ``memory`` bytes a GPU and whether it ``fits``; ``seconds`` a
    step, of which ``computing`` and ``exchanging``, which overlap; ``images`` a second;
    ``efficiency``: of the images a second of as many GPUs that do nothing but the networks' passes,
    and none of them again; ``save`` seconds a checkpoint, the best ``interval`` between two, and
    the share ``lost`` to both and to failures.
    """

    memory: int
    fits: bool
    seconds: float
    computing: float
    exchanging: float
    images: float
    efficiency: float
    save: float
    interval: float
    lost: float


def load_of(recipe: DistillRecipe, name: str) -> Load:
    """What a recipe asks for, in bf16, its step being the mean over its stages.

    Raises ``UserError`` as ``plan_on_gpus`` does.
    """
    # In one portion and on one device: a layout has its own.
    alone = {"accumulate": 1, "placement": config.Placement()}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=alone)})
    found = plan_on_gpus(recipe, name, 1)
    context, built = sketch(recipe, Path("plan"))
    steps = sum(found.steps.values())
    trained = (
        sum(found.steps[stage.name] * sum(1 / phase.every for phase in stage.phases) for stage in built.stages) / steps
    )
    evaluations = found.evaluations / (steps * found.batch)
    by_way = {(setting.precision, setting.recompute): setting for setting in found.settings if not setting.offload}
    return Load(
        blocks=blocks_in_order(context.original),
        trained=trained,
        untrained=max(0.0, evaluations - 3 * trained),
        networks=max(len(stage.phases) for stage in built.stages),
        state=by_way["bf16", False].state,
        largest=found.largest,
        weights=found.parts[0].bytes,
        # A network of few blocks has nothing to compute again.
        activations={
            again: by_way["bf16", again and ("bf16", True) in by_way].activations / found.batch
            for again in (False, True)
        },
        checkpoint=found.checkpoint_bytes,
    )


def blocks_in_order(denoiser: NetworkDenoiser) -> tuple[Block, ...]:
    """The blocks of a denoiser on the meta device in the order in which they run, and as a last one
    what is beside them.
    """
    (unit,) = units([denoiser])
    found: list[Block] = []
    begun: list[int] = []

    def before(*_: object) -> None:
        begun.append(counter.get_total_flops())

    def after(block: nn.Module, *_: object) -> None:
        found.append(Block(_size(block), counter.get_total_flops() - begun.pop()))

    hooks = [
        hook
        for block in blocks(unit)
        for hook in (block.register_forward_pre_hook(before), block.register_forward_hook(after))
    ]
    with torch.device("meta"):
        # Class probabilities: on the meta device ids have no values to be checked.
        x, labels = torch.zeros(1, *denoiser.shape), torch.zeros(1, denoiser.classes) if denoiser.classes else None
    with operations_counted() as counter, torch.no_grad():
        denoiser(x, torch.full((1,), denoiser.schedule.t_max, dtype=torch.float64), Condition(labels=labels))
    for hook in hooks:
        hook.remove()
    rest = Block(
        _size(unit) - sum(block.parameters for block in found),
        counter.get_total_flops() - sum(block.operations for block in found),
    )
    return (*found, rest)


def estimate(load: Load, cluster: Cluster, layout: ClusterLayout) -> Estimate:
    """The model's figures. A cluster of one GPU exchanges nothing, whatever the layout."""
    memory = memory_of(load, cluster, layout)
    seconds, computing, exchanging = _step(load, cluster, layout)
    needed = layout.batch * load.operations * (3 * load.trained + load.untrained) / cluster.operations
    save = cluster.saved(load.checkpoint, layout.shards(cluster))
    interval = cluster.interval(save)
    return Estimate(
        memory=memory,
        fits=memory <= cluster.memory,
        seconds=seconds,
        computing=computing,
        exchanging=exchanging,
        images=cluster.gpus * layout.batch / seconds,
        efficiency=needed / seconds,
        save=save,
        interval=interval,
        lost=cluster.lost(save, interval),
    )


def memory_of(load: Load, cluster: Cluster, layout: ClusterLayout) -> int:
    """Bytes a GPU; as ``plan`` has them, and accumulated gradients."""
    shards = layout.shards(cluster)
    state = load.state if shards == 1 else math.ceil(load.state / shards) + 2 * load.largest
    whole = load.weights if shards > 1 and layout.accumulate > 1 else 0
    rows = layout.batch // layout.accumulate
    return int(FRAGMENTATION * (state + whole + load.activations[layout.recompute] * rows)) + WORKSPACE


def _stretches(found: Sequence[Block], cluster: Cluster, layout: ClusterLayout, last: bool) -> list[Stretch]:
    """The seconds of each block with a micro-batch; gradients are exchanged with the ``last`` one
    only.
    """
    each = layout.batch // layout.accumulate / cluster.operations
    backward = 3 if layout.recompute else 2
    shards = layout.shards(cluster)

    def stretch(block: Block) -> Stretch:
        gather = cluster.gathered(WEIGHT * block.parameters, shards) if shards > 1 else 0.0
        exchange = _exchanged(cluster, layout, GRADIENT * block.parameters) if last and cluster.gpus > 1 else 0.0
        return Stretch(each * block.operations, backward * each * block.operations, gather, exchange)

    return [stretch(block) for block in found]


def _step(load: Load, cluster: Cluster, layout: ClusterLayout) -> tuple[float, float, float]:
    """Seconds of a step, of its computing and of its exchanges."""
    seconds = computing = exchanging = 0.0
    for last, count in ((False, layout.accumulate - 1), (True, 1)):
        parts = _stretches(load.blocks, cluster, layout, last)
        for trained, passes in ((True, load.trained), (False, load.untrained)):
            tasks = pass_through(parts, trained)
            seconds += count * passes * played(tasks)
            computing += count * passes * sum(task.seconds for task in tasks if task.queue == "compute")
            exchanging += count * passes * sum(task.seconds for task in tasks if task.queue == "exchange")
    stepping = load.parameters / layout.shards(cluster) * (load.trained * STEPPED + AVERAGED) / cluster.memory_rate
    small = 2 * load.networks * math.ceil(math.log2(cluster.gpus)) * cluster.hop_between
    return seconds + stepping + small, computing + stepping, exchanging + small


def _exchanged(cluster: Cluster, layout: ClusterLayout, size: float) -> float:
    """Seconds until gradients of ``size`` bytes are where the optimizers want them."""
    if layout.mode == "ddp":
        return cluster.reduced(size)
    return cluster.gathered(size, layout.shards(cluster)) + cluster.reduced_across(size, layout.replicas)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
