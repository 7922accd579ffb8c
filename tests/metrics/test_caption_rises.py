"""The rise of the loss when one word of a caption is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fewstep.condition import Classes, Condition, Conditions
from fewstep.data.scenes import Scenes, SceneWords, parse
from fewstep.denoisers import Denoiser
from fewstep.metrics.prompted import caption_rises
from fewstep.random import Key
from fewstep.schedule import DiscreteVP, Schedule


class Told(Denoiser):
    """Its error is 1 for each sample whose caption is right, and more for each word that is wrong
    and that it has learnt.
    """

    classes = 0

    def __init__(self, x0: Tensor, words: Sequence[SceneWords], learnt: dict[str, float]):
        super().__init__()
        self.x0, self.words, self.learnt = x0, words, learnt
        self.said: list[SceneWords] = []

    @property
    def schedule(self) -> Schedule:
        return DiscreteVP("scaled_linear", 1000, 0.00085, 0.012)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x0.shape[1:])

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        error = torch.ones(len(x))
        for row, (right, said) in enumerate(zip(self.words, self.said, strict=True)):
            one, other = right.asked(), said.asked()
            assert one.keys() == other.keys()
            error[row] += sum(self.learnt.get(name, 0.0) for name, value in one.items() if other[name] != value)
        return self.x0 + error[:, None, None, None]


def hearing(denoiser: Told) -> Callable[[Sequence[str]], Conditions]:
    def conditions(texts: Sequence[str]) -> Conditions:
        parsed = [parse(text) for text in texts]
        denoiser.said = [each for each in parsed if each is not None]
        assert len(denoiser.said) == len(texts)
        return Classes(len(texts))

    return conditions


@pytest.mark.parametrize(
    ("digits", "learnt", "rises"),
    [
        (1, {}, {"digit": 0, "colour": 0, "size": 0, "place": 0}),
        (1, {"digit_1": 2.0}, {"digit": 8, "colour": 0, "size": 0, "place": 0}),
        (1, {"colour_1": 1.0, "place": 0.5}, {"digit": 0, "colour": 3, "size": 0, "place": 1.25}),
        (2, {"digit_1": 1.0, "relation": 2.0}, {"digit": 3, "colour": 0, "relation": 8}),
    ],
)
def test_it_is_that_of_the_words_which_are_learnt(
    digits: int, learnt: dict[str, float], rises: dict[str, float]
) -> None:
    scenes, index = Scenes(40, digits), torch.arange(40)
    denoiser = Told(scenes.take(index), scenes.words(index), learnt)
    found = caption_rises(denoiser, denoiser.x0, denoiser.words, hearing(denoiser), Key(0))
    assert found == pytest.approx({f"rise_{name}": value for name, value in rises.items()}, abs=1e-5)


def test_a_size_counts_where_it_is_said() -> None:
    scenes, index = Scenes(60), torch.arange(60)
    denoiser = Told(scenes.take(index), scenes.words(index), {"size": 1.0})
    said = [each.size is not None for each in denoiser.words]
    assert 0 < sum(said) < 60
    t = 0.6 + 0.2 * Key(0).uniform("rise-time", 60)
    weight = 1 / denoiser.schedule.sigma(t) ** 2
    expected = 3 * float((weight * torch.tensor(said)).sum() / weight.sum())
    found = caption_rises(denoiser, denoiser.x0, denoiser.words, hearing(denoiser), Key(0))
    assert found["rise_size"] == pytest.approx(expected, abs=1e-5)
