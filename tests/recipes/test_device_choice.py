"""Which device a recipe means, and what is put there."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import UserError
from fewstep.recipes import load_recipe
from fewstep.recipes.device import resolve_device
from fewstep.recipes.twin import twin


@pytest.mark.parametrize(
    ("name", "cards", "rank", "expected"),
    [("auto", 0, None, "cpu"), ("cpu", 4, "1", "cpu"), ("auto", 1, None, "cuda:0"), ("cuda", 2, None, "cuda:0"), ("auto", 2, "1", "cuda:1"), ("auto", 0, "3", "cpu")],
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
    with pytest.raises(UserError, match=r"process 3 of this machine, which has 2 GPU\(s\): start one process a GPU \(--nproc-per-node 2\)"):
        resolve_device("auto")


def test_a_recipe_takes_what_there_is_unless_it_says_otherwise_and_its_twin_the_cpu():
    assert load_recipe("digits-disback").training.device == "auto"
    recipe = load_recipe("digits-disback", ["training.device=cuda"])
    assert recipe.training.device == "cuda"
    assert twin(recipe).training.device == "cpu"
    with pytest.raises(UserError, match=r"training\.device"):
        load_recipe("digits-disback", ["training.device=tpu"])
