r"""Will it fit, and how long will it take? What ``fewstep plan`` does.

All networks are built on the meta device, so that a plan needs no weights, no data and no
accelerator. What they take is measured there, and rehearsed; ``gpu_settings`` has the formulas of
memory and time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.errors import UserError
from fewstep.planning.by_device import BEST, held_by_device
from fewstep.planning.footprint import bytes_of, moments_of, state_bytes
from fewstep.planning.gpu_settings import GIB, Demands, PlacedGpus, Setting, ways_to_run
from fewstep.planning.rehearsal import Rehearsal, as_trained, footprint_of, only_adapters, prior_of, rehearse
from fewstep.planning.sketch import Part, part_of, parts_of, sketch_around
from fewstep.planning.waiting import Waiting, where_idle_waits
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import check_parts, recompute
from fewstep.recipes.building.frozen_teachers import sketched
from fewstep.recipes.kit.backtracking import open_end, walk_of
from fewstep.recipes.kit.context import Context
from fewstep.recipes.methods import Built
from fewstep.training.phase import named_networks


@dataclass(frozen=True)
class Plan:
    """``steps`` by stage; ``evaluations``: of the whole run; ``operations``: of one; ``kept``:
    bytes a sample that a forward keeps, of the student or of the teacher's copies, whichever is
    more; ``largest``: bytes of the largest block; ``path_bytes``: of the nodes on disk; ``notes``:
    what depends on what the run will measure; ``settings`` from the fewest GPUs on; ``cheapest``:
    the first of those that fit that takes the least GPU-hours, one that offloads where no other
    fits. ``carried``: bytes between GPU and host while each phase takes a turn, where a setting
    offloads. ``by_device``: the state on each device, in bytes by its name, where
    roles have devices of their own; empty where they have not.
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
    carried: int = 0
    notes: tuple[str, ...] = ()
    by_device: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
    context, built = sketch_around(recipe, Path("plan"), opened)
    target, codec = recipe.target.backtracked, opened.codec
    slot = 0 if built.path is None else bytes_of(built.path.blank())
    beside = 0 if codec is None else bytes_of(codec)
    # A copy of the student, which checkpoints hold too.
    best = 0 if recipe.training.keep_best is None else bytes_of(context.student.model)
    steps = _steps(recipe, built)
    open_ended = open_end(recipe.target, recipe.method.student_every, recipe.training.steps)
    waiting = _waiting(recipe, context, built, codec)
    measured = _measured(recipe, context, built, steps, slot + beside + best, waiting.state)
    memory = None if memory_gb is None else int(memory_gb * GIB)
    held = held_by_device(recipe, opened, slot, beside, best)
    placed = None if held is None else PlacedGpus(held.gpus, held.largest)
    settings = ways_to_run(recipe.training, measured, gpus, memory, tflops * 1e12 * reached, placed)
    fitting = [setting for setting in settings if setting.fits(memory)]
    parts = [
        *parts_of(context, built, slot),
        *([] if codec is None else [part_of("codec", codec, beside)]),
        *([part_of(BEST, context.student.model, best)] if best else []),
    ]
    return Plan(
        recipe=name,
        parts=parts if held is None else held.told(parts),
        steps=steps,
        batch=recipe.training.batch,
        evaluations=measured.evaluations,
        operations=measured.operations,
        kept=measured.kept[False],
        largest=measured.largest,
        graphs=measured.rehearsal.graphs,
        path_bytes=0 if target is None else (target.nodes - 1) * slot,
        checkpoint_bytes=best
        + sum(bytes_of(network) for network in named_networks(built.stages).values())
        + max(map(moments_of, built.stages)),
        settings=settings,
        cheapest=min(fitting, key=_cost) if fitting else None,
        carried=waiting.carried if any(setting.offload for setting in settings) else 0,
        notes=(*((open_ended,) if open_ended else ()), *_of_prompts(context)),
        by_device={} if held is None else held.state,
    )


def _cost(setting: Setting) -> tuple[bool, float, int]:
    """What is offloaded comes last, whose hours leave out what is carried; then GPU-hours."""
    return setting.offload, setting.hours * setting.gpus, setting.gpus


def _waiting(recipe: DistillRecipe, context: Context, built: Built, codec: nn.Module | None) -> Waiting:
    """Where what is idle waits; samples are measured, and what the run's health is read of."""
    compared = [] if recipe.evaluation.reference is None else [context.original]
    sampled = [context.average, *([] if codec is None else [codec]), *compared]
    fake = [] if built.fake is None else [built.fake.fake]
    student = context.student.model
    return where_idle_waits(built.stages, student, context.average, [sampled, [student, context.original, *fake]])


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


def _measured(
    recipe: DistillRecipe, context: Context, built: Built, steps: dict[str, int], slot: int, used: int
) -> Demands:
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
    return Demands(
        state, used, gradient, max(each.largest for each in plain), kept, rehearsal, evaluations, teacher.operations
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


def _evaluations(built: Built, steps: dict[str, int], batch: int, rehearsal: Rehearsal) -> float:
    trained = sum(count * batch * rehearsal.step[name] for name, count in steps.items())
    begun = sum(
        rehearsal.begin.get(stage.name, 0.0) * sum(action.samples for action in stage.begin) for stage in built.stages
    )
    return trained + begun
