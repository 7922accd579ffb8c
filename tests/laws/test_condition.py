"""Laws of conditions: indexing and concatenation are inverses, null keeps the scale, and what is
not there stays absent.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from law_kit import normals
from torch import Tensor

from fewstep.condition import NO_CLASS, Classes, Condition, as_condition
from fewstep.errors import UserError
from fewstep.random import Key

ROWS = 6
CONDITIONS: dict[str, Condition] = {
    "labels": Condition(labels=torch.tensor([0, 2, 1, -1, 2, 0])),
    "probabilities": Condition(labels=torch.softmax(normals(ROWS, 3), 1)),
    "context": Condition(context={"text": normals(ROWS, 4, 5), "size": normals(ROWS)}),
    "guidance": Condition(guidance=normals(ROWS).abs()),
    "all": Condition(torch.tensor([0, 2, 1, -1, 2, 0]), {"text": normals(ROWS, 4, 5)}, normals(ROWS).abs()),
}
every_condition = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS.keys())


def _parts(condition: Condition) -> dict[str, Tensor]:
    named = {
        "labels": condition.labels,
        "guidance": condition.guidance,
        **{f"context.{key}": value for key, value in condition.context.items()},
    }
    return {name: value for name, value in named.items() if value is not None}


def _same(one: Condition, other: Condition) -> bool:
    a, b = _parts(one), _parts(other)
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@every_condition
def test_length_is_the_batch(condition: Condition) -> None:
    assert len(condition) == ROWS
    assert len(Condition()) == 0


@every_condition
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_concatenation_undoes_slicing(condition: Condition, cut: int) -> None:
    assert _same(Condition.cat([condition[:cut], condition[cut:]]), condition)
    assert _same(Condition.cat([condition[i : i + 1] for i in range(ROWS)]), condition)
    assert _same(Condition.cat([condition]), condition)


@every_condition
@pytest.mark.parametrize(
    "index",
    [slice(1, 5, 2), torch.tensor([4, 4, 0]), torch.tensor([True, False, True, True, False, False])],
    ids=["slice", "ids", "mask"],
)
def test_indexing_takes_every_field_alike(condition: Condition, index: slice | Tensor) -> None:
    taken = _parts(condition[index])
    assert taken.keys() == _parts(condition).keys()
    for name, value in _parts(condition).items():
        assert torch.equal(taken[name], value[index])


@every_condition
def test_null_drops_what_is_conditioned_on_and_keeps_the_scale(condition: Condition) -> None:
    condition, owner = replace(condition, context={}), Classes(3)
    null = owner.null(condition)
    assert _parts(null).keys() == _parts(condition).keys()
    for name, value in _parts(null).items():
        before = _parts(condition)[name]
        assert (value.shape, value.dtype) == (before.shape, before.dtype)
        if name == "guidance":
            assert torch.equal(value, before)
        elif value.dtype == torch.int64:
            assert bool((value == NO_CLASS).all())
        else:
            assert bool((value == 0).all())
    assert _same(owner.null(null), null)
    assert _same(owner.null(condition[:2]), null[:2])


def test_labels_alone_do_not_say_what_a_context_is_without() -> None:
    with pytest.raises(UserError, match=r"holds text, .*give Guided the conditions' owner"):
        Classes(3).null(Condition(context={"text": torch.zeros(2, 4)}))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_conditions_of_a_set_are_drawn_by_place(count: int) -> None:
    owner, key = Classes(count), Key(3, "stage", 7)
    drawn = owner.draw(key, 40)
    assert _same(owner.draw(key, 15, 25), drawn[25:])
    if count == 0:
        assert _parts(drawn) == {}
    else:
        assert drawn.labels is not None
        assert set(drawn.labels.tolist()) <= set(range(count))
        assert _same(owner.of(drawn.labels), drawn)


@every_condition
def test_moving_where_it_is_changes_nothing(condition: Condition) -> None:
    assert _same(condition.to("cpu"), condition)
    assert _parts(condition.to("meta")).keys() == _parts(condition).keys()
    assert all(value.device.type == "meta" for value in _parts(condition.to("meta")).values())


def test_whatever_a_denoiser_accepts_becomes_a_condition() -> None:
    labels = torch.tensor([1, 2])
    assert as_condition(labels).labels is labels
    assert _parts(as_condition(None)) == {}
    condition = CONDITIONS["all"]
    assert as_condition(condition) is condition


@pytest.mark.parametrize(
    "empty",
    [
        Condition(),
        Condition()[:3],
        Classes().null(Condition()),
        Condition().to("cpu"),
        Condition.cat([Condition(), Condition()]),
    ],
)
def test_no_condition_stays_none(empty: Condition) -> None:
    assert _parts(empty) == {}
