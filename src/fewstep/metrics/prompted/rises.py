"""How much worse a denoiser is when the caption is wrong: which words it has learnt, told long
before its samples show them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.data.scenes import SceneWords
from fewstep.data.scenes.vocabulary import COLOURS, DIGITS, PLACES, RELATIONS, SIZES, caption
from fewstep.denoisers import Denoiser
from fewstep.objectives import EDMWeight
from fewstep.objectives.scores.score_matching import denoising_loss
from fewstep.random import Key

TIMES = (0.6, 0.8)
"""Where captions matter: a picture's plan is not in its noise any more."""

_VALUES = {"digit": len(DIGITS), "colour": len(COLOURS), "size": len(SIZES), "place": len(PLACES)}
_FULL = {1: 3, 2: 0}
"""The phrasing that says all of one digit, and of two."""


@torch.no_grad()
def caption_rises(
    denoiser: Denoiser,
    x0: Tensor,
    words: Sequence[SceneWords],
    conditions_of: Callable[[Sequence[str]], Conditions],
    key: Key,
) -> dict[str, float]:
    """By how much of itself the denoising loss rises when one word of each caption is another:
    ``rise_digit``, ``rise_colour``, and of one digit ``rise_size`` and ``rise_place``, of two
    ``rise_relation``; 0 for a word that is not learnt.

    ``x0`` (B, *D): what ``words`` describe, a row each. The loss is that of v at times uniform in
    ``TIMES``, with noise and wrong words that are functions of ``key``.
    """
    schedule, rows = denoiser.schedule, len(x0)
    t = TIMES[0] + (TIMES[1] - TIMES[0]) * key.uniform("rise-time", rows)
    x = schedule.add_noise(x0, t, key.normal("rise-noise", tuple(x0.shape)).to(x0))
    weight = EDMWeight(1.0).at(schedule, t)
    shift = key.integers("rise-word", rows, 2**16).tolist()

    def loss(said: Sequence[SceneWords]) -> float:
        texts = [caption(each, _FULL[len(each.digits)]) for each in said]
        condition = conditions_of(texts).of(torch.arange(rows)).to(x0.device)
        return float(denoising_loss(denoiser(x, t, condition), x0, weight))

    right = loss(words)
    names = ("digit", "colour", *(("size", "place") if len(words[0].digits) == 1 else ("relation",)))
    return {
        f"rise_{name}": loss([_wrong(each, name, by) for each, by in zip(words, shift, strict=True)]) / right - 1
        for name in names
    }


def _wrong(words: SceneWords, name: str, by: int) -> SceneWords:
    """The words with another digit (the first of two), colour, size, place or relation; ``by``
    chooses which. A size that is not said stays so.
    """

    def other(value: int) -> int:
        values = _VALUES.get(name, len(RELATIONS))
        return (value + 1 + by % (values - 1)) % values

    if name == "digit":
        return replace(words, digits=(other(words.digits[0]), *words.digits[1:]))
    if name == "colour":
        return replace(words, colours=(other(words.colours[0]), *words.colours[1:]))
    said = getattr(words, name)
    if said is None:
        return words
    return (
        replace(words, size=other(said))
        if name == "size"
        else (replace(words, place=other(said)) if name == "place" else replace(words, relation=other(said)))
    )
