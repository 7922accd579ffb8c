r"""The adversarial consistency of phased consistency models (PCM, Wang et al. 2024): both sides of
consistency inside a phase, told apart by a critic.

Consistency distillation on a ``Ladder`` with edges compares two ends at the lower edge e of a
phase: the student's, from x_t, and that of its average, from one step of the teacher. A critic is
asked which of both it sees, at a noise level of the same phase,

    x_tau = a x_e + sqrt(sigma_tau^2 - a^2 sigma_e^2) eps,    a = alpha_tau / alpha_e,    tau
    uniform from e to the phase's upper end,

which has the distribution of the forward process at tau if x_e has it at e. The average's end is
the real side and the student's the fake. Where both ends agree there is nothing to tell apart: the
term has the same solution as consistency itself, whatever the data are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoisers.denoiser import frozen
from fewstep.objectives.games.adversarial import Critic, GANLoss
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.trajectories.consistency_distillation import ConsistencyDistillation
from fewstep.objectives.trajectories.ladder import Ladder
from fewstep.schedule import Schedule
from fewstep.solvers.transition import renoised
from fewstep.states import State, Step


def seen_in_phase(
    step: Step, schedule: Schedule, ladder: Ladder, end: Tensor, edge: Tensor, side: str, role: str
) -> tuple[Tensor, Tensor]:
    """(ends (B, *D) at the lower edges ``edge`` (B,) as a critic sees them, at times (B,) of the
    same phase). Times are drawn for a ``side`` of the game, noise for a side and a ``role`` in it.
    """
    low = edge.clamp(min=schedule.t_min)
    tau = low + (ladder.above(edge) - low) * step.key.uniform(f"{side}-time", len(edge), step.start)
    return renoised(schedule, end, edge, tau, step.noise_like(f"{side}-{role}-noise", end)), tau


@dataclass(frozen=True, eq=False)
class PhasedGenerator(Objective):
    """Moves the student's ends to where ``critic`` takes them for its average's; the critic is not
    trained by it. The student and its states are ``consistency``'s.
    """

    consistency: ConsistencyDistillation
    critic: Critic
    loss: GANLoss

    def __call__(self, step: Step, state: State) -> Loss:
        student, ladder = self.consistency.student, self.consistency.ladder
        end, edge = self.consistency.end(state, step.run(student, state)), ladder.below(state.t)[1]
        x, tau = seen_in_phase(step, student.schedule, ladder, end, edge, "adversarial", "fake")
        with frozen(self.critic):
            total = self.loss.generator(self.critic.logits(x, tau, state.condition))
        return Loss(total, {"adversarial": total.detach()})


@dataclass(frozen=True, eq=False)
class PhasedCritic(Objective):
    """Trains ``critic`` to tell the ends of the average from those of the student, which nothing
    reaches.
    """

    critic: Critic
    consistency: ConsistencyDistillation
    loss: GANLoss

    def __call__(self, step: Step, state: State) -> Loss:
        student, ladder = self.consistency.student, self.consistency.ladder
        edge = ladder.below(state.t)[1]
        with torch.no_grad():
            ours = self.consistency.end(state, step.sample(student, state))
        logits = {
            role: self.critic.logits(
                *seen_in_phase(step, student.schedule, ladder, end, edge, "critic", role), state.condition
            )
            for role, end in (("real", self.consistency.target_end(state)), ("fake", ours))
        }
        total = self.loss.critic(logits["real"], logits["fake"])
        means = {f"critic_{role}": each.detach().mean() for role, each in logits.items()}
        return Loss(total, {"critic": total.detach(), **means})
