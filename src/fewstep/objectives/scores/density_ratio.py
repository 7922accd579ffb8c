r"""f-distill: distribution matching of any f-divergence, by a weight of the density ratio (Xu, Nie
and Vahdat 2025, arXiv:2502.15681).

With q the student's density at a noise level, p the target's and r = p / q, the divergence D_f =
E_q f(r) has the gradient

    grad_theta D_f = E [ h(r) (s_q - s_p) d x_t / d theta ],    h(r) = f''(r) r^2,

distribution matching with one more factor a sample:

====================  ==================================  ==================
``Divergence``        f(r)                                h(r)
====================  ==================================  ==================
``ReverseKL``         -log r                              1
``ForwardKL``         r log r                             r
``JensenShannon``     r log r - (r + 1) log((r + 1) / 2)  r / (r + 1)
``SoftenedReverseKL`` (r + 1) log((1 + 1 / r) / 2)        1 / (r + 1)
``SquaredHellinger``  1 - sqrt(r)                         sqrt(r) / 4
====================  ==================================  ==================

r comes from a critic that tells noised data from noised samples: the best logit of the
non-saturating game is log r. The paper normalises in two stages. Here r is divided by its mean over
the batch, since E_q r = 1, and then h by its own, so that a divergence changes which samples pull
and not how hard they pull together. With h = 1 the weight is the base weight, bit for bit.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fewstep.objectives.games.adversarial import Critic
from fewstep.objectives.scores.matching import Compared, MatchingWeight
from fewstep.system import distributed
from fewstep.values import Value

LARGEST_LOGIT = 10.0
"""Beyond it a ratio says no more than that a critic is sure."""


@dataclass(frozen=True)
class Divergence(Value, abc.ABC):
    """An f-divergence by its weight; see the module's docstring."""

    @abc.abstractmethod
    def weight(self, ratio: Tensor) -> Tensor:
        """h (B,) of the ratios r (B,), above 0."""


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """1."""

    kind: Literal["reverse-kl"] = field(default="reverse-kl", kw_only=True)

    def weight(self, ratio: Tensor) -> Tensor:
        return torch.ones_like(ratio)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """r."""

    kind: Literal["forward-kl"] = field(default="forward-kl", kw_only=True)

    def weight(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """r / (r + 1)."""

    kind: Literal["jensen-shannon"] = field(default="jensen-shannon", kw_only=True)

    def weight(self, ratio: Tensor) -> Tensor:
        return ratio / (ratio + 1)


@dataclass(frozen=True)
class SoftenedReverseKL(Divergence):
    """1 / (r + 1)."""

    kind: Literal["softened-reverse-kl"] = field(default="softened-reverse-kl", kw_only=True)

    def weight(self, ratio: Tensor) -> Tensor:
        return 1 / (ratio + 1)


@dataclass(frozen=True)
class SquaredHellinger(Divergence):
    """sqrt(r) / 4."""

    kind: Literal["squared-hellinger"] = field(default="squared-hellinger", kw_only=True)

    def weight(self, ratio: Tensor) -> Tensor:
        return ratio.sqrt() / 4


@dataclass(frozen=True)
class RatioWeight(MatchingWeight):
    """``base`` times h of the density ratio that ``critic`` sees at x_t, both normalised over the
    batch of all processes.

    A logit counts up to ``LARGEST_LOGIT``, head by head. A batch that is worked off in portions is
    normalised portion by portion.
    """

    base: MatchingWeight
    divergence: Divergence
    critic: Critic

    @torch.no_grad()
    def at(self, compared: Compared) -> Tensor:
        logits = self.critic.logits(compared.x_t, compared.t, compared.condition)
        ratio = logits.double().reshape(len(logits), -1).clamp(-LARGEST_LOGIT, LARGEST_LOGIT).mean(1).exp()
        weight = self.divergence.weight(ratio / _mean(ratio))
        base = self.base.at(compared)
        return base * (weight / _mean(weight)).to(base)


def _mean(values: Tensor) -> Tensor:
    return distributed.mean_of(values.mean())
