"""What a step of a recipe costs in network evaluations, and how many forward passes it keeps for
the backward at once: counted on the recipe's twin, which does all that the recipe does.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.cost import metered
from fewstep.denoisers import Denoiser, Generator, NetworkDenoiser
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork
from fewstep.networks.adapters import apart, bases_of
from fewstep.planning.footprint import Footprint, KeptBytes, measure_footprint
from fewstep.planning.twin import twin
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.reading.source import validate
from fewstep.states import Prior
from fewstep.training import Adam, Adam8bit, Stage, Trainer
from fewstep.training.reporting.log import read_log
from fewstep.values import kind_of

STEPS, BATCH = 24, 4
_REST = 1e-12


@dataclass(frozen=True)
class Rehearsal:
    """``step``: network evaluations a sample of the batch in a step of each stage, ``begin``: those
    before its first step, a sample that its actions carry. ``graphs``: the most that autograd keeps
    at once, in forward passes of the network that keeps the most; ``graphs_bf16`` the same under
    bf16, whose activations are shorter.
    """

    step: dict[str, float]
    begin: dict[str, float]
    graphs: float
    graphs_bf16: float


def rehearse(recipe: DistillRecipe) -> Rehearsal:
    """Runs the twin for some steps of each stage; takes seconds.

    Raises ``UserError`` where the twin cannot be run.
    """
    try:
        step, begin, graphs = _counted(_resting(twin(recipe, STEPS, BATCH)))
        # The peak is the same in every step of a stage.
        once = _resting(twin(recipe, 1, BATCH))
        _, _, shorter = _counted(
            once.model_copy(update={"training": once.training.model_copy(update={"precision": "bf16"})})
        )
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # What torch says of a size goes on with its own stack.
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(
            "the plan's rehearsal, some steps of the recipe with tiny networks on made-up images, failed "
            f"({reason}); a run of these parts may fail likewise: change what the message names."
        ) from error
    return Rehearsal(step, begin, graphs, shorter)


def _resting(recipe: DistillRecipe) -> DistillRecipe:
    """The recipe with rates at which nothing moves: a rehearsal counts, and tiny networks at a
    large network's rates may diverge. Adam of 8 bits is Adam, so that no library is needed. Nothing
    is computed again, since what that saves is counted on the networks themselves.
    """
    short, long = kind_of(Adam8bit), kind_of(Adam)

    def rested(section: Any) -> Any:
        if not isinstance(section, dict):
            return section
        at_rest = {key: _REST if key == "lr" else rested(value) for key, value in section.items()}
        return {**at_rest, "kind": long} if section.get("kind") == short else at_rest

    values = recipe.model_dump(mode="json")
    rested_parts = {name: rested(values[name]) for name in ("method", "target")}
    training = {**values["training"], "recompute": False}
    made = validate({**values, **rested_parts, "training": training}, "the recipe's twin")
    assert isinstance(made, DistillRecipe)
    return made


def _counted(recipe: DistillRecipe) -> tuple[dict[str, float], dict[str, float], float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = build_distillation(recipe, folder)
        one = _largest_kept(parts)
        begin = _begun(parts)
        trainer = Trainer(folder / "run", parts.stages, parts.average, build_settings(recipe.training))
        with KeptBytes(
            parts.teacher,
            parts.student,
            parts.average,
            *(phase.network for stage in parts.stages for phase in stage.phases),
        ) as kept:
            trainer.fit()
        step = _by_stage(read_log(folder / "run" / "metrics.jsonl"), parts, recipe.training.batch)
    return step, begin, kept.peak / (one * recipe.training.batch)


def _begun(parts: Distillation) -> dict[str, float]:
    """Evaluations of the first actions that make samples, by stage."""
    counts = {}
    for stage in parts.stages:
        actions = [action for action in stage.begin if action.samples]
        with metered() as meter:
            for action in actions:
                action.run()
        if actions:
            counts[stage.name] = meter.evaluations / sum(action.samples for action in actions)
    return counts


def _by_stage(log: list[dict[str, Any]], parts: Distillation, batch: int) -> dict[str, float]:
    """Evaluations a step and sample of the batch, from differences within a stage; its first step
    counts what its actions did as well and is left out where there is another.
    """
    counts: dict[str, float] = {}
    for stage in parts.stages:
        places = [entry["evaluations"] for entry in log if entry.get("stage") == stage.name]
        counts[stage.name] = (
            (places[-1] - places[0]) / ((len(places) - 1) * batch) if len(places) > 1 else places[0] / batch
        )
    return counts


def _largest_kept(parts: Distillation) -> int:
    """Bytes a sample that a forward of the student keeps, or of the teacher's trained copies where
    that is more, as beside a generator.
    """
    student = footprint_of(parts.student, parts.prior).kept
    if only_adapters(parts.stages):
        return student
    teacher = footprint_of(as_trained(parts.teacher), prior_of(parts.teacher, parts.prior.conditions))
    return max(student, teacher.kept)


def only_adapters(stages: Sequence[Stage]) -> bool:
    """Whether everything that is trained is an adapter, so that no copy of the teacher's weights
    keeps what their gradients need.
    """
    return all(bases_of(phase.network) for stage in stages for phase in stage.phases)


def as_trained(teacher: NetworkDenoiser) -> NetworkDenoiser:
    """The teacher on the meta device, as its copies are trained."""
    return copy.deepcopy(teacher).to("meta").requires_grad_(True)


def prior_of(teacher: NetworkDenoiser, conditions: Conditions) -> Prior:
    """Noise at the teacher's highest level."""
    return Prior(teacher.schedule, teacher.shape, teacher.schedule.t_max, conditions=conditions)


def footprint_of(model: Denoiser | Generator, prior: Prior) -> Footprint:
    """The footprint of a model on the meta device, as it stands: what is frozen wants no gradient.

    Measured once for models that are alike.
    """
    sizes = tuple((name, tuple(value.shape), value.requires_grad) for name, value in model.named_parameters())
    recomputed = any(module.recompute for module in model.modules() if isinstance(module, DenoisingNetwork))
    key = (str(model), str(bases_of(model)), sizes, recomputed, prior.shape, prior.conditions.count)
    if key not in _measured:
        _measured[key] = _footprint(model, prior)
    return _measured[key]


_measured: dict[tuple[object, ...], Footprint] = {}


def _on_meta(model: Denoiser | Generator) -> Denoiser | Generator:
    sketch = apart(model).to("meta")
    for base in bases_of(sketch):
        base.to("meta")
    return sketch


def _footprint(model: Denoiser | Generator, prior: Prior) -> Footprint:
    sketch = model if next(model.parameters()).is_meta else _on_meta(model)

    def forward(rows: int) -> Tensor:
        with torch.device("meta"):
            x = torch.zeros(rows, *prior.shape)
            condition = replace(prior.conditions.sketch(rows), guidance=torch.zeros(rows))
        times = torch.full((rows,), prior.time, dtype=torch.float64)
        emitted: Tensor = sketch(x, times, condition)
        return emitted

    return measure_footprint(sketch, forward)
