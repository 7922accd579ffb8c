r"""The average velocity of a trajectory (MeanFlow, Geng et al. 2025, arXiv:2505.13447), on any
schedule.

A schedule's x is seen on the straight line from data to noise, where the paper works:

    z = x / (alpha + sigma) = (1 - w) x_0 + w eps,    w = sigma / (alpha + sigma) in [0, 1],

which under ``RectifiedFlow`` is x and t themselves. The velocity at w is v = d z / d w = eps - x_0,
and its average between r and w is u = (z_w - z_r) / (w - r), r now a place on the line. Then

    u = v - (w - r) d u / d w,

the derivative along the trajectory; the right side, without gradient, is what u is trained on. At r
= w it is v: flow matching.

A trajectory model g (``TrajectoryDenoiser``), whose jump to the time of r is G, is such an average:
u = (z - g) / w. With D the clean sample of the trajectory (v = (z - D) / w), the target is

    g <- (1 - k) D + k (g - w d g / d w),    k = 1 - r / w,

and u's error is that of g over w. D is the teacher's estimate or, where there is no teacher, the
sample x_0 of which the state was made; its mean given x_t is the same, and the tangent then is the
conditional one, as in the paper.

``MeanFlow``: the square error of a sample, its mean over dimensions, is divided by (itself + c)^p
without gradient; p = 0 is the plain square.

``AlignedFlow`` (AYF-EMD, Align Your Flow, Sabour et al. 2025, arXiv:2506.14603, Alg. 1): the flow
map f = z + (r - w) u should not move along the trajectory, and moves by

    d f / d w = v - u + a (r - w) d u / d w,

which is the target less u. a rises over the first steps to a last value a little below 1. The
tangent is divided by its root mean square and c, and

    L = E mean | u - sg(u) - d f / d w / (|d f / d w| + c) |^2.

At r = 0 this follows continuous consistency's tangent, at r = w flow matching's. As c grows, c
times its gradient tends to that of MeanFlow's plain square.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import TrajectoryDenoiser
from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.trajectories.continuous_time import along_trajectory
from fewstep.schedule import Schedule, expand
from fewstep.states import State, Step
from fewstep.targets import Target


@dataclass(frozen=True)
class FlowLine:
    """The straight line from data to noise, on which every schedule's samples lie up to a factor;
    see the module's docstring.
    """

    schedule: Schedule

    def place(self, t: Tensor) -> Tensor:
        """w (B,), float64, at times t (B,)."""
        sigma = self.schedule.sigma(t)
        return sigma / (self.schedule.alpha(t) + sigma)

    def time(self, place: Tensor) -> Tensor:
        """The time t (B,) of a place w (B,) in [0, 1); 0 at 0."""
        level = torch.where(place > 0, place, 0.5)
        return torch.where(place > 0, self.schedule.time_at_sigma(level / (1 - level)), 0.0)

    def tangents(self, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d x_t / d w (B, *D), d t / d w (B,)) along the trajectory whose clean sample is x0 (B,
        *D).
        """
        schedule = self.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        rate = (alpha + sigma) ** 2 / (schedule.sigma_rate(t) * alpha - sigma * schedule.alpha_rate(t))
        return along_trajectory(schedule, x, x0, t, rate), rate


@dataclass(frozen=True, eq=False)
class AverageVelocity(Objective, abc.ABC):
    """Trains ``student`` to jump from its states' times to others below; see the module's
    docstring.

    ``teacher``: whose trajectories these are; None for the data's own, for states that carry x0.
    ``same``: the share of states with r = w, and ``end`` that with r = 0; the others' r is uniform
    in [0, w).

    Raises ``UserError`` for shares out of these bounds or whose sum is above 1, and, without a
    teacher, for states without x0.
    """

    student: TrajectoryDenoiser
    teacher: Target | None
    same: float = 0.5
    end: float = 0.25

    def __post_init__(self) -> None:
        if not (self.same >= 0 and self.end >= 0 and self.same + self.end <= 1):
            raise UserError(
                "average velocity: 'same' and 'end' must be shares of at most 1 in sum, got "
                f"{self.same} and {self.end}."
            )

    @property
    def full_precision(self) -> bool:
        return True

    def missing(self, step: Step, state: State, whole: float = 1.0) -> tuple[Tensor, Tensor]:
        """(u (B, *D) up to a constant, what it lacks of its target (B, *D)), the second without
        gradient; ``whole``: the share of the derivative in the target.
        """
        line = FlowLine(self.student.schedule)
        place = line.place(state.t)
        until = self.until(step, place)
        s = torch.where(until == place, state.t, line.time(torch.where(until == place, 0.0, until)))
        x0 = self._clean(state)

        def estimated(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return self.student.estimate(x, t, s, condition)

        estimate, slope = step.jvp(estimated, state.x, state.t, state.condition, line.tangents(state.x, x0, state.t))
        wanted = self.wanted(estimate.detach(), slope, x0, place, until, whole)
        return -estimate / expand(place, estimate), (estimate.detach() - wanted) / expand(place, wanted)

    def until(self, step: Step, place: Tensor) -> Tensor:
        """r (B,), float64, for the places w (B,) of a step's states."""
        kind, share = (step.key.uniform(f"mean-flow-{name}", len(place), step.start) for name in ("kind", "end"))
        below = torch.where(kind < self.same + self.end, 0.0, share * place)
        return torch.where(kind < self.same, place, below)

    def wanted(
        self, estimate: Tensor, slope: Tensor, x0: Tensor, place: Tensor, until: Tensor, whole: float = 1.0
    ) -> Tensor:
        """What g (B, *D) is trained on, from g itself and d g / d w, the trajectory's x0, the
        places w and r (B,), and the share of the derivative.
        """
        share = whole * (1 - until / place)
        return expand(1 - share, x0) * x0 + expand(share, x0) * (estimate - expand(place, x0) * slope)

    @torch.no_grad()
    def _clean(self, state: State) -> Tensor:
        if self.teacher is not None:
            return self.teacher.denoiser(state.x, state.t, state.condition)
        if state.x0 is None:
            raise UserError(
                "average velocity: these states carry no x0, of which the data's own velocity is made; give states "
                "made of data, such as ForwardDiffusion, or a teacher."
            )
        return state.x0


@dataclass(frozen=True, eq=False)
class MeanFlow(AverageVelocity):
    """See the module's docstring. ``power`` p >= 0 and ``constant`` c > 0; raises ``UserError`` for
    others.
    """

    power: float = 1.0
    constant: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.power >= 0 and self.constant > 0):
            raise UserError(
                "average velocity: 'power' must be at least 0 and 'constant' above 0, got "
                f"{self.power} and {self.constant}."
            )

    def __call__(self, step: Step, state: State) -> Loss:
        velocity, missing = self.missing(step, state)
        size = (velocity - velocity.detach() - missing).square().flatten(1).mean(1)
        total = (size / (size.detach() + self.constant) ** self.power).mean()
        return Loss(total, {"mean_flow": size.detach().mean()})


@dataclass(frozen=True, eq=False)
class AlignedFlow(AverageVelocity):
    """See the module's docstring.

    ``warmup`` >= 0: the steps of the stage over which a rises to ``share``, in (0, 1];
    ``constant``: c, above 0. Raises ``UserError`` for others.
    """

    same: float = 0.0
    warmup: int = 0
    share: float = 0.99
    constant: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.warmup >= 0 and 0 < self.share <= 1 and self.constant > 0):
            raise UserError(
                "aligned flow: 'warmup' must be at least 0, 'share' in (0, 1] and 'constant' above 0, got "
                f"{self.warmup}, {self.share} and {self.constant}."
            )

    def __call__(self, step: Step, state: State) -> Loss:
        risen = min(1.0, (step.key.step + 1) / self.warmup) if self.warmup else 1.0
        velocity, tangent = self.missing(step, state, self.share * risen)
        size = tangent.square().flatten(1).mean(1).sqrt()
        tangent = tangent / expand(size + self.constant, tangent)
        total = (velocity - velocity.detach() - tangent).square().mean()
        return Loss(total, {"aligned_flow": total.detach(), "tangent": size.mean()})
