"""Samples that are conditioned on their captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.condition import NO_CLASS
from fewstep.data.dataset import Dataset, Derived
from fewstep.data.prompts.read import Prompts
from fewstep.errors import UserError
from fewstep.system.files import digest_of

_SOURCE = "captions of the data"


@dataclass(frozen=True, eq=False)
class Captioned(Derived):
    """The samples of ``data``, each conditioned on its caption: ``prompt`` (N,) int64 is the number
    of the caption among ``prompts``, -1 for none. Made by ``captioned``.

    It has no classes, also where ``data`` has: the number of a caption is no class, and a class is
    no number of a prompt.
    """

    data: Dataset
    prompts: Prompts
    prompt: Tensor
    low: float
    high: float
    remarks: tuple[str, ...] = ()

    labels = None
    classes = 0
    names = ()

    @property
    def numbers(self) -> Tensor:
        return self.prompt

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def take(self, index: Tensor) -> Tensor:
        return self.data.take(index)

    @cached_property
    def identity(self) -> str:
        of = {"of": self.data.identity, "prompts": self.prompts.identity}
        return digest_of({"prompt": self.prompt}, {"kind": "captioned", **of})


def captioned(data: Dataset) -> tuple[Prompts, Captioned]:
    """The different captions of ``data`` as prompts, in the order in which they first appear, and
    the same samples with the numbers of their captions, -1 for an empty one.

    ``ForwardDiffusion(samples, ..., conditions=PromptConditions(embed(prompts, ...)))`` then trains
    on pictures with their captions. Samples that are costly to make are made first:
    ``captioned(latents_of(data, codec))``, since latents belong to pictures and not to captions.

    Raises ``UserError`` for data without captions.
    """
    texts = data.captions(torch.arange(len(data)))
    if texts is None:
        raise UserError(
            "data: has no captions to train on; use an image set with captions (metadata.jsonl, metadata.csv, or "
            "NAME.txt beside NAME.png) and 'captions: true', 'caption' of a Hugging Face set or of shards, or the "
            "scenes."
        )
    numbers: dict[str, int] = {}
    first: list[int] = []
    found = []
    for index, text in enumerate(texts):
        number = numbers.setdefault(text, len(numbers)) if text else NO_CLASS
        found.append(number)
        if number == len(first):
            first.append(index)
    if not numbers:
        raise UserError(f"data: all {len(texts):,} captions are empty; use a set with captions.")
    prompt = torch.tensor(found)
    prompts = Prompts(tuple(numbers), (), _SOURCE, "", [data.where(index) for index in first])
    return prompts, Captioned(data, prompts, prompt, data.low, data.high, data.remarks)
