"""Prompt accuracy: what a prompt asks for is compared, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fewstep.data.scenes import Scenes, parse, scene_prompts
from fewstep.errors import UserError
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.metrics.prompted.accuracy import ROWS
from fewstep.networks import ImageReader

COUNT = 2 * ROWS + 137
both = pytest.mark.parametrize("number", [1, 2])


class Told:
    """A reader that knows the attributes of the pictures that it is given in order, and errs in
    ``name`` where ``wrong`` says so.
    """

    def __init__(self, data: Scenes, name: str = "", wrong: Tensor | None = None):
        self.told = data.attributes(torch.arange(len(data)))
        if wrong is not None:
            self.told[name] = torch.where(wrong, (self.told[name] + 1) % data.values[name], self.told[name])
        self.data, self.start = data, 0

    def __call__(self, pictures: Tensor) -> dict[str, Tensor]:
        rows = slice(self.start, self.start + len(pictures))
        self.start += len(pictures)
        return {
            name: functional.one_hot(value[rows], self.data.values[name]).float() for name, value in self.told.items()
        }


def full_prompts(data: Scenes) -> list[str]:
    """A prompt for each scene that says all but its size."""
    rows = torch.arange(len(data))
    prompts = scene_prompts(data.digits, True) + scene_prompts(data.digits, False)
    found = {frozenset(parse(prompt).asked().items()): prompt for prompt in prompts}
    attributes = {name: value.tolist() for name, value in data.attributes(rows).items() if name != "size"}
    return [found[frozenset((name, value[row]) for name, value in attributes.items())] for row in rows.tolist()]


@both
def test_what_is_read_right_is_right(number):
    data = Scenes(COUNT, number, "test", "all")
    kinds = {1: ["digit", "colour", "place"], 2: ["digit", "colour", "relation"]}[number]
    accuracy = prompt_accuracy(Told(data), data.take(torch.arange(COUNT)), full_prompts(data))
    assert accuracy == dict.fromkeys(["all", *kinds], 1.0)


@both
def test_on_real_pictures_it_is_the_networks_own_accuracy(number):
    data, index = Scenes(COUNT, number, "test", "all"), torch.arange(COUNT)
    torch.manual_seed(1)
    reader, pictures = ImageReader(dict(data.values), width=8, features=8), data.take(index)
    with torch.no_grad():
        told = [reader(block) for block in pictures.split(ROWS)]
    right = {
        name: torch.cat([logits[name].argmax(1) for logits in told]) == value
        for name, value in data.attributes(index).items()
        if name != "size"
    }
    accuracy = prompt_accuracy(reader, pictures, full_prompts(data))
    assert accuracy["all"] == float(torch.stack(list(right.values())).all(dim=0).double().mean())
    for kind, value in accuracy.items():
        if kind != "all":
            own = [hits for name, hits in right.items() if name.startswith(kind)]
            assert value == float(torch.stack(own).all(dim=0).double().mean())


@pytest.mark.parametrize(("number", "name"), [(number, name) for number in (1, 2) for name in Scenes(1, number).values])
def test_an_error_counts_in_its_kind_and_in_all(number, name):
    data = Scenes(COUNT, number, "test", "all")
    wrong = torch.arange(COUNT) % 4 == 0
    accuracy = prompt_accuracy(Told(data, name, wrong), data.take(torch.arange(COUNT)), full_prompts(data))
    share = 1 - float(wrong.double().mean())
    kind = name.partition("_")[0]
    expected = {key: share if key in (kind, "all") else 1.0 for key in accuracy}
    # No prompt of these says a size.
    assert accuracy == (dict.fromkeys(accuracy, 1.0) if name == "size" else expected)


def test_what_a_prompt_does_not_ask_for_is_not_compared():
    data = Scenes(COUNT, 1, "test", "all")
    everywhere = torch.ones(COUNT, dtype=torch.bool)
    captions = data.captions(torch.arange(COUNT))
    kept = [row for row, text in enumerate(captions) if text]
    some = data.subset(torch.tensor(kept))

    class OfSome(Told):
        def __init__(self, name: str):
            super().__init__(data, name, everywhere)
            self.told = {key: value[torch.tensor(kept)] for key, value in self.told.items()}

    prompts = [captions[row] for row in kept]
    accuracy = prompt_accuracy(OfSome("place"), some.take(torch.arange(len(kept))), prompts)
    silent = sum("at the" not in text and "in the" not in text for text in prompts) / len(kept)
    assert 0 < silent < 1
    assert accuracy == {"all": pytest.approx(silent), "digit": 1.0, "colour": 1.0, "size": 1.0, "place": 0.0}
    plain = [prompt for prompt in prompts if parse(prompt).size is None and parse(prompt).place is None]
    assert len(plain) > 50


@both
def test_shuffled_prompts_score_at_chance(number, capsys):
    """Of what is independent and even: a digit of ten, a colour of eight, a relation of two."""
    data = Scenes(4000, number, "test", "all")
    prompts = full_prompts(data)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0)).tolist()
    accuracy = prompt_accuracy(Told(data), data.take(torch.arange(4000)), [prompts[row] for row in order])
    with capsys.disabled():
        print(f"\nshuffled prompts, {number} digits: {accuracy}")
    chances = {"digit": 0.1**number, "colour": 0.125**number, "place": 0.2, "relation": 0.5}
    for kind, value in accuracy.items():
        if kind in chances:
            # Five standard deviations.
            bound = 5 * (chances[kind] * (1 - chances[kind]) / 4000) ** 0.5
            assert abs(value - chances[kind]) < bound
    assert accuracy["all"] < 0.01


def test_figures_that_cannot_be_are_refused():
    data = Scenes(4, 1)
    pictures = data.take(torch.arange(4))
    for prompts, sentence in (
        (["a red seven"], "4 pictures and 1 prompts"),
        (["a red seven", "a red seven", "", "a red seven"], "'' is no prompt of a scene"),
        (["a red seven above a blue three"] * 4, "asks for 'digit_2', which the reader does not tell"),
    ):
        with pytest.raises(UserError, match=sentence):
            prompt_accuracy(Told(data), pictures, prompts)
    with pytest.raises(UserError, match="0 pictures and 0 prompts"):
        prompt_accuracy(Told(data), pictures[:0], [])
