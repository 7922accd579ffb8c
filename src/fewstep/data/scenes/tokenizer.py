"""The tokenizer of scenes: CLIP's, with a vocabulary that has a token for each word of a caption.

A word that no caption has is spelled by letters; what has no letter is the unknown token, which is
the end's, as in CLIP's own. The two digits' words are in it as well, so that captions of either
kind have one vocabulary.
"""

from __future__ import annotations

import json
import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.scenes.vocabulary import PHRASINGS, RELATIONS, SIZES, SceneWords, caption
from fewstep.errors import UserError

LENGTH = 16
"""The tokens of a caption, with those at its ends; shorter captions are filled up."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_ENDS = "</w>"


def write_tokenizer(folder: Path) -> None:
    """Writes ``vocab.json``, ``merges.txt`` and the settings by which transformers, of any version,
    makes the tokenizer; ``folder`` is made.
    """
    vocabulary, merges = _tokens()
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    settings = {**special, "do_lower_case": True, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    for name, text in (
        ("vocab.json", json.dumps(numbered, indent=0) + "\n"),
        ("merges.txt", "\n".join(lines)),
        ("special_tokens_map.json", json.dumps(special, indent=2) + "\n"),
        ("tokenizer_config.json", json.dumps(settings, indent=2) + "\n"),
    ):
        (folder / name).write_text(text, encoding="utf-8")


def scene_tokenizer() -> Any:
    """The tokenizer, a ``CLIPTokenizerFast`` of transformers; raises ``UserError`` without
    transformers.
    """
    try:
        from transformers import CLIPTokenizerFast
    except ImportError as error:
        raise UserError("the tokenizer of scenes needs transformers: pip install 'fewstep[diffusers]'.") from error
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)


def vocabulary_size() -> int:
    """How many tokens there are."""
    return len(_tokens()[0])


def tokenized(captions: Sequence[str]) -> Tensor:
    """Captions as numbers of tokens, (n, LENGTH) int64; longer ones are cut."""
    given = scene_tokenizer()(list(captions), padding="max_length", max_length=LENGTH, truncation=True)
    return torch.tensor(given.input_ids)


def vocabulary_words() -> list[str]:
    """Every word that a caption of one or two digits has, and the comma, in alphabetical order."""
    found: set[str] = set()
    for digit in range(10):
        for colour in range(8):
            alone = SceneWords((digit,), (colour,), size=colour % len(SIZES), place=colour % 5)
            pair = SceneWords((digit, digit), (colour, colour), relation=colour % len(RELATIONS))
            for scene in (alone, pair):
                for phrasing in range(PHRASINGS[len(scene.digits)]):
                    found.update(re.findall(r"\w+|,", caption(scene, phrasing)))
    return sorted(found)


def _tokens() -> tuple[list[str], list[tuple[str, str]]]:
    """The vocabulary, and the merges by which each word becomes one token.

    A merge that is added later counts less, so that it cannot change what a word becomes whose
    merges are all there.
    """
    letters = [*string.ascii_lowercase, ",", "."]
    vocabulary = [*letters, *(f"{each}{_ENDS}" for each in letters)]
    merges: list[tuple[str, str]] = []
    for word in vocabulary_words():
        pieces = _merged([*word[:-1], word[-1] + _ENDS], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            vocabulary.append("".join(merges[-1]))
            pieces = _merged(pieces, merges)
    return [*vocabulary, _START, _END], merges


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    for pair in merges:
        at = 0
        while at + 1 < len(pieces):
            if (pieces[at], pieces[at + 1]) == pair:
                pieces = [*pieces[:at], "".join(pair), *pieces[at + 2 :]]
            at += 1
    return pieces
