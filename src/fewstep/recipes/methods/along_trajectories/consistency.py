"""Consistency distillation (Song et al. 2023), latent consistency (LCM, Luo et al. 2023): the
student gives the same end for neighbouring points of the teacher's trajectory.

LCM is this with a ``skip`` of several grid steps and a ``guidance`` range: the teacher is guided,
the student is told the scale. On a flow teacher it is the slides' "combine CD and RF".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.denoisers import Averaged, Boundary, Denoiser, HalfLife, NetworkDenoiser, grown_denoiser
from fewstep.objectives import ConsistencyDistillation, Ladder
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import Transitions, build_states, forward_states, teacher_transition
from fewstep.recipes.methods.along_trajectories.progressive import GuidanceRange
from fewstep.recipes.methods.method import Built, Example, GridMethod, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.states import States, WithGuidance
from fewstep.targets import Fixed
from fewstep.training import Stage, Term
from fewstep.values import Few


class ConsistencyMethod(GridMethod):
    """``skip``: how many of the ``points`` a teacher's step takes.

    ``intervals``: consistency within each of so many equal parts of the grid (Heek et al. 2024).
    ``rollout_steps``: of the student's own trajectories, one of these numbers each.
    """

    kind: Literal["consistency"]
    skip: Few = 1
    intervals: Few = 1
    guidance: GuidanceRange | None = None
    rollout_steps: list[Few] = Field([3, 4, 5], min_length=1)

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}),
        False,
        roles=("teacher", "target", "student"),
        usual_roles=("teacher", "target"),
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"points": 8, "rollout_steps": [2, 3]}),
        "2 intervals": Example({"points": 8, "intervals": 2, "rollout_steps": [2]}),
        "guided": Example({"points": 4, "rollout_steps": [2], "guidance": {"low": 1.0, "high": 3.0}}, on_digits=True),
    }

    @model_validator(mode="before")
    @classmethod
    def _a_step_an_interval(cls, values: Any) -> Any:
        """With several intervals a sample takes a step in each, so that ``steps`` need not be said,
        and cannot be anything else.
        """
        intervals = values.get("intervals", 1) if isinstance(values, dict) else 1
        if not isinstance(intervals, int) or intervals < 2:
            return values
        if values.get("steps", intervals) != intervals:
            raise ValueError(
                f"'steps' is {values['steps']}, but with {intervals} 'intervals' a sample takes one step in "
                f"each; leave 'steps' out, or set it to {intervals}"
            )
        return {**values, "steps": intervals}

    @model_validator(mode="after")
    def _intervals_fit(self) -> ConsistencyMethod:
        if self.points % self.intervals or max(self.rollout_steps) > self.points:
            raise ValueError(
                f"'points' ({self.points}) must be a multiple of 'intervals' ({self.intervals}), and at "
                "least the largest of 'rollout_steps'"
            )
        return self

    @property
    def effective_traits(self) -> Traits:
        states = self.traits.states if self.intervals == 1 else frozenset({"forward"})
        because = (
            dict.fromkeys(
                ("rollout", "ddil", "per-batch"),
                "with several intervals its samples are no consistency model's multistep samples",
            )
            if self.intervals > 1
            else {}
        )
        return replace(
            self.traits,
            states=states,
            students=self.traits.students if self.guidance is None else frozenset({"copy"}),
            because=because,
        )

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        guidance = None if self.guidance is None else self.guidance.sample_at
        return Sampling(
            "ddim" if self.intervals > 1 else "renoise", self.grid, self.steps_of_student, guidance=guidance
        )

    def grown(self, copy: NetworkDenoiser) -> Denoiser:
        return copy if self.guidance is None else grown_denoiser(copy, guidance=True)

    def wrapped(self, student: Denoiser) -> Denoiser:
        return Boundary(student)

    def guided(self, states: States) -> States:
        return states if self.guidance is None else WithGuidance(states, self.guidance.low, self.guidance.high)

    def build(self, context: Context) -> Built:
        student, times = context.denoising_student, self.grid_times(context)
        ladder = Ladder.in_parts(times, self.skip, self.intervals)
        target = Averaged(student, HalfLife(self.ema, ramp=0.0))
        averaged = target.average
        assert isinstance(averaged, Denoiser)
        teacher = context.teacher if self.guidance is None else context.guided_teacher
        distance = self.distance.within(context.features)
        objective = ConsistencyDistillation(
            student, context.reflected(averaged, "target"), Fixed(teacher), ladder, self.rule, distance
        )
        grids = {steps: self.coarse(times, steps) for steps in self.rollout_steps}
        transitions = Transitions(
            (*ladder.starts, 0.0),
            context.student_map,
            teacher_transition(teacher, 2, context),
            lambda: forward_states(context, ladder.starts),
            grids=grids,
        )
        states = build_states(context, transitions.data, transitions)
        return Built(
            [
                Stage(
                    "distill",
                    context.training.steps,
                    [student_phase(context, [Term(objective, states, name="consistency")], averages=[target])],
                )
            ]
        )
