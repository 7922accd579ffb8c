r"""Imitation: a student's estimate is regressed on a teacher's at the same state,

    E lambda(t) | student(x_t, t) - teacher(x_t, t) |^2.

It is how a network learns to emit another prediction (eps to v; Salimans and Ho 2022; DDIL, App.
A), and how guidance is distilled into one network that is told its scale (Meng et al. 2023, Eq. 1
and 2): the states' conditions then carry the scale w, and the teacher is ``Guided(teacher)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewstep.denoisers import Denoiser
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.score_matching import DenoisingWeight, denoising_loss
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True, eq=False)
class Imitation(Objective):
    """Trains ``student`` to estimate what ``teacher``'s denoiser does, at any states."""

    student: Denoiser
    teacher: Target
    weight: DenoisingWeight

    def __call__(self, step: Step, state: State) -> Loss:
        with torch.no_grad():
            wanted = self.teacher.denoiser(state.x, state.t, state.condition)
        estimate = self.student(state.x, state.t, state.condition)
        total = denoising_loss(estimate, wanted, self.weight.at(self.student.schedule, state.t))
        return Loss(total, {"imitation": total.detach()})
