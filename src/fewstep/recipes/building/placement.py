"""From a recipe's ``training.placement`` to devices of this machine, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fewstep.errors import UserError
from fewstep.recipes import config
from fewstep.recipes.recipe import DistillRecipe, PretrainRecipe
from fewstep.system import distributed

Places = Mapping[config.PlacedRole, torch.device]


def place_roles(recipe: DistillRecipe, device: torch.device) -> Places:
    """The device of each role that the recipe names, in a run that works on ``device``; empty where
    it names none.

    Raises ``UserError`` for what cannot be placed, and for a device that is not there.
    """
    places = meant_places(recipe, device)
    if places and distributed.size() > 1:
        raise UserError(
            "'training.placement' divides the networks of one process among devices, and this run has "
            f"{distributed.size()} processes, each with a device of its own; leave it out, or start the run without "
            "torchrun."
        )
    for role, place in places.items():
        _check_there(role, place)
    return places


def meant_places(recipe: DistillRecipe, device: torch.device) -> Places:
    """The same on a machine that has every device.

    Raises ``UserError`` for what cannot be placed.
    """
    places = recipe.training.placement.devices()
    if not places:
        return places
    roles = roles_of(recipe)
    stranger = next((role for role in places if role not in roles), None)
    if stranger is not None:
        raise UserError(
            f"'training.placement.{stranger}' is '{places[stranger]}', and this recipe has no network of that role; "
            f"leave it out, or place one of its roles: {', '.join(roles)}."
        )
    if recipe.training.offload:
        raise UserError(
            "'training.placement' and 'training.offload: true' cannot be combined: what waits comes back to one "
            "device, and placed networks have several; leave one of both out."
        )
    _check_adapters(recipe, {role: places.get(role, device) for role in roles})
    return places


def roles_of(recipe: DistillRecipe) -> Sequence[config.PlacedRole]:
    """The roles that a recipe has networks for."""
    path = recipe.target.backtracked
    recorded = path is not None and path.nodes > 1
    has: dict[config.PlacedRole, bool] = {
        "teacher": True,
        "fake": recipe.method.learns_fake or recorded,
        "student": True,
        "critic": recipe.method.judged_apart,
        "features": True,
    }
    return [role for role, there in has.items() if there]


def check_unplaced(recipe: PretrainRecipe) -> None:
    """Raises ``UserError`` for a pretraining that names devices of roles."""
    places = recipe.training.placement.devices()
    if places:
        raise UserError(
            f"'training.placement.{next(iter(places))}' is for a distillation, which has several roles, and this "
            "recipe trains a model alone; leave it out, and use 'training.device'."
        )


def _check_adapters(recipe: DistillRecipe, devices: Places) -> None:
    """Raises ``UserError`` for adapters on another device than the network on which they stand."""
    path = recipe.target.backtracked
    # A fake score on a path of copies has a base of its own.
    own = path is not None and path.recorded_as == "copy" and path.nodes > 1
    adapted: dict[config.PlacedRole, bool] = {
        "student": recipe.student.kind == "lora",
        "fake": recipe.method.adapts_fake and not own,
    }
    for role, adapts in adapted.items():
        if adapts and devices[role] != devices["teacher"]:
            raise UserError(
                f"'training.placement' has '{role}' on '{devices[role]}' and 'teacher' on '{devices['teacher']}', and "
                f"here '{role}' is an adapter on the teacher's network; place both on one device."
            )


def _check_there(role: config.PlacedRole, place: torch.device) -> None:
    cards = torch.cuda.device_count() if place.type == "cuda" else 0
    if place.type != "cuda" or (place.index or 0) < cards:
        return
    known = ", ".join(f"'cuda:{card}'" for card in range(cards))
    there = f"finds {cards} GPU(s) on this machine; name one of these: {known}" if cards else "finds none here"
    remedy = ", or 'cpu'." if cards else "; name 'cpu', leave it out, or install torch for your GPUs."
    raise UserError(
        f"'training.placement.{role}' is '{place}', which needs a GPU of that number, and torch {there}{remedy}"
    )
