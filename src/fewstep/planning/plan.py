r"""Will it fit, and how long will it take? What ``fewstep plan`` does.

All networks are built on the meta device, so that a plan needs no weights, no data and no
accelerator. With B samples a step on G gpus,

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
With recomputation a forward keeps the inputs of its blocks, and of one block what is inside; it
costs a forward pass more for each that is kept.

Time: network evaluations times the operations of a forward of the teacher, over the gpus' rate
times the share of it that is reached. An evaluation of a generator counts as the teacher's, which
is more than it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.data import Dataset, InMemory
from fewstep.errors import UserError
from fewstep.metrics.features import fourier_features
from fewstep.networks import AdaptedNetwork, find_kind
from fewstep.planning.footprint import bytes_of, state_bytes
from fewstep.planning.rehearsal import Rehearsal, as_trained, footprint_of, only_adapters, prior_of, rehearse
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import build_context, check_parts, recompute
from fewstep.recipes.building.frozen_teachers import Teacher, sketched
from fewstep.recipes.kit.backtracking import open_end, walk_of
from fewstep.recipes.kit.context import Context
from fewstep.recipes.methods import Built
from fewstep.training.phase import named_networks

GIB = 2**30
WORKSPACE = GIB
FRAGMENTATION = 1.1
MODES = ("one GPU", "ddp", "fsdp2")

_ADAPTER = "lora"
"""What a plan calls a low-rank adapter, whose base is counted by itself."""


@dataclass(frozen=True)
class Part:
    """A network of the run: its ``role``, ``kind``, ``parameters`` and the bytes of its weights."""

    role: str
    kind: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Setting:
    """A way to run: ``mode`` on ``gpus`` with ``batch`` samples a GPU, in as many portions as the
    recipe says; what it takes in bytes a GPU, and the largest batch a GPU that fits, None without a
    bound on the memory.
    """

    mode: str
    gpus: int
    precision: str
    recompute: bool
    batch: int
    state: int
    activations: int
    memory: int
    largest_batch: int | None
    hours: float

    def fits(self, memory: int | None) -> bool:
        """Whether it fits into ``memory`` bytes a GPU."""
        return memory is None or self.memory <= memory


@dataclass(frozen=True)
class Plan:
    """``steps`` by stage; ``evaluations``: of the whole run; ``operations``: of one; ``kept``:
    bytes a sample that a forward keeps, of the student or of the teacher's copies, whichever is
    more; ``largest``: bytes of the largest block; ``path_bytes``: of the nodes on disk; ``notes``:
    what depends on what the run will measure; ``settings`` from the fewest GPUs on; ``cheapest``:
    the first of those that fit that takes the least GPU-hours.
    """

    recipe: str
    parts: list[Part]
    steps: dict[str, int]
    batch: int
    evaluations: float
    operations: int
    kept: int
    largest: int
    graphs: float
    path_bytes: int
    checkpoint_bytes: int
    settings: list[Setting]
    cheapest: Setting | None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    """What the settings are computed from: bytes of the whole state, of the largest block, of the
    largest gradient, of what a forward keeps (by whether it is computed again); evaluations and
    their operations.
    """

    state: int
    gradient: int
    largest: int
    kept: dict[bool, int]
    rehearsal: Rehearsal
    evaluations: float
    operations: int


def plan_on_gpus(
    recipe: DistillRecipe,
    name: str,
    gpus: int = 1,
    memory_gb: float | None = None,
    tflops: float = 312.0,
    reached: float = 0.3,
) -> Plan:
    """The plan of a recipe for up to ``gpus`` gpus of ``memory_gb`` GiB and ``tflops`` (bf16; half
    of it in float32), of which the share ``reached`` is used.

    Raises ``UserError`` for parts that do not go together, and for a teacher in a file that is not
    there.
    """
    if gpus < 1 or tflops <= 0 or not 0 < reached <= 1 or (memory_gb is not None and memory_gb <= 0):
        raise UserError(
            "plan: needs at least 1 GPU, a memory and TFLOP/s above 0 and a share reached in (0, 1], got "
            f"{gpus}, {memory_gb}, {tflops} and {reached}."
        )
    if recipe.training.batch % recipe.training.accumulate:
        raise UserError(
            f"'training.batch' is {recipe.training.batch}, which 'training.accumulate' = "
            f"{recipe.training.accumulate} equal portions cannot share; use a multiple of it."
        )
    check_parts(recipe)
    opened = sketched(recipe)
    context, built = _built_of(recipe, Path("plan"), opened)
    target, codec = recipe.target.backtracked, opened.codec
    slot = 0 if built.path is None else bytes_of(built.path.blank())
    beside = 0 if codec is None else bytes_of(codec)
    steps = _steps(recipe, built)
    open_ended = open_end(recipe.target, recipe.method.student_every, recipe.training.steps)
    measured = _measured(recipe, context, built, steps, slot + beside)
    memory = None if memory_gb is None else int(memory_gb * GIB)
    settings = _settings(recipe, measured, gpus, memory, tflops * 1e12 * reached)
    fitting = [setting for setting in settings if setting.fits(memory)]
    return Plan(
        recipe=name,
        parts=[*_parts(context, built, slot), *([] if codec is None else [_part("codec", codec, beside)])],
        steps=steps,
        batch=recipe.training.batch,
        evaluations=measured.evaluations,
        operations=measured.operations,
        kept=measured.kept[False],
        largest=measured.largest,
        graphs=measured.rehearsal.graphs,
        path_bytes=0 if target is None else (target.nodes - 1) * slot,
        checkpoint_bytes=sum(bytes_of(network) for network in named_networks(built.stages).values()) + _moments(built),
        settings=settings,
        cheapest=min(fitting, key=lambda setting: (setting.hours * setting.gpus, setting.gpus)) if fitting else None,
        notes=(*((open_ended,) if open_ended else ()), *_of_prompts(context)),
    )


def _of_prompts(context: Context) -> tuple[str, ...]:
    """What prompts take besides."""
    if not context.conditions.texts and context.conditions.sketch(1).context:
        told = context.conditions.sketch(1).context.values()
        size = sum(value.numel() * value.element_size() for value in told) / 1024
        when = "once, before the first step, when the text encoder alone is in memory"
        return (f"prompts are embedded {when}; each takes {size:,.0f} KiB in the cache",)
    return ()


def _steps(recipe: DistillRecipe, built: Built) -> dict[str, int]:
    """The steps of each stage; where it is measured when a recording ends, its most."""
    steps = {stage.name: stage.total for stage in built.stages}
    walk = walk_of(recipe.target, recipe.method.student_every)
    if walk is not None and steps["record"] is None:
        steps["record"] = walk.record[1]
        steps["distill"] = max(recipe.training.steps - walk.record[1], walk.nodes[0] + 1)
    return {name: recipe.training.steps if count is None else count for name, count in steps.items()}


def _measured(recipe: DistillRecipe, context: Context, built: Built, steps: dict[str, int], slot: int) -> _Measured:
    rehearsal, trained = rehearse(recipe), as_trained(context.original)
    beyond = prior_of(trained, context.conditions)
    teacher = footprint_of(trained, beyond)
    models = [(context.student.model, context.prior), *([] if only_adapters(built.stages) else [(trained, beyond)])]
    plain = [footprint_of(model, prior) for model, prior in models]
    recompute([model for model, _ in models], True)
    again = [footprint_of(model, prior) for model, prior in models]
    # One block at a time is computed again, and holds what is inside it.
    kept = {
        False: max(each.kept for each in plain),
        True: max(each.kept + first.inside for each, first in zip(again, plain, strict=True)),
    }
    evaluations = _evaluations(built, steps, recipe.training.batch, rehearsal)
    state, gradient = (
        state_bytes(built.stages, context.original) + slot,
        max(bytes_of(phase.trained) for stage in built.stages for phase in stage.phases),
    )
    return _Measured(
        state, gradient, max(each.largest for each in plain), kept, rehearsal, evaluations, teacher.operations
    )


def plan_recipe(
    source: str | Path,
    overrides: Sequence[str],
    gpus: int = 1,
    memory_gb: float | None = None,
    tflops: float = 312.0,
    reached: float = 0.3,
) -> Plan:
    """``plan_on_gpus`` of a shipped recipe or a YAML file.

    Raises ``UserError`` for one that pretrains.
    """
    recipe = load_recipe(source, overrides)
    if not isinstance(recipe, DistillRecipe):
        raise UserError(
            f"{source}: is a recipe for 'fewstep pretrain', which has one network; plans are for 'fewstep distill'."
        )
    return plan_on_gpus(recipe, str(source), gpus, memory_gb, tflops, reached)


def sketch(recipe: DistillRecipe, folder: Path) -> tuple[Context, Built]:
    """The recipe's parts on the meta device, on data of the teacher's shape that is not there; what
    a run would write goes by paths in ``folder``, and nothing is written.
    """
    return _built_of(recipe, folder, sketched(recipe))


def _built_of(recipe: DistillRecipe, folder: Path, opened: Teacher) -> tuple[Context, Built]:
    teacher = opened.denoiser
    labels = torch.zeros(2, dtype=torch.int64) if teacher.classes else None
    # Digits and points are at hand, and some methods look at them.
    blank: Dataset | None = None
    if recipe.data is not None:
        blank = (
            recipe.data.open()
            if recipe.data.at_hand
            else InMemory(torch.zeros(2, *teacher.shape), labels, teacher.classes)
        )
    # Copies of the teacher are where it is; what is made besides (heads, a generator) is small, or
    # at least no larger than the run's.
    context = build_context(
        recipe, folder, replace(opened, data=blank), fourier_features(math.prod(teacher.shape), 1), torch.device("meta")
    )
    built = recipe.method.build(context)
    for stage in built.stages:
        for phase in stage.phases:
            phase.trained.requires_grad_(True)
    return context, built


def _evaluations(built: Built, steps: dict[str, int], batch: int, rehearsal: Rehearsal) -> float:
    trained = sum(count * batch * rehearsal.step[name] for name, count in steps.items())
    begun = sum(
        rehearsal.begin.get(stage.name, 0.0) * sum(action.samples for action in stage.begin) for stage in built.stages
    )
    return trained + begun


def _settings(recipe: DistillRecipe, measured: _Measured, gpus: int, memory: int | None, rate: float) -> list[Setting]:
    counts = sorted({1, gpus, *(2**power for power in range(1, gpus.bit_length()) if 2**power <= gpus)})
    settings = []
    for count in counts:
        if recipe.training.batch % (count * recipe.training.accumulate):
            continue
        for mode in MODES[:1] if count == 1 else MODES[1:]:
            for precision in ("fp32", "bf16"):
                settings += [
                    _setting(recipe, measured, (mode, count, precision, on), memory, rate)
                    for on in (False, True)
                    if measured.kept[on] < measured.kept[False] or not on
                ]
    return settings


def _setting(
    recipe: DistillRecipe, measured: _Measured, how: tuple[str, int, str, bool], memory: int | None, rate: float
) -> Setting:
    mode, gpus, precision, on = how
    rehearsal = measured.rehearsal
    graphs = rehearsal.graphs_bf16 if precision == "bf16" else rehearsal.graphs
    each = graphs * measured.kept[on]
    portions, batch = recipe.training.accumulate, recipe.training.batch // gpus
    state = measured.state
    if mode == "fsdp2":
        state = math.ceil(state / gpus) + 2 * measured.largest + (measured.gradient if portions > 1 else 0)

    def total(rows: int) -> int:
        return int(FRAGMENTATION * (state + each * rows)) + WORKSPACE

    largest = None if memory is None else portions * max(0, int(((memory - WORKSPACE) / FRAGMENTATION - state) / each))
    # Of the three parts of a trained evaluation (forward, and a backward of two), recomputing makes
    # four; most evaluations are trained ones.
    seconds = (
        measured.evaluations
        * measured.operations
        * (4 / 3 if on else 1)
        / (gpus * rate * (1 if precision == "bf16" else 0.5))
    )
    return Setting(
        mode,
        gpus,
        precision,
        on,
        batch,
        state,
        int(each * (batch // portions)),
        total(batch // portions),
        largest,
        seconds / 3600,
    )


def _parts(context: Context, built: Built, slot: int) -> list[Part]:
    fake = None if built.fake is None else built.fake.fake
    networks = {
        "fake score" if network is fake else _role(name): network
        for name, network in named_networks(built.stages).items()
    }
    parts = [
        _part(role, network, bytes_of(network)) for role, network in {"teacher": context.original, **networks}.items()
    ]
    return parts if built.path is None else [*parts, _part("target's slot", built.path.carrier, slot)]


def _role(name: str) -> str:
    """What a network is, from the name that a checkpoint gives it: that of a phase, or of a phase's
    average.
    """
    stage, _, rest = name.partition(".")
    phase, _, average = rest.partition(".")
    return f"average of {phase} ({stage})" if average.startswith("average") else name


def _part(role: str, network: nn.Module, size: int) -> Part:
    kinds = [_ADAPTER if isinstance(module, AdaptedNetwork) else find_kind(module) for module in network.modules()]
    return Part(
        role,
        next((kind for kind in kinds if kind is not None), type(network).__name__),
        sum(p.numel() for p in network.parameters()),
        size,
    )


def _moments(built: Built) -> int:
    """Bytes of the optimizers' moments of the largest stage."""
    return max(
        sum(
            phase.optimizer.moments * sum(p.numel() * p.element_size() for p in phase.trained.parameters())
            for phase in stage.phases
        )
        for stage in built.stages
    )
