"""Which device a recipe means, and what is put there."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest
import torch
from torch import distributed as dist

from fewstep.errors import UserError
from fewstep.planning.twin import twin
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
from fewstep.recipes.building.device import resolve_device
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.config import DigitsData, MixtureData
from fewstep.training.actions import MakePairs
from fewstep.training.phase import used_modules


@pytest.mark.parametrize(
    ("name", "cards", "rank", "expected"),
    [
        ("auto", 0, None, "cpu"),
        ("cpu", 4, "1", "cpu"),
        ("auto", 1, None, "cuda:0"),
        ("cuda", 2, None, "cuda:0"),
        ("auto", 2, "1", "cuda:1"),
        ("auto", 0, "3", "cpu"),
    ],
)
def test_a_process_takes_its_own_gpu_where_there_is_one(name, cards, rank, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_device(name) == torch.device(expected)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"'training\.device: cuda' needs a GPU that torch can use, and finds none"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        UserError,
        match=r"process 3 of this machine, which has 2 GPU\(s\): start one process a GPU \(--nproc-per-node 2\)",
    ):
        resolve_device("auto")


def test_a_recipe_takes_what_there_is_unless_it_says_otherwise_and_its_twin_the_cpu():
    assert load_recipe("digits-disback").training.device == "auto"
    recipe = load_recipe("digits-disback", ["training.device=cuda"])
    assert recipe.training.device == "cuda"
    assert twin(recipe).training.device == "cpu"
    with pytest.raises(UserError, match=r"training\.device"):
        load_recipe("digits-disback", ["training.device=tpu"])


@pytest.fixture
def group(tmp_path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, timeout=datetime.timedelta(seconds=60)
    )
    yield
    dist.destroy_process_group()


def built(monkeypatch, folder, name: str, mode: str, *settings: str) -> Distillation:
    """A run's parts on a device that can hold networks and compute nothing."""
    monkeypatch.setattr("fewstep.recipes.building.distillation.resolve_device", lambda _: torch.device("meta"))
    return build_distillation(load_recipe(name, [f"distributed.mode={mode}", *settings]), folder)


def places(parts: Distillation) -> set[str]:
    return {value.device.type for module in used_modules(parts.stages) for value in module.parameters()}


# All whose data is at hand, and a path that is measured.
AT_HAND = [
    name
    for name in shipped_names()
    if isinstance(recipe := load_recipe(name), DistillRecipe) and isinstance(recipe.data, (DigitsData, MixtureData))
]
RECIPES = (("mixture2d-disback", "target.record={kind: distance}"), *((name,) for name in AT_HAND))


@pytest.mark.parametrize("recipe", RECIPES, ids=" ".join)
@pytest.mark.usefixtures("group")
def test_networks_that_will_be_sharded_are_built_on_the_cpu_and_work_elsewhere(monkeypatch, tmp_path, recipe):
    """No GPU need hold one whole."""
    parts = built(monkeypatch, tmp_path, recipe[0], "fsdp", *recipe[1:])
    assert places(parts) == {"cpu"}
    assert all(
        action.device.type == "meta"
        for stage in parts.stages
        for action in stage.begin
        if isinstance(action, MakePairs)
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=" ".join)
def test_other_networks_are_built_where_they_work_and_building_computes_nothing(monkeypatch, tmp_path, recipe):
    """In a process alone, whatever the mode."""
    assert places(built(monkeypatch, tmp_path, recipe[0], "fsdp", *recipe[1:])) == {"meta"}
