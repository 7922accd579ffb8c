"""A recipe's parts without weights and data, and the networks among them: what can be looked at
before anything is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fewstep.data import Dataset, InMemory
from fewstep.metrics.features import fourier_features
from fewstep.networks import AdaptedNetwork, find_kind
from fewstep.planning.footprint import bytes_of
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.distillation import build_context
from fewstep.recipes.building.frozen_teachers import Teacher, sketched
from fewstep.recipes.building.placement import Places
from fewstep.recipes.kit.context import Context
from fewstep.recipes.methods import Built
from fewstep.training.phase import named_networks

ADAPTER = "lora"
"""What a plan calls a low-rank adapter, whose base is counted by itself."""


@dataclass(frozen=True)
class Part:
    """A network of the run: its ``role``, ``kind``, ``parameters`` and the bytes of its weights;
    ``device``: where it is, empty where all are on one device.
    """

    role: str
    kind: str
    parameters: int
    bytes: int
    device: str = ""


def sketch(recipe: DistillRecipe, folder: Path) -> tuple[Context, Built]:
    """The recipe's parts on the meta device, on data of the teacher's shape that is not there; what
    a run would write goes by paths in ``folder``, and nothing is written.
    """
    return sketch_around(recipe, folder, sketched(recipe))


def sketch_around(
    recipe: DistillRecipe, folder: Path, opened: Teacher, places: Places | None = None
) -> tuple[Context, Built]:
    """The same around a teacher that is ``opened`` as a sketch; ``places``: marks of the roles'
    networks, devices on which nothing is kept.
    """
    teacher = opened.denoiser
    labels = torch.zeros(2, dtype=torch.int64) if teacher.classes else None
    # Digits and points are at hand, and some methods look at them. Others have values, of which a
    # threshold takes its bound.
    blank: Dataset | None = None
    if recipe.data is not None:
        blank = (
            recipe.data.open()
            if recipe.data.at_hand
            else InMemory(torch.ones(2, *teacher.shape), labels, teacher.classes)
        )
    # Copies of the teacher are where it is; what is made besides (heads, a generator) is small, or
    # at least no larger than the run's.
    features, device = fourier_features(math.prod(teacher.shape), 1), torch.device("meta")
    context = build_context(recipe, folder, replace(opened, data=blank), features, device, places)
    built = recipe.method.build(context)
    for stage in built.stages:
        for phase in stage.phases:
            phase.trained.requires_grad_(True)
    return context, built


def parts_of(context: Context, built: Built, slot: int) -> list[Part]:
    """The networks of a run: the teacher, what is trained and averaged, and the ``slot`` of a
    backtracked target, in bytes, 0 for none.
    """
    parts = [part_of(role, network, bytes_of(network)) for role, network in networks_of(context, built).items()]
    return parts if built.path is None else [*parts, part_of("target's slot", built.path.carrier, slot)]


def networks_of(context: Context, built: Built) -> dict[str, nn.Module]:
    """The teacher and what is trained and averaged, by role."""
    fake = None if built.fake is None else built.fake.fake
    networks = {
        "fake score" if network is fake else _role(name): network
        for name, network in named_networks(built.stages).items()
    }
    return {"teacher": context.original, **networks}


def _role(name: str) -> str:
    """What a network is, from the name that a checkpoint gives it: that of a phase, or of a phase's
    average.
    """
    stage, _, rest = name.partition(".")
    phase, _, average = rest.partition(".")
    return f"average of {phase} ({stage})" if average.startswith("average") else name


def part_of(role: str, network: nn.Module, size: int) -> Part:
    """A network in its ``role``, of ``size`` bytes."""
    kinds = [ADAPTER if isinstance(module, AdaptedNetwork) else find_kind(module) for module in network.modules()]
    return Part(
        role,
        next((kind for kind in kinds if kind is not None), type(network).__name__),
        sum(p.numel() for p in network.parameters()),
        size,
    )
