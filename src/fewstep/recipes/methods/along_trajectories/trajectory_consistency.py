"""Trajectory consistency distillation (TCD, Zheng et al. 2024): consistency to any time below, and
sampling with a noise scale of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from fewstep.denoisers import Averaged, HalfLife, TrajectoryDenoiser
from fewstep.objectives import Ladder, TrajectoryConsistency
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import Transitions, build_states, forward_states, teacher_transition
from fewstep.recipes.methods.along_trajectories.trajectory import LearnsJumps
from fewstep.recipes.methods.method import Built, Example, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.targets import Fixed
from fewstep.training import Stage, Term
from fewstep.values import Few


class TrajectoryConsistencyMethod(LearnsJumps):
    """``skip``: how many of the ``points`` a teacher's step takes. ``end``: the share of states
    whose jump goes to clean samples; the others' end is drawn. ``gamma``: for sampling.
    """

    kind: Literal["trajectory-consistency"]
    skip: Few = 1
    end: float = Field(0.25, ge=0, le=1)
    gamma: float = Field(0.3, ge=0, le=1)

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}), False, frozenset({"copy"})
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"points": 6}),
        "deterministic, 3 steps": Example({"points": 6, "gamma": 0.0, "steps": 3, "skip": 2}),
        "images": Example({"points": 4, "end": 0.0}, on_digits=True),
    }

    @property
    def sampling(self) -> Sampling:
        return Sampling("strategic", self.grid, self.steps, self.gamma)

    def build(self, context: Context) -> Built:
        student, times = context.student.model, self.grid_times(context)
        assert isinstance(student, TrajectoryDenoiser)
        target = Averaged(student, HalfLife(self.ema, ramp=0.0))
        averaged = target.average
        assert isinstance(averaged, TrajectoryDenoiser)
        ladder = Ladder(times, self.skip)
        objective = TrajectoryConsistency(
            student,
            averaged,
            Fixed(context.teacher),
            ladder,
            self.rule,
            self.distance.within(context.features),
            self.end,
        )
        transitions = Transitions(
            (*ladder.starts, 0.0),
            context.student_map,
            teacher_transition(context.teacher, 2, context),
            lambda: forward_states(context, ladder.starts),
            grids={self.steps: self.coarse(times, self.steps)},
        )
        states = build_states(context, transitions.data, transitions)
        phase = student_phase(context, [Term(objective, states, name="trajectory consistency")], averages=[target])
        return Built([Stage("distill", context.training.steps, [phase])])
