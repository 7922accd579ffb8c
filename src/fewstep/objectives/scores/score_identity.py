r"""Score identity distillation, SiD (Zhou et al. 2024, arXiv:2404.04057).

The Fisher divergence between the noised student and the teacher is, in estimates of x0, E w
|D_target - D_true|^2 with the student's own exact denoiser D_true, whose dependence on the
student's weights cannot be differentiated. Since E[x | x_t] = D_true(x_t), for any function h of
x_t

    E <h(x_t), D_true(x_t)> = E <h(x_t), x>        (the score identity)

so that E <D_target - D_fake, D_target - x> estimates the same divergence where the fake score is
exact, with another gradient error where it is not. Eq. 23 takes one from the other:

    L = -a w |D_target - D_fake|^2 + w <D_target - D_fake, D_target - x>,

with x = G(z), x_t = alpha x + sigma eps, and the fake's weights held. Where the fake score is exact
and w depends on t alone, its mean is (1 - a) E w |D_target - D_fake|^2. The gradient flows through
x, and through x_t into both networks, neither of which is trained. For a Gaussian student and
teacher, a = 1/2 gives half the exact gradient of the divergence in the student's mean; the paper
uses a = 1 and 1.2.

w is any weight of distribution matching, a factor without gradient; the published code's is
``DMDWeight``, 1 / mean |x - D_target|. The loss is the mean over samples, sum over dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from fewstep.denoisers import Denoiser
from fewstep.denoisers.denoiser import frozen
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.scores.matching import Compared, DMDWeight, MatchingWeight, relative_gap
from fewstep.objectives.scores.passes import PASSES, Passes
from fewstep.schedule import expand
from fewstep.states import State, Step
from fewstep.targets import Target
from fewstep.times import TimeDistribution


@dataclass(frozen=True, eq=False)
class ScoreIdentity(Objective):
    """See the module's docstring.

    ``fake`` is trained beside it by ``ScoreMatching``; ``alpha`` is the a of Eq. 23;
    ``passes``: how the estimates of target and fake score are made.
    """

    student: nn.Module
    fake: Denoiser
    target: Target
    times: TimeDistribution
    alpha: float = 1.2
    weight: MatchingWeight = field(default_factory=DMDWeight)
    passes: Passes = PASSES["separate"]

    def __call__(self, step: Step, state: State) -> Loss:
        x0 = step.run(self.student, state)
        target = self.target.denoiser
        schedule = target.schedule
        t = self.times.draw(schedule, step.key, "identity-time", step.rows, step.start)
        x_t = schedule.add_noise(x0, t, step.noise_like("identity-noise", x0))
        with frozen(target, self.fake):
            target_x0, fake_x0 = self.passes.estimates(
                *(partial(each.asked, x_t, t, state.condition) for each in (target, self.fake))
            )
        difference = target_x0 - fake_x0
        compared = Compared(
            schedule, t, x_t.detach(), x0.detach(), target_x0.detach(), fake_x0.detach(), state.condition
        )
        weight = self.weight.at(compared)
        gap = relative_gap(schedule, t, difference.detach())
        self.target.observe(schedule.log_snr(t), gap)
        total = _mean_sum(expand(weight, x0) * difference * (target_x0 - x0 - self.alpha * difference))
        return Loss(total, {"gap": gap.mean(), "identity": total.detach()})


def _mean_sum(values: Tensor) -> Tensor:
    """Mean over samples, sum over dimensions, of (B, *D)."""
    return values.sum() / len(values)
