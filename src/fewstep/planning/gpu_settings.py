r"""Ways to run on so many GPUs, and what each takes in memory and time.

With B samples a step on G gpus,

    memory a GPU = weights + gradients + moments + activations + workspace,

- *weights* of all networks that are alive at once: teacher, student, fake score, critic, averages,
  and the slot of a backtracked target; in float32, under bf16 as well, since autocast shortens
  activations only;
- *gradients* and the optimizers' *moments* of what the largest stage trains;
- *activations*: what autograd keeps at the peak of a step. A rehearsal of the recipe's twin says
  how many of the student's forward passes that is; what one keeps is counted on the meta device;
- *workspace*: 1 GiB for the context, the libraries and their scratch memory, and 10 % of the rest
  for fragmentation. An assumption, the only one about memory.

Data parallel (DDP) divides the batch and with it the activations; sharding (FSDP2) divides weights,
gradients and moments too, but for one block of a network at a time, and the next one that is
fetched ahead. With ``training.accumulate`` m the activations are those of a portion, B / (G m)
samples; sharded, the gradients of the network being trained then stay whole until the last portion.
Placed, a GPU holds the networks of its roles (``by_device``), and the one that holds most decides.
Activations are counted whole on it, since it may be the one that keeps them; the time counts no
overlap. Offloaded, on one GPU, the state is the most that a phase, an action or a measurement uses
(``waiting``); what is carried to the host and back is not in the time.
With recomputation a forward keeps the inputs of its blocks, and of one block what is inside; it
costs a forward pass more for each that is kept.

Time: network evaluations times the operations of a forward of the teacher, over the gpus' rate
times the share of it that is reached. An evaluation of a generator counts as the teacher's, which
is more than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fewstep.planning.rehearsal import Rehearsal
from fewstep.recipes import config

GIB = 2**30
WORKSPACE = GIB
FRAGMENTATION = 1.1
MODES = ("one GPU", "ddp", "fsdp2")
PLACED = "placed"
"""The mode of a run whose roles have devices of their own."""


@dataclass(frozen=True)
class Setting:
    """A way to run: ``mode`` on ``gpus`` with ``batch`` samples a GPU, in as many portions as the
    recipe says (``portions``); what it takes in bytes a GPU, ``each`` for a sample, and the largest
    batch a GPU that fits, None without a bound on the memory. ``offload``: whether networks that
    are not used wait in the host's memory.
    """

    mode: str
    gpus: int
    precision: str
    recompute: bool
    offload: bool
    batch: int
    state: int
    activations: int
    memory: int
    largest_batch: int | None
    hours: float
    each: float
    portions: int

    def most(self, memory: int) -> int:
        """The largest batch a GPU that fits into ``memory`` bytes; 0 for none."""
        rows = int(((memory - WORKSPACE) / FRAGMENTATION - self.state) / self.each)
        return self.portions * max(0, rows)

    def fits(self, memory: int | None) -> bool:
        """Whether it fits into ``memory`` bytes a GPU."""
        return memory is None or self.memory <= memory


@dataclass(frozen=True)
class Demands:
    """What the settings are computed from: bytes of the whole state, of the most of it that is used
    at a time (``used``), of the largest block, of the largest gradient, of what a forward keeps (by
    whether it is computed again); evaluations and their operations.
    """

    state: int
    used: int
    gradient: int
    largest: int
    kept: dict[bool, int]
    rehearsal: Rehearsal
    evaluations: float
    operations: int


@dataclass(frozen=True)
class PlacedGpus:
    """Roles on ``gpus`` gpus, of which the one that holds most has ``state`` bytes."""

    gpus: int
    state: int


def ways_to_run(
    training: config.Training,
    measured: Demands,
    gpus: int,
    memory: int | None,
    rate: float,
    placed: PlacedGpus | None = None,
) -> list[Setting]:
    """The ways to run on 1, 2, 4, ... up to ``gpus`` gpus of which the batch can be shared, of
    ``memory`` bytes and ``rate`` operations a second in bf16 each; as it is ``placed``, where roles
    have devices of their own.
    """
    if placed is not None:
        measured = replace(measured, state=placed.state)
        return _in_each_type(training, measured, PLACED, placed.gpus, False, memory, rate)
    counts = sorted({1, gpus, *(2**power for power in range(1, gpus.bit_length()) if 2**power <= gpus)})
    settings = []
    for count in counts:
        if training.batch % (count * training.accumulate):
            continue
        alone = [False, True] if measured.used < measured.state else [False]
        for mode, offload in (
            [(MODES[0], each) for each in alone] if count == 1 else [(each, False) for each in MODES[1:]]
        ):
            settings += _in_each_type(training, measured, mode, count, offload, memory, rate)
    return settings


def _in_each_type(
    training: config.Training, measured: Demands, mode: str, gpus: int, offload: bool, memory: int | None, rate: float
) -> list[Setting]:
    """A mode in float32 and in bf16, and with recomputation where that saves something."""
    return [
        _setting(training, measured, _Way(mode, gpus, precision, on, offload), memory, rate)
        for precision in ("fp32", "bf16")
        for on in (False, True)
        if measured.kept[on] < measured.kept[False] or not on
    ]


@dataclass(frozen=True)
class _Way:
    mode: str
    gpus: int
    precision: str
    recompute: bool
    offload: bool

    @property
    def shares(self) -> int:
        """Among how many the batch is divided."""
        return 1 if self.mode == PLACED else self.gpus


def _setting(training: config.Training, measured: Demands, how: _Way, memory: int | None, rate: float) -> Setting:
    gpus, precision, on = how.gpus, how.precision, how.recompute
    rehearsal = measured.rehearsal
    graphs = rehearsal.graphs_bf16 if precision == "bf16" else rehearsal.graphs
    each = graphs * measured.kept[on]
    portions, batch = training.accumulate, training.batch // how.shares
    state = measured.used if how.offload else measured.state
    if how.mode == "fsdp2":
        state = math.ceil(state / gpus) + 2 * measured.largest + (measured.gradient if portions > 1 else 0)

    rows = batch // portions
    # Of the three parts of a trained evaluation (forward, and a backward of two), recomputing makes
    # four; most evaluations are trained ones.
    seconds = (
        measured.evaluations
        * measured.operations
        * (4 / 3 if on else 1)
        / (how.shares * rate * (1 if precision == "bf16" else 0.5))
    )
    made = Setting(
        how.mode,
        gpus,
        precision,
        on,
        how.offload,
        batch,
        state,
        int(each * rows),
        int(FRAGMENTATION * (state + each * rows)) + WORKSPACE,
        None,
        seconds / 3600,
        each,
        portions,
    )
    return made if memory is None else replace(made, largest_batch=made.most(memory))
