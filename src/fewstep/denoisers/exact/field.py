r"""The stable target field: the exact denoiser of a finite set of reference samples (Xu et al.
2022; DisBack, Eq. 18).

For references x_0^(i), i in B,

    E[x_0 | x_t] = sum_i w_i x_0^(i),    w_i = softmax_i( -|x_t - alpha x_0^(i)|^2 / (2 sigma^2) ),

which tends to the true conditional mean as B grows. mu_t of Eq. 18 is alpha x_0^(i) and belongs to
each reference. Over one reference it is that reference, exactly. The effective sample size 1 /
sum_i w_i^2 says how many references speak: where it is below 2, the field just repeats the nearest
one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.condition import Condition, as_condition
from fewstep.denoisers.denoiser import Denoiser
from fewstep.errors import UserError
from fewstep.schedule import Schedule, as_time, expand


class StableTargetField(Denoiser):
    """``references`` (N, *D), and optionally their class ids ``labels`` (N,): a condition with a
    label then asks only references of that class.
    """

    references: Tensor
    labels: Tensor | None

    def __init__(self, schedule: Schedule, references: Tensor, labels: Tensor | None = None):
        super().__init__()
        self._schedule = schedule
        self.register_buffer("references", references.detach())
        self.register_buffer("labels", labels)

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.references.shape[1:])

    @property
    def classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        weights = self.weights(x, t, condition).to(x.dtype)
        return (weights @ self.references.flatten(1).to(x.dtype)).reshape(x.shape)

    def weights(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """The weight of each reference for each sample, (B, N), float64, rows summing to 1."""
        t = as_time(t).expand(len(x))
        points, references = x.flatten(1).to(torch.float64), self.references.flatten(1).to(torch.float64)
        alpha, sigma = expand(self._schedule.alpha(t), points), expand(self._schedule.sigma(t), points)
        # |x - a r|^2 without the (B, N, D) tensor; the softmax does not see the term |x|^2.
        logits = (alpha * (points @ references.T) - 0.5 * alpha**2 * references.square().sum(1)) / sigma**2
        labels = as_condition(condition).labels
        if labels is not None and self.labels is not None:
            other = (labels[:, None] != self.labels) & (labels[:, None] >= 0)
            if bool(other.all(1).any()):
                raise UserError(
                    "the stable target field has no reference of a class that was asked for; give it "
                    "references of every class."
                )
            logits = logits.masked_fill(other, -torch.inf)
        return torch.softmax(logits, dim=1)

    def effective_size(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """1 / sum w^2 for each sample, (B,), from 1 to N."""
        return 1 / self.weights(x, t, condition).square().sum(1)
