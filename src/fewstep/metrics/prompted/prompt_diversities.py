r"""How different the pictures of one prompt are: DDIL's diversity (Garrepalli et al. 2024, Sec. 5,
"LPIPS Diversity"): ten seeds a prompt, all pairs of them, fifty prompts.

For each prompt p, with features f of its n_p pictures, which differ by their seeds,

    d_p = 1 / (n_p (n_p - 1)) sum_{i != j} |f_i - f_j|,        diversity = mean over prompts of d_p.

The distance is Euclidean (L2), in a feature space of ours where DDIL takes LPIPS, and is what
``metrics.diversity`` takes within a class: a class is a prompt. For features N(m, s^2 I) in d
dimensions

    E |f_i - f_j|^2 = 2 d s^2,        E d_p = E |f_i - f_j| = 2 s Gamma((d + 1) / 2) / Gamma(d / 2).

Its unit is the feature space's, so that it says something beside another's on the same prompts: a
student's as a ratio to its teacher's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.diversity import diversities
from fewstep.metrics.features import Features
from fewstep.metrics.frechet import features_of
from fewstep.metrics.gathered import spaced

PROMPTS, SEEDS = 50, 10
"""DDIL's protocol."""


@dataclass(frozen=True)
class PromptDiversity:
    """``by_prompt``: the mean distance between the pictures of each prompt that has two or more."""

    by_prompt: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over prompts, which count alike."""
        return statistics.fmean(self.by_prompt.values())

    def over(self, other: PromptDiversity) -> float:
        """This diversity divided by another's, both over the prompts that both have.

        Raises ``UserError`` where they share none, and where the other's pictures are all equal.
        """
        common = self.by_prompt.keys() & other.by_prompt.keys()
        if not common:
            raise UserError("diversity a prompt: the two share no prompt; measure both on the same prompts.")
        theirs = statistics.fmean(other.by_prompt[prompt] for prompt in common)
        if theirs == 0:
            raise UserError("diversity a prompt: the pictures to compare with are all equal in feature space.")
        return statistics.fmean(self.by_prompt[prompt] for prompt in common) / theirs


def prompt_diversity(features: Features, pictures: Tensor, prompts: Sequence[str]) -> PromptDiversity:
    """The diversity of pictures (N, *D), each with its prompt, in the space that ``features`` maps
    them to.

    Raises ``UserError`` for another number of prompts than pictures, where no prompt has two
    pictures, and for pictures that are not finite.
    """
    if len(pictures) != len(prompts):
        raise UserError(
            f"diversity a prompt: there are {len(pictures)} pictures and {len(prompts)} prompts; give each picture one."
        )
    numbers: dict[str, int] = {}
    labels = torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=torch.int64)
    texts = list(numbers)
    if len(texts) == len(prompts):
        raise UserError("diversity a prompt: no prompt has two pictures; draw several of each.")
    found = diversities(features_of(pictures, features), labels)
    return PromptDiversity({texts[number]: value for number, value in found.items()})


def protocol(count: int, prompts: int = PROMPTS, seeds: int = SEEDS) -> Tensor:
    """The numbers (n,) int64, ascending, of the prompts to draw pictures of: of ``count`` prompts
    at most ``prompts``, evenly spaced, ``seeds`` times each.
    """
    return spaced(count, prompts).repeat_interleave(seeds)


def several_of_each(count: int) -> tuple[int, Tensor | None]:
    """How many samples tell the distance within a condition, and their numbers (n,) as ``protocol``
    has them of ``count`` conditions; as many of no condition where there are none.
    """
    numbers = protocol(count) if count else None
    return (PROMPTS * SEEDS if numbers is None else len(numbers)), numbers
