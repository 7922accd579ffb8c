r"""The exact denoiser of a Gaussian mixture: the teacher whose score is known.

For x_0 ~ sum_k w_k N(m_k, C_k) and x_t = a x_0 + s eps, component k has x_t ~ N(a m_k, a^2 C_k +
s^2 I), and

    E[x_0 | x_t, k] = m_k + a C_k (a^2 C_k + s^2 I)^{-1} (x_t - a m_k),

averaged over k with the posterior weights of the components. Everything is computed in float64 in
the eigenbasis of C_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.condition import Condition, as_condition
from fewstep.denoisers.denoiser import Denoiser
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.schedule import Schedule, as_time, expand


class GaussianMixture(Denoiser):
    """``weights`` (K,) positive, ``means`` (K, d), ``covariances`` (K, d, d) or variances (K,);
    optional ``labels`` (K,) give components classes.

    A condition with a label restricts the mixture to the components of that class; -1 or no label
    does not.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    vectors: Tensor
    labels: Tensor

    def __init__(
        self, schedule: Schedule, weights: Tensor, means: Tensor, covariances: Tensor, labels: Tensor | None = None
    ):
        super().__init__()
        means = means.to(torch.float64)
        count, dim = means.shape
        covariances = covariances.to(torch.float64)
        if covariances.ndim == 1:
            covariances = covariances[:, None, None] * torch.eye(dim, dtype=torch.float64)
        if weights.shape != (count,) or covariances.shape != (count, dim, dim) or not bool((weights > 0).all()):
            raise UserError(
                "GaussianMixture: needs positive weights (K,), means (K, d) and covariances (K, d, d) or "
                "variances (K,)."
            )
        self._schedule = schedule
        values, vectors = torch.linalg.eigh(covariances)
        self.register_buffer("weights", weights.to(torch.float64) / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("variances", values.clamp(min=0))
        self.register_buffer("vectors", vectors)
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64) if labels is None else labels)
        self._classes = 0 if labels is None else int(labels.max()) + 1

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.means.shape[1],)

    @property
    def classes(self) -> int:
        return self._classes

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        t, points = as_time(t).expand(len(x)), x.to(torch.float64)[:, None, :]
        alpha, sigma = expand(self._schedule.alpha(t), points), expand(self._schedule.sigma(t), points)
        centred = points - alpha * self.means
        turned = torch.einsum("kji,bkj->bki", self.vectors, centred)
        total = alpha**2 * self.variances + sigma**2
        logits = torch.log(self.weights) - 0.5 * (turned**2 / total + torch.log(total)).sum(2)
        logits = self._restrict(logits, as_condition(condition))
        inner = torch.einsum("kij,bkj->bki", self.vectors, alpha * self.variances / total * turned)
        return torch.einsum("bk,bki->bi", torch.softmax(logits, dim=1), self.means + inner).to(x.dtype)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) for x (B, d) and t (B,) or (), (B,), float64."""
        t, points = as_time(t).expand(len(x)), x.to(torch.float64)[:, None, :]
        alpha, sigma = expand(self._schedule.alpha(t), points), expand(self._schedule.sigma(t), points)
        turned = torch.einsum("kji,bkj->bki", self.vectors, points - alpha * self.means)
        total = alpha**2 * self.variances + sigma**2
        logs = torch.log(self.weights) - 0.5 * (turned**2 / total + torch.log(2 * torch.pi * total)).sum(2)
        return torch.logsumexp(logs, dim=1)

    def sample(self, rows: int, key: Key, start: int = 0) -> tuple[Tensor, Tensor]:
        """Clean samples (rows, d) float32 and the component of each (rows,)."""
        cumulative = torch.cumsum(self.weights, 0)
        index = torch.searchsorted(cumulative, key.uniform("component", rows, start).to(cumulative)).clamp(
            max=len(cumulative) - 1
        )
        noise = key.lasting("mixture", (rows, self.means.shape[1]), start).to(self.means)
        spread = torch.einsum("bij,bj->bi", self.vectors[index], torch.sqrt(self.variances[index]) * noise)
        return (self.means[index] + spread).float(), index

    def _restrict(self, logits: Tensor, condition: Condition) -> Tensor:
        if condition.labels is None or not self._classes:
            return logits
        wanted = condition.labels[:, None]
        other = (wanted != self.labels) & (wanted >= 0)
        if bool(other.all(1).any()):
            raise UserError(
                f"the mixture has no component of a class that was asked for: it knows {self._classes} classes."
            )
        return logits.masked_fill(other, -torch.inf)
