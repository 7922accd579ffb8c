"""Captions of scenes as tokens, as data, and as conditions of latents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from prompt_kit import HashEncoder
from torch import Tensor

from fewstep.data import Conditioned, Prompts
from fewstep.data.prompts import embed
from fewstep.data.scenes import Scenes, parse, scene_prompts
from fewstep.data.scenes.scene_captions import SceneCaptions
from fewstep.data.scenes.scene_latents import SceneLatents
from fewstep.data.scenes.tokenizer import (
    LENGTH,
    scene_tokenizer,
    tokenized,
    vocabulary_size,
    vocabulary_words,
    write_tokenizer,
)
from fewstep.networks import Codec
from fewstep.random import Key
from fewstep.schedule import DiscreteVP
from fewstep.states import ForwardDiffusion, Step
from fewstep.times import UniformTimes

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("digits", [1, 2])
def test_each_word_of_each_caption_is_one_token(digits: int) -> None:
    tokenizer = scene_tokenizer()
    captions = {*Scenes(400, digits).captions(torch.arange(400)), *scene_prompts(digits, True)[:200]}
    for caption in captions:
        found = re.findall(r"\w+|,", caption)
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in found]
        assert len(found) + 2 <= LENGTH
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary_words())


def test_captions_are_framed_and_filled_up_and_other_words_are_spelled() -> None:
    first, last = vocabulary_size() - 2, vocabulary_size() - 1
    rows = tokenized(["a red seven", "", "A RED SEVEN"])
    assert rows.shape == (3, LENGTH)
    assert rows[:, 0].tolist() == [first] * 3
    assert rows[0].tolist().count(last) == LENGTH - 4
    assert rows[1, 1:].tolist() == [last] * (LENGTH - 1)
    assert torch.equal(rows[0], rows[2])
    assert "".join(scene_tokenizer().tokenize("redo")) == "redo</w>"
    assert len(scene_tokenizer().tokenize("redo")) > 1
    assert scene_tokenizer().tokenize("7") == ["<|endoftext|>"]


def test_its_files_are_read_in_both_forms(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    numbered = json.loads((tmp_path / "vocab.json").read_text())
    assert sorted(numbered.values()) == list(range(vocabulary_size()))
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert again(["a blue two, at"]).input_ids == scene_tokenizer()(["a blue two, at"]).input_ids
    assert again.model_max_length == LENGTH


def test_captions_as_data_say_what_their_words_say() -> None:
    scenes = Scenes(300)
    data, index = SceneCaptions(scenes), torch.tensor([7, 7, 150, 3])
    texts = scenes.captions(index)
    assert torch.equal(data.take(index).long(), tokenized(texts))
    assert data.values == {"digit_1": 11, "colour_1": 9, "size": 3, "place": 6}
    told = data.attributes(torch.arange(300))
    for row, text in enumerate(scenes.captions(torch.arange(300))):
        asked = {} if (said := parse(text)) is None else said.asked()
        for name, count in scenes.values.items():
            assert int(told[name][row]) == asked.get(name, count)
    assert int(told["digit_1"].max()) == 10
    assert data.identity != SceneCaptions(Scenes(300, seed=1)).identity


class Halved(Codec):
    """Every second pixel."""

    channels, factor = 3, 2
    identity = "halved"

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        found = self.one * pictures[:, :, ::2, ::2]
        return found, torch.zeros_like(found)

    def _pictures(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


def latents_of(scenes: Scenes, folder: Path) -> SceneLatents:
    encoder = HashEncoder()
    return SceneLatents(
        scenes,
        Halved(),
        lambda texts: embed(
            Prompts(tuple(texts)),
            lambda: encoder,
            encoder.identity,
            folder,
            say=lambda _: None,
        ),
        encoder.identity,
    )


@torch.no_grad()
def test_latents_go_with_their_captions(tmp_path: Path) -> None:
    scenes = Scenes(1100)
    data = latents_of(scenes, tmp_path)
    assert isinstance(data, Conditioned)
    index = torch.tensor([1099, 0, 600, 600])
    assert torch.equal(data.take(index), scenes.take(index)[:, :, ::2, ::2])
    assert data.shape == (3, 16, 16)
    assert data.classes == 0
    texts, encoder = scenes.captions(index), HashEncoder()
    found = data.conditions.of(data.labels[index])
    for name, rows in encoder(texts).items():
        assert torch.equal(found.context[name], rows)


@torch.no_grad()
def test_states_carry_the_captions_of_their_own_samples(tmp_path: Path) -> None:
    scenes = Scenes(40)
    data = latents_of(scenes, tmp_path)
    states = ForwardDiffusion(data, DiscreteVP(), UniformTimes(), 0.0, data.conditions)
    state = states.draw(Step(Key(0), 6))
    encoder = HashEncoder()
    captions = scenes.captions(torch.arange(40))
    pictures = data.take(torch.arange(40))
    for row in range(6):
        assert state.x0 is not None
        own = int((pictures - state.x0[row]).abs().sum((1, 2, 3)).argmin())
        for name, rows in encoder([captions[own]]).items():
            assert torch.equal(state.condition.context[name][row], rows[0])


def test_another_codec_or_encoder_is_another_set(tmp_path: Path) -> None:
    data = latents_of(Scenes(40), tmp_path)
    others = [
        latents_of(Scenes(41), tmp_path).identity,
        SceneLatents(data.scenes, data.codec, data.embedded, "other").identity,
    ]
    assert len({data.identity, *others}) == 3
