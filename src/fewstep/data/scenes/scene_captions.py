"""Captions of scenes as a data set: what a text encoder learns to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.data.dataset import Described
from fewstep.data.scenes.scene_set import Scenes
from fewstep.data.scenes.tokenizer import LENGTH, tokenized, vocabulary_size
from fewstep.data.scenes.vocabulary import parse
from fewstep.system.files import digest_of


@dataclass(frozen=True, eq=False)
class SceneCaptions(Described):
    """The captions of ``scenes``, as the numbers of their tokens, (LENGTH,) float32.

    Their attributes are those of the scenes that a caption can say, each with one more value: that
    it is not said.
    """

    scenes: Scenes

    labels = None
    classes = 0
    low = 0.0
    names = ()

    @property
    def high(self) -> float:  # type: ignore[override]
        return float(vocabulary_size() - 1)

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (LENGTH,)

    def take(self, index: Tensor) -> Tensor:
        return self._tokens[self._numbers[index]].float()

    @cached_property
    def identity(self) -> str:
        return digest_of({}, {"kind": "captions of scenes", "of": self.scenes.identity, "tokens": vocabulary_size()})

    @property
    def values(self) -> Mapping[str, int]:
        return {name: count + 1 for name, count in self.scenes.values.items()}

    def attributes(self, index: Tensor) -> dict[str, Tensor]:
        rows = self._numbers[index]
        return {name: values[rows] for name, values in self._said.items()}

    @property
    def _numbers(self) -> Tensor:
        return self.scenes.numbered_captions[1]

    @cached_property
    def _tokens(self) -> Tensor:
        return tokenized(self.scenes.numbered_captions[0])

    @cached_property
    def _said(self) -> dict[str, Tensor]:
        asked = [{} if (words := parse(text)) is None else words.asked() for text in self.scenes.numbered_captions[0]]
        return {
            name: torch.tensor([each.get(name, count) for each in asked]) for name, count in self.scenes.values.items()
        }
