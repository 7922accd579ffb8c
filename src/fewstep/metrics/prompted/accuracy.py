r"""How well pictures fit their prompts: prompt accuracy, whether a picture shows what its prompt
asks for; and the CLIP score (Hessel et al. 2021), as papers on distillation print it.

With embeddings v of a picture and c of its caption, the score of the picture is the cosine

    v . c / (|v| |c|),

in [-1, 1], and the figure is the mean over pictures. Papers print it plain (0.3 and some). Some
programs print 100 times the cosine, also cut off at 0; Hessel et al. have 2.5 times it, cut off.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fewstep.data.scenes import parse
from fewstep.errors import UserError

ROWS = 500
"""How many pictures are read at a time."""


@torch.no_grad()
def prompt_accuracy(
    reader: Callable[[Tensor], Mapping[str, Tensor]], pictures: Tensor, prompts: Sequence[str]
) -> dict[str, float]:
    """The share, in [0, 1], of pictures (N, *D) that show what their prompts ask for, as a
    ``reader`` ((B, *D) -> logits by attribute, each (B, K)) tells.

    ``all``: all that the prompt asks for. ``digit``, ``colour``, ``size``, ``place``, ``relation``:
    this alone, of both digits where there are two, over the prompts that ask for it; a figure that
    no prompt asks for is left out. What a prompt does not ask for is not compared.

    Raises ``UserError`` for another number of prompts than pictures, for none, for a prompt that
    asks for nothing, and for a prompt that asks for what the reader does not tell.
    """
    if len(pictures) != len(prompts) or not prompts:
        raise UserError(
            f"prompt accuracy: there are {len(pictures)} pictures and {len(prompts)} prompts; give each picture one."
        )
    told: dict[str, list[int]] = defaultdict(list)
    for block in pictures.split(ROWS):
        for name, logits in reader(block).items():
            told[name] += logits.argmax(1).tolist()
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        right = {name: told[name][row] == value for name, value in _asked(prompt, told).items()}
        hits["all"].append(all(right.values()))
        for kind in dict.fromkeys(map(_kind, right)):
            hits[kind].append(all(hit for name, hit in right.items() if _kind(name) == kind))
    return {kind: sum(found) / len(found) for kind, found in hits.items()}


def similarities(pictures: Tensor, captions: Tensor) -> Tensor:
    """The cosines (N,), float64, of embeddings (N, d) of pictures and of their captions.

    Raises ``UserError`` for other shapes, and for embeddings without a direction.
    """
    if pictures.ndim != 2 or pictures.shape != captions.shape or not len(pictures):
        raise UserError(
            f"a CLIP score is taken of embeddings (N, d) of pictures and captions, got {tuple(pictures.shape)} and "
            f"{tuple(captions.shape)}; give each picture one caption."
        )
    one, other = pictures.double(), captions.double()
    lengths = one.norm(dim=1) * other.norm(dim=1)
    if not bool(((lengths > 0) & torch.isfinite(lengths)).all()):
        raise UserError("a CLIP score is taken of embeddings with a direction; one is 0, or not finite.")
    return (one * other).sum(1) / lengths


def _asked(prompt: str, told: Mapping[str, list[int]]) -> dict[str, int]:
    words = parse(prompt)
    if words is None:
        raise UserError(
            f"prompt accuracy: '{prompt}' is no prompt of a scene; give prompts as 'fewstep.data.scenes' writes them."
        )
    asked = words.asked()
    untold = next((name for name in asked if name not in told), None)
    if untold is not None:
        raise UserError(
            f"prompt accuracy: '{prompt}' asks for '{untold}', which the reader does not tell; give a reader of scenes "
            f"with {len(words.digits)} digits."
        )
    return asked


def _kind(name: str) -> str:
    """The kind of an attribute: ``digit`` of ``digit_1``."""
    return name.partition("_")[0]
