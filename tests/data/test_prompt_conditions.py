"""Prompts own conditions: by number, drawn by place, and unconditional as the encoder says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prompt_kit import HashEncoder, texts_of
from torch import Tensor

from fewstep.condition import NO_CLASS, Condition
from fewstep.data import read_prompts
from fewstep.data.prompts import PromptConditions, embed
from fewstep.denoisers import Denoiser, Guided
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.resumable import check_open, find_resumable
from fewstep.schedule import KarrasVE
from fewstep.states import Prior, Step

SIZES = {"time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])}


@pytest.fixture
def owner(tmp_path: Path) -> PromptConditions:
    encoder = HashEncoder()
    found = embed(read_prompts(texts_of(6)), lambda: encoder, encoder.identity, tmp_path, say=lambda _: None)
    return PromptConditions(found, SIZES)


def equal(one: Condition, other: Condition) -> bool:
    assert one.context.keys() == other.context.keys()
    labels = (one.labels is None) == (other.labels is None) and (
        one.labels is None or other.labels is None or torch.equal(one.labels, other.labels)
    )
    return labels and all(torch.equal(one.context[name], other.context[name]) for name in one.context)


def test_a_condition_is_its_prompts_embedding_and_the_sizes(owner: PromptConditions) -> None:
    numbers = torch.tensor([4, 0, 4])
    found = owner.of(numbers)
    for name, value in owner.prompts.rows(numbers).items():
        assert torch.equal(found.context[name], value)
    assert torch.equal(found.context["time_ids"], SIZES["time_ids"].expand(3, 6))
    assert found.labels is not None
    assert torch.equal(found.labels, numbers)


def test_the_number_of_the_empty_prompt_is_the_unconditional_condition(owner: PromptConditions) -> None:
    numbers = torch.tensor([1, NO_CLASS, 5])
    found, null = owner.of(numbers), owner.null(owner.of(torch.tensor([1, 2, 5])))
    assert equal(found[1:2], null[1:2])
    assert equal(found[::2], owner.of(numbers[::2]))
    # No condition differs from the null one in sizes alone.
    assert not equal(found[:1], null[:1])
    for name, value in owner.prompts.null.items():
        assert torch.equal(null.context[name], value.expand(3, *value.shape[1:]))
    assert torch.equal(null.context["time_ids"], found.context["time_ids"])
    assert equal(owner.null(null), null)


def test_the_scale_of_guidance_stays(owner: PromptConditions) -> None:
    scale = torch.tensor([2.0, 3.0])
    assert torch.equal(owner.null(replace(owner.of(torch.tensor([0, 1])), guidance=scale)).guidance, scale)


def test_prior_draws_prompts_by_place(owner: PromptConditions) -> None:
    prior = Prior(KarrasVE(), (2,), 0.4, conditions=owner)
    whole = Step(Key(5), 20).state(prior).condition
    part = Step(Key(5), 8, start=12).state(prior).condition
    assert equal(part, whole[12:])
    assert whole.labels is not None
    assert len(set(whole.labels.tolist())) > 3
    check_open(prior, "a prior")
    assert not find_resumable(prior)


class Heard(Denoiser):
    """A number of the text as the estimate."""

    schedule = KarrasVE()
    shape = (2,)
    classes = 0

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        assert isinstance(condition, Condition)
        first = condition.context["text"]
        return x * 0 + first.flatten(1).float().mean(1)[:, None]


def test_guided_asks_the_owner(owner: PromptConditions) -> None:
    """The unconditional estimate is of the null prompt: of zeros it would be another."""
    x, t, condition = torch.zeros(2, 2), torch.tensor(0.5), owner.of(torch.tensor([0, 3]))
    heard = Heard()
    conditional, null = heard(x, t, condition), heard(x, t, owner.null(condition))
    torch.testing.assert_close(Guided(heard, 3.0, owner)(x, t, condition), null + 3 * (conditional - null))
    assert float(null.abs().min()) > 1e-3
    with pytest.raises(UserError, match="give Guided the conditions' owner"):
        Guided(heard, 3.0)(x, t, condition)


@pytest.mark.parametrize("numbers", [None, torch.tensor([6]), torch.tensor([-2])])
def test_a_number_that_no_prompt_has_is_refused(owner: PromptConditions, numbers: Tensor | None) -> None:
    with pytest.raises(UserError, match="numbers from 0 to 5"):
        owner.of(numbers)


def test_a_condition_of_another_owner_is_refused(owner: PromptConditions) -> None:
    with pytest.raises(UserError, match="the condition has no"):
        owner.null(Condition(labels=torch.tensor([1])))
    with pytest.raises(UserError, match="is the name of an embedding already"):
        PromptConditions(owner.prompts, {next(iter(owner.prompts.shapes)): torch.zeros(1, 6)})
