"""What a run holds on each device, where its roles have devices of their own
(``training.placement``).

The recipe is sketched once more with a mark on each network, which is the meta device by a number
for each device. A device holds the weights of the networks that are on it, and for what the stage
trains there that trains most a gradient and its optimizer's moments.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.networks.elsewhere import given_place
from fewstep.planning.sketch import Part, networks_of, sketch_around
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.frozen_teachers import Teacher
from fewstep.recipes.building.placement import meant_places
from fewstep.training.phase import Stage

_SKETCHED = "meta"
BEST = "best student"
"""The role of the copy that ``training.keep_best`` keeps, which is where the student is."""


@dataclass(frozen=True)
class HeldByDevice:
    """``state``: bytes by device, the run's own first. ``of_parts``: the device of each network of
    the run, by its role; the other parts are on the run's own.
    """

    state: dict[str, int]
    of_parts: dict[str, str]

    @property
    def gpus(self) -> int:
        """How many of the devices are GPUs; at least 1."""
        return max(1, sum(name.startswith("cuda") for name in self.state))

    @property
    def largest(self) -> int:
        """Bytes of the GPU that holds most; of all devices where none is a GPU."""
        on_gpus = [size for name, size in self.state.items() if name.startswith("cuda")]
        return max(on_gpus or self.state.values())

    def told(self, parts: Sequence[Part]) -> list[Part]:
        """The parts with the devices on which they are."""
        own = next(iter(self.state))
        return [replace(part, device=self.of_parts.get(part.role, own)) for part in parts]


def held_by_device(
    recipe: DistillRecipe, opened: Teacher, slot: int, beside: int, best: int = 0
) -> HeldByDevice | None:
    """What a run around a sketched teacher holds on each device; None where no role is placed.

    ``slot``: bytes of the target's slot, which is on the teacher's device; ``beside``: of what is
    on the run's device besides; ``best``: of the best student. The run's device is the first GPU
    unless the recipe says the CPU.
    """
    own = torch.device("cpu") if recipe.training.device == "cpu" else torch.device("cuda", 0)
    places = meant_places(recipe, own)
    if not places:
        return None
    # The run's own device has no number among the marks, as what is unmarked has none.
    others = sorted({place for place in places.values() if place != own}, key=str)
    marks = {place: torch.device(_SKETCHED, number) for number, place in enumerate(others)}
    names = {None: str(own), torch.device(_SKETCHED): str(own)} | {mark: str(place) for place, mark in marks.items()}
    marked = {role: marks.get(place, torch.device(_SKETCHED)) for role, place in places.items()}
    apart = replace(opened, denoiser=copy.deepcopy(opened.denoiser))
    context, built = sketch_around(recipe, Path("plan"), apart, marked)
    networks = networks_of(context, built)
    of_parts = {role: names[given_place(network)] for role, network in networks.items()}
    teacher, student = (names[given_place(network)] for network in (context.original, context.student.model))
    state = dict.fromkeys([str(own), *map(str, others)], 0)
    weights: dict[str, dict[int, Tensor]] = {name: {} for name in state}
    for role, network in networks.items():
        weights[of_parts[role]] |= {id(value): value for value in (*network.parameters(), *network.buffers())}
    for name, tensors in weights.items():
        trained = max(_to_train(stage, name, names) for stage in built.stages)
        besides = sum(size for where, size in ((teacher, slot), (str(own), beside), (student, best)) if where == name)
        state[name] = sum(map(_bytes, tensors.values())) + trained + besides
    return HeldByDevice(state, {**of_parts, "target's slot": teacher, BEST: student})


def _to_train(stage: Stage, device: str, names: dict[torch.device | None, str]) -> int:
    """Bytes of the gradients and moments of what a stage trains on a device."""
    phases = [phase for phase in stage.phases if names[given_place(phase.network)] == device]
    gradients: dict[int, nn.Parameter] = {id(p): p for phase in phases for p in phase.trained.parameters()}
    moments = sum(phase.optimizer.moment_bytes(phase.trained.parameters()) for phase in phases)
    return sum(map(_bytes, gradients.values())) + moments


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
