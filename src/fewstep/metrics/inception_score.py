r"""The inception score (Salimans et al. 2016, Sec. 4), for any classifier's probabilities p(y|x) of
K classes:

    exp E_x KL(p(y|x) || p(y)) = exp(H(E_x p(y|x)) - E_x H(p(y|x))),    H(p) = - sum_y p log p,

in [1, K]: K where each sample is surely of one class and the classes are even, 1 where all
probabilities are alike. The right side needs sums alone, so that it streams. The mean and the
spread over splits of the samples (10 in the field). It says nothing of samples within a class, and
compares with no data.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.random import Key


@dataclass(frozen=True)
class InceptionScore:
    """``mean`` over the splits, and their standard deviation ``spread`` (that of the population; 0
    for one split).
    """

    mean: float
    spread: float


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Sums a split: how many samples, ``counts`` (S,); of their ``probabilities`` (S, K); of their
    ``entropies`` (S,) in nats; float64.
    """

    counts: Tensor
    probabilities: Tensor
    entropies: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, split: Tensor, splits: int) -> ClassScores:
        """Of probabilities (N, K) that sum to 1, each of the split in [0, splits) that ``split``
        (N,) int64 says; raises ``UserError`` for what is no probability.
        """
        values = probabilities.double()
        if values.ndim != 2 or split.shape != values.shape[:1]:
            raise UserError(
                "an inception score is taken of probabilities (N, K) and splits (N,), got "
                f"{tuple(probabilities.shape)} and {tuple(split.shape)}."
            )
        # Negated, so that what is not a number fails as well.
        if not bool((values >= 0).all() & ((values.sum(1) - 1).abs() < 1e-4).all()):
            raise UserError(
                "an inception score is taken of class probabilities: at least 0 and of sum 1; apply a "
                "softmax to logits first."
            )
        membership = (torch.arange(splits)[:, None] == split).double()
        return cls(membership.sum(1), membership @ values, membership @ torch.special.entr(values).sum(1))

    def merged(self, other: ClassScores) -> ClassScores:
        """Of both parts together; raises ``UserError`` where splits or classes differ."""
        if self.probabilities.shape != other.probabilities.shape:
            raise UserError(
                f"class scores of shapes {tuple(self.probabilities.shape)} and "
                f"{tuple(other.probabilities.shape)} cannot be merged; take both from one classifier."
            )
        return ClassScores(
            self.counts + other.counts, self.probabilities + other.probabilities, self.entropies + other.entropies
        )

    def score(self) -> InceptionScore:
        """The module's score; raises ``UserError`` where a split has no sample."""
        if not bool((self.counts > 0).all()):
            raise UserError(
                f"an inception score over {len(self.counts)} splits needs a sample in each; give more "
                "samples or fewer splits."
            )
        marginal = torch.special.entr(self.probabilities / self.counts[:, None]).sum(1)
        scores = (marginal - self.entropies / self.counts).exp().tolist()
        return InceptionScore(statistics.fmean(scores), statistics.pstdev(scores))


def random_splits(count: int, splits: int, key: Key) -> Tensor:
    """A split for each of ``count`` samples, (count,) int64: sizes as equal as can be, at random,
    since samples may come sorted by class.
    """
    ranks = torch.empty(count, dtype=torch.int64)
    ranks[key.permutation("split", count)] = torch.arange(count)
    return ranks * splits // count


def inception_score(probabilities: Tensor, splits: int = 10, key: Key | None = None) -> InceptionScore:
    """Of probabilities (N, K) at once, N >= splits >= 1; the splits are ``random_splits`` of
    ``key``.
    """
    key = key or Key(0, "inception-score")
    return ClassScores.of(probabilities, random_splits(len(probabilities), splits, key), splits).score()
