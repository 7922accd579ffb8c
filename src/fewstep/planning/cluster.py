r"""GPUs in nodes, on paper: what an exchange between them takes, what a checkpoint takes, and what
failures cost.

Exchanges of S bytes (of the whole tensor) among k GPUs that lie in n nodes, by rings as NCCL builds
them:

    all-gather, reduce-scatter:  (k - 1) / k  S / bus  +  the latencies of k - 1 hops,
    all-reduce:                2 (k - 1) / k  S / bus  +  those of a ring in the node and a tree
    between nodes,

(Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH",
2005). A ring enters and leaves a node by all of its network cards at once, so that ``bus`` is the
slower of one GPU's links inside a node and of all cards of a node.

With a checkpoint of C seconds and M seconds between failures, one every tau seconds loses about C /
tau + tau / 2 M of the time, least at tau = sqrt(2 C M) (Young 1974; Daly 2006, of which it is the
first order).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """``gpus`` in nodes of ``node``, with ``memory`` bytes each.

    Rates are those that are reached, in operations or bytes a second: ``operations`` of a GPU in
    bf16, ``memory_rate`` of its memory, ``inside`` of its links to the others of its node and
    ``between`` of its network card (each way), ``disk`` of the shared file system for all together,
    ``writer`` for one process. ``hop_inside`` and ``hop_between``: latencies, seconds.
    ``failure_hours``: GPU hours between failures that end the run; ``restart``: seconds until it
    goes on.

    The defaults are assumptions: H100 SXM (989 TFLOP/s in bf16, of which 40 % are reached; 3.35
    TB/s), NVLink and 400 Gb/s a GPU at 80 % of 450 and 50 GB/s, and the failures of Llama 3's
    training, 419 in 54 days of 16,384 GPUs ("The Llama 3 Herd of Models", 2024, Sec. 3.3.4).

    Raises ``UserError`` for GPUs that do not fill their nodes.
    """

    gpus: int
    node: int = 8
    operations: float = 0.4 * 989e12
    memory_rate: float = 0.7 * 3.35e12
    inside: float = 0.8 * 450e9
    between: float = 0.8 * 50e9
    hop_inside: float = 2e-6
    hop_between: float = 1e-5
    memory: float = 80 * 2**30
    disk: float = 20e9
    writer: float = 2e9
    failure_hours: float = 16_384 * 54 * 24 / 419
    restart: float = 300.0

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.node < 1 or (self.gpus > self.node and self.gpus % self.node):
            raise UserError(
                f"a cluster of {self.gpus} GPUs in nodes of {self.node}: needs at least one GPU, and full "
                "nodes where there are several."
            )

    @property
    def nodes(self) -> int:
        """How many nodes."""
        return max(1, self.gpus // self.node)

    @property
    def local(self) -> int:
        """GPUs of a node."""
        return min(self.node, self.gpus)

    def gathered(self, size: float, group: int) -> float:
        """Seconds of an all-gather to ``size`` bytes, or of a reduce-scatter of them, among
        ``group`` GPUs that fill as few nodes as they can.
        """
        nodes = max(1, group // self.node)
        hops = (nodes if nodes > 1 else 0) * self.hop_between + (group - nodes) * self.hop_inside
        return (group - 1) / group * size / self._bus(nodes) + hops

    def reduced(self, size: float) -> float:
        """Seconds of an all-reduce of ``size`` bytes among all."""
        hops = 2 * (self.local - 1) * self.hop_inside + 2 * math.ceil(math.log2(self.nodes)) * self.hop_between
        return 2 * (self.gpus - 1) / self.gpus * size / self._bus(self.nodes) + hops

    def reduced_across(self, size: float, copies: int) -> float:
        """Seconds of an all-reduce of ``size`` bytes that lie in shards over as many GPUs as make
        one of the ``copies``: every GPU reduces its shard with its peers in the other copies.
        """
        link, hop = (self.inside, self.hop_inside) if self.nodes == 1 else (self.between, self.hop_between)
        return 2 * (copies - 1) / copies * size / (self.gpus // copies) / link + 2 * math.ceil(math.log2(copies)) * hop

    def saved(self, size: float, writers: int) -> float:
        """Seconds to write ``size`` bytes to the shared file system from so many processes."""
        return size / min(self.disk, writers * self.writer)

    @property
    def between_failures(self) -> float:
        """Seconds between failures of any GPU."""
        return 3600 * self.failure_hours / self.gpus

    def interval(self, save: float) -> float:
        """The seconds between checkpoints of ``save`` seconds at which least is lost."""
        return math.sqrt(2 * save * self.between_failures)

    def lost(self, save: float, interval: float) -> float:
        """The share of time that is lost: saving every ``interval`` seconds, doing again what a
        failure undid, and starting again.
        """
        return save / interval + (interval / 2 + self.restart) / self.between_failures

    def _bus(self, nodes: int) -> float:
        return self.inside if nodes == 1 else min(self.inside, self.node * self.between)
