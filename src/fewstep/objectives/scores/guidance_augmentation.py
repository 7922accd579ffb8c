r"""Augmentation by guidance: what a guided target adds to distribution matching (Decoupled DMD, Liu
et al. 2025, arXiv:2511.22677).

With a target guided at a scale k, D_k = D_none + k (D_c - D_none), the gradient of distribution
matching on x = G(z) is, in estimates of x0,

    w (D_fake - D_k) d x / d theta
        = w (D_fake - D_c) d x / d theta + (k - 1) w (D_none - D_c) d x / d theta.

The first part is distribution matching to the target without guidance (``DistributionMatching``).
The second is here, ``GuidanceAugmentation`` without its factor k - 1: it knows no fake score, and
moves samples along the direction of guidance. Apart, each has times, noise and a weight of its own.
At equal draws, and with a weight that is the same for both, their sum is distribution matching to
the guided target.

A weight sees D_c as the target's estimate and D_none in the place of the fake score's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.condition import LABELS, Conditions
from fewstep.objectives.loss import Loss, Objective, RootMeanSquare
from fewstep.objectives.scores.matching import Compared, MatchingWeight
from fewstep.objectives.scores.passes import PASSES, Passes
from fewstep.schedule import expand
from fewstep.states import State, Step
from fewstep.targets import Target
from fewstep.times import TimeDistribution


@dataclass(frozen=True, eq=False)
class GuidanceAugmentation(Objective):
    """See the module's docstring. ``target`` is not guided; ``conditions`` says what its
    unconditional condition is. The target is told nothing of the samples.
    """

    student: nn.Module
    target: Target
    times: TimeDistribution
    weight: MatchingWeight
    conditions: Conditions = LABELS
    passes: Passes = PASSES["separate"]

    def __call__(self, step: Step, state: State) -> Loss:
        x0 = step.run(self.student, state)
        gradient = self._gradient(step, x0.detach(), state)
        total = (gradient * x0).sum() / len(x0)
        return Loss(total, {"augmentation": gradient.square().mean().sqrt()}, {"augmentation": RootMeanSquare()})

    @torch.no_grad()
    def _gradient(self, step: Step, x0: Tensor, state: State) -> Tensor:
        target = self.target.denoiser
        schedule = target.schedule
        t = self.times.draw(schedule, step.key, "matching-time", step.rows, step.start)
        x_t = schedule.add_noise(x0, t, step.noise_like("matching-noise", x0))
        told, untold = self.passes.estimates(
            partial(target.asked, x_t, t, state.condition),
            partial(target.asked, x_t, t, self.conditions.null(state.condition)),
        )
        compared = Compared(schedule, t, x_t, x0, told, untold, state.condition)
        return expand(self.weight.at(compared), x0) * (untold - told)
