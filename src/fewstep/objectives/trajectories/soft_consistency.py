r"""Soft consistency of a trajectory model: a jump from t to s agrees with the teacher to u and a
jump from there (Kim et al. 2024, Eq. 9).

For t >= u >= s, all on one grid,

    E distance( G_avg(G(x_t, t, s), s, 0),  G_avg(G_avg(x_u, u, s), s, 0) ),    x_u the teacher's
    solver from x_t,

compared at clean samples, where distances mean something; G_avg, the model's average, is frozen,
and the gradient passes through its outer jump to the student's. The nearer u is to t, the more is
learned from the student's own jump (u the next time down is consistency distillation when s is
t_min); u = s is the teacher alone.

For each state, s is uniform among the times below t, then u among those below t and not below s, at
most ``max_steps`` of the grid away. The whole loss of the paper adds denoising of g(x, t, t), which
is ``Denoising`` on the same model, and an adversarial term.

All of this goes down, s < t. A bi-directional integrator (one of the slides' open directions,
"accurate and efficient inversion") also needs jumps upwards, which ``InverseConsistency`` trains:
for t < u <= s, with x_u the teacher's solver from x_t,

    E distance( G(x_t, t, s) / sigma_s,  G_avg(x_u, u, s) / sigma_s ).

What is compared are noisy samples in units of their noise, not clean ones: the flow down to clean
samples forgets most of the noise, and it is the noise that inversion is asked for. With g = skip x
+ out F the difference is (1 - t / s) times that of F where t is well below the data's scale (VE,
EDM's prediction), so that no level outweighs the others. The map that has no loss is the teacher's
flow: under exact steps G = flow(t, s) wherever G_avg is, and from s = u, the teacher alone, this
spreads over the grid.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import Denoiser, TrajectoryDenoiser
from fewstep.errors import UserError
from fewstep.objectives.distance import Distance, SquaredL2
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.trajectories.ladder import check_decreasing, index_among
from fewstep.schedule import expand
from fewstep.solvers.rule import HEUN, Rule
from fewstep.solvers.transition import teacher_step
from fewstep.states import State, Step
from fewstep.system import distributed
from fewstep.targets import Target


@dataclass(frozen=True, eq=False)
class _Consistency(Objective, abc.ABC):
    """What both ways have in common: ``student`` and its frozen average on ``times``, which fall to
    t_min; ``rule`` is EULER or HEUN, ``max_steps`` >= 1.
    """

    _NAME: ClassVar[str]

    student: TrajectoryDenoiser
    averaged: TrajectoryDenoiser
    teacher: Target
    times: Sequence[float]
    rule: Rule = HEUN
    max_steps: int = 3
    distance: Distance = field(default_factory=SquaredL2)

    def __post_init__(self) -> None:
        check_decreasing(self.times, f"{self._NAME}'s times")
        if self.times[-1] == 0 or self.max_steps < 1:
            raise UserError(
                f"{self._NAME}: its times must end at t_min, not at 0, and max_steps must be at least 1, got "
                f"{self.times[-1]:g} and {self.max_steps}."
            )
        if any(parameter.requires_grad for parameter in self.averaged.parameters()):
            raise UserError(
                f"{self._NAME}: the averaged model must be frozen, since it makes the targets; give an average of "
                "the student, or a frozen copy."
            )

    def __call__(self, step: Step, state: State) -> Loss:
        now, between, end = self.indices(step, state)
        times = torch.tensor(self.times, dtype=torch.float64)
        # x_u, where the average's jump from there is the target.
        with torch.no_grad():
            x = _carried(self.teacher.denoiser, self.rule, self.times, state, now, between)
            landed = self.averaged.jump(x, times[between], times[end], state.condition)
        total = self._apart(state, times[now], times[end], landed).mean()
        return Loss(total, {self._NAME.replace(" ", "_"): total.detach()})

    @abc.abstractmethod
    def indices(self, step: Step, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The indices in ``times`` of t, u and s, each (B,)."""

    @abc.abstractmethod
    def _apart(self, state: State, t: Tensor, s: Tensor, landed: Tensor) -> Tensor:
        """The distances (B,) of the student's jumps, t to s, from the target's, which ``landed``
        at s.
        """

    def _drawn(self, step: Step, count: int) -> tuple[Tensor, Tensor]:
        """Uniform numbers (count,) that choose s, and u."""
        name = self._NAME.replace(" ", "-")
        return (
            step.key.uniform(f"{name}-end", count, step.start),
            step.key.uniform(f"{name}-between", count, step.start),
        )


@dataclass(frozen=True, eq=False)
class SoftConsistency(_Consistency):
    """Trains ``student`` on states at ``times[:-1]``; ``times`` falls to t_min, ``rule`` is EULER
    or HEUN, ``max_steps`` >= 1.

    Raises ``UserError`` for an average that is not frozen, for times that do not fall or end at 0,
    and for states at other times.
    """

    _NAME: ClassVar[str] = "soft consistency"

    def indices(self, step: Step, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The indices in ``times`` of t, u and s, each (B,): t < u <= s, as indices."""
        now = index_among(self.times, state.t, self._NAME)
        u_end, u_between = self._drawn(step, len(now))
        below = len(self.times) - 1 - now
        end = now + 1 + (u_end * below).long()
        between = now + 1 + (u_between * (end - now).clamp(max=self.max_steps)).long()
        return now, between, end

    def _apart(self, state: State, t: Tensor, s: Tensor, landed: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.averaged.jump(landed, s, 0.0, state.condition)
        ours = self.student.jump(state.x, t, s, state.condition)
        return self.distance(self.averaged.jump(ours, s, 0.0, state.condition), target)


@dataclass(frozen=True, eq=False)
class InverseConsistency(_Consistency):
    """Trains ``student`` to jump upwards from states at ``times[1:]``; everything else as in
    ``SoftConsistency``, and refused as there.
    """

    _NAME: ClassVar[str] = "inverse consistency"

    def indices(self, step: Step, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The indices in ``times`` of t, u and s, each (B,): s <= u < t, as indices. s is uniform
        among the times above t, u among those up to s.
        """
        now = index_among(self.times, state.t, self._NAME, "up")
        u_end, u_between = self._drawn(step, len(now))
        end = (u_end * now).long()
        between = now - 1 - (u_between * (now - end).clamp(max=self.max_steps)).long()
        return now, between, end

    def _apart(self, state: State, t: Tensor, s: Tensor, landed: Tensor) -> Tensor:
        noise = expand(self.student.schedule.sigma(s), state.x)
        return self.distance(self.student.jump(state.x, t, s, state.condition) / noise, landed / noise)


def _carried(teacher: Denoiser, rule: Rule, grid: Sequence[float], state: State, now: Tensor, until: Tensor) -> Tensor:
    """x carried by the teacher's steps along ``grid`` from the indices ``now`` (B,) to ``until``
    (B,), which lie all after or all before them.
    """
    times, way = torch.tensor(grid, dtype=torch.float64), 1 if bool((until > now).any()) else -1
    x, at = state.x.clone(), now.clone()
    # As many steps as the sample that goes farthest needs, whichever process it is in: sharded
    # networks must be called equally often by all.
    for _ in range(distributed.largest(int((until - now).abs().max()))):
        # Only those on their way, the others cost nothing; where none is left, one is taken through
        # and not kept.
        rows = (at != until).nonzero()[:, 0]
        if not len(rows):
            teacher_step(rule, teacher, x[:1], times[at[:1] - way], times[at[:1]], state.condition[torch.tensor([0])])
            continue
        x[rows] = teacher_step(rule, teacher, x[rows], times[at[rows]], times[at[rows] + way], state.condition[rows])
        at[rows] += way
    return x
