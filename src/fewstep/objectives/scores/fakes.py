r"""The fake score of distribution matching, exchangeable: an estimate of E[x_0 given x_t] under the
student's own distribution.

With x_t = alpha x + sigma eps made of the student's sample x:

- ``Learned``: a denoiser that is trained on the student's samples beside it (Diff-Instruct, VSD,
  DMD);
- ``Delta``: x itself, as if the student made nothing else; the score is then -eps / sigma, which is
  SDS (Poole et al. 2022);
- ``FieldOfSamples``: the stable target field (Xu et al. 2022; DisBack, Eq. 18) over n references,
  the sample itself and n - 1 fresh ones,

      D_fake(x_t) = sum_i w_i x^(i),    w_i = softmax_i( -|x_t - alpha x^(i)|^2 / (2 sigma^2) ).

  It has no network to train and tends to the exact score: its mean squared error falls as 1 / n. At
  n = 1 it is SDS, bit for bit.

The sample itself must be among the references, or the field is that of another sample's
neighbourhood; each sample therefore has a reference set of its own, of which n - 1 are shared by
the batch.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.networks.calls import Asking, answered, known
from fewstep.schedule import Schedule, expand
from fewstep.states import States, Step


@dataclass(frozen=True, eq=False)
class FakeScore(abc.ABC):
    """The denoiser of the student's distribution."""

    @abc.abstractmethod
    def estimate(
        self, step: Step, schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor, condition: Condition
    ) -> Tensor:
        """D_fake (B, *D) at x_t (B, *D) and t (B,) in ``schedule``, where x_t was made of the
        student's samples x0 (B, *D); called without gradient.
        """

    def asked(self, step: Step, schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor, condition: Condition) -> Asking:
        """The same, whose network calls wait to be made; a class that does not say its calls makes
        them itself.
        """
        return known(self.estimate(step, schedule, x_t, t, x0, condition))


@dataclass(frozen=True, eq=False)
class Learned(FakeScore):
    """What ``denoiser`` says; another phase trains it."""

    denoiser: Denoiser

    def estimate(
        self, step: Step, schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor, condition: Condition
    ) -> Tensor:
        return answered(self.asked(step, schedule, x_t, t, x0, condition))

    def asked(self, step: Step, schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor, condition: Condition) -> Asking:
        """See ``FakeScore``."""
        return self.denoiser.asked(x_t, t, condition)


@dataclass(frozen=True, eq=False)
class Delta(FakeScore):
    """The sample that x_t was made of."""

    def estimate(
        self, step: Step, schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor, condition: Condition
    ) -> Tensor:
        return x0


@dataclass(frozen=True, eq=False)
class FieldOfSamples(FakeScore):
    """See the module's docstring.

    ``count`` >= 1 references: the sample itself, and count - 1 that ``student`` makes of ``states``
    at this step, independent of the batch.

    Where samples have class labels, fresh references count only for samples of their own class, and
    all count for a sample without class (-1). Conditions that fresh samples cannot share (a
    context, a guidance scale, probabilities in the place of labels) are refused with ``UserError``.
    """

    student: nn.Module
    states: States
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"a field of {self.count} samples as fake score: it needs at least 1, the sample itself.")

    @torch.no_grad()
    def estimate(
        self, step: Step, schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor, condition: Condition
    ) -> Tensor:
        if self.count == 1:
            return x0
        references, labels = step.once(self, lambda: self._fresh(step))
        own, points = x0.flatten(1).double(), x_t.flatten(1).double()
        shared = references.flatten(1).double()
        alpha, sigma = expand(schedule.alpha(t), points), expand(schedule.sigma(t), points)
        # -|x_t - alpha x|^2 / (2 sigma^2) without |x_t|^2, which the softmax does not see.
        products = torch.cat([(points * own).sum(1, keepdim=True), points @ shared.T], dim=1)
        squares = torch.cat([own.square().sum(1, keepdim=True), shared.square().sum(1).expand(len(own), -1)], dim=1)
        logits = (alpha * products - 0.5 * alpha**2 * squares) / sigma**2
        asked = _class_ids(condition)
        if asked is not None:
            logits[:, 1:].masked_fill_(_foreign(asked, labels), -torch.inf)
        weights = torch.softmax(logits, dim=1)
        return (weights[:, :1] * own + weights[:, 1:] @ shared).reshape(x0.shape).to(x0.dtype)

    def _fresh(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """count - 1 samples and their labels, from a place of their own: the same for every
        process, and for every portion of a step.
        """
        key = replace(step.key, stage=f"{step.key.stage}/field-of-samples")
        apart = Step(key, self.count - 1, device=step.device)
        state = apart.state(self.states)
        return apart.sample(self.student, state), _class_ids(state.condition)


def as_fake(fake: Denoiser | FakeScore) -> FakeScore:
    """A bare denoiser as a ``Learned`` fake score; a fake score as it is."""
    return fake if isinstance(fake, FakeScore) else Learned(fake)


def _class_ids(condition: Condition) -> Tensor | None:
    labels = condition.labels
    if condition.context or condition.guidance is not None or (labels is not None and labels.ndim > 1):
        raise UserError(
            "a field of samples as fake score knows class labels only, and the states carry another "
            "condition; use a learned fake score."
        )
    return labels


def _foreign(labels: Tensor, references: Tensor | None) -> Tensor:
    """Which references (columns) are of another class than the samples (rows), (B, N)."""
    if references is None:
        raise UserError(
            "a field of samples as fake score: its states carry no labels but the samples do; draw the "
            "references from states with classes."
        )
    return (labels[:, None] != references) & (labels[:, None] >= 0)
