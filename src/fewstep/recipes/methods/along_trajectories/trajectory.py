"""Consistency trajectory models (CTM, Kim et al. 2024): a student that jumps between any two times,
by soft consistency, denoising and an adversarial term.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fewstep.denoisers import Averaged, Denoiser, EndJump, HalfLife, NetworkDenoiser, TrajectoryDenoiser, trajectory_of
from fewstep.networks import DenoisingNetwork
from fewstep.objectives import Balanced, Denoising, EDMWeight, InverseConsistency, Objective, SoftConsistency
from fewstep.recipes import config
from fewstep.recipes.kit.adversaries import AdversarialChoice, build_adversary
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import Transitions, build_states, forward_states, teacher_transition
from fewstep.recipes.methods.method import Built, Example, GridMethod, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.states import ForwardDiffusion
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes
from fewstep.training import Phase, Stage, Term
from fewstep.values import MOST, Few, Later, Share


class DenoisingTerm(config.Section):
    """Denoising of g(x, t, t) on data, so that the student stays a denoiser on the way; ``weight``
    0 leaves it out.
    """

    weight: float = Field(1.0, ge=0)
    times: config.TimesChoice = LogNormalTimes()
    weighting: config.DenoisingWeighting = EDMWeight()


class LearnsJumps(GridMethod, abc.ABC):
    """Of methods whose student is told the time at which a jump ends."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.steps > self.points:
            raise ValueError(
                f"'points' ({self.points}) must be at least 'steps' ({self.steps}), whose times are among "
                "the training grid's"
            )
        return self

    @property
    def steps_of_student(self) -> int:
        return self.steps

    def grown(self, copy: NetworkDenoiser) -> Denoiser:
        return trajectory_of(copy)


class TrajectoryMethod(LearnsJumps):
    """``max_steps``: the teacher's at most in one state (its u is drawn among them).

    ``adversarial``: balanced by gradients against the soft consistency, from step
    ``adversarial_after`` on. ``gamma``: for sampling. ``inversion``: weight of the jumps from data
    to noise, which are trained on diffused data; 0 leaves them out.
    """

    kind: Literal["trajectory"]
    max_steps: Few = 3
    denoising: DenoisingTerm = DenoisingTerm()
    adversarial: AdversarialChoice | None = None
    adversarial_after: Annotated[int, Field(ge=0, le=MOST), Share()] = 0
    gamma: float = Field(0.0, ge=0, le=1)
    inversion: Annotated[float, Field(ge=0), Later()] = 0.0

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}), False, frozenset({"copy"})
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"points": 6}),
        "critic": Example({"points": 6, "adversarial": {"kind": "teacher-trunk"}, "adversarial_after": 1}),
        "classifier features": Example({"points": 4, "adversarial": {"kind": "classifier-features"}}, on_digits=True),
    }

    @property
    def judged_apart(self) -> bool:
        return self.adversarial is not None and self.adversarial.apart

    @property
    def sampling(self) -> Sampling:
        return Sampling("gamma", self.grid, self.steps, self.gamma)

    def build(self, context: Context) -> Built:
        student, times = context.student.model, self.grid_times(context)
        assert isinstance(student, TrajectoryDenoiser)
        target = Averaged(student, HalfLife(self.ema, ramp=0.0))
        averaged = target.average
        assert isinstance(averaged, TrajectoryDenoiser)
        distance = self.distance.within(context.features)
        objective: Objective = SoftConsistency(
            student, averaged, Fixed(context.teacher), times, self.rule, self.max_steps, distance
        )
        teacher = teacher_transition(context.teacher, 2, context)
        transitions = Transitions(
            (*times[:-1], 0.0),
            context.student_map,
            teacher,
            lambda: forward_states(context, times[:-1]),
            grids={self.steps: self.coarse(times, self.steps)},
        )
        states = build_states(context, transitions.data, transitions)
        critics: list[Phase] = []
        if self.adversarial is not None:
            assert isinstance(student.network, DenoisingNetwork)
            adversary = build_adversary(self.adversarial, context, states, [], EndJump(student))
            critics = adversary.phases
            objective = Balanced(
                objective,
                adversary.generator_term.objective,
                student.network.leave,
                self.adversarial_after,
                weight=self.adversarial.weight,
            )
        terms = [Term(objective, states, name="soft consistency")]
        if self.denoising.weight > 0:
            data = ForwardDiffusion(context.data, context.schedule, self.denoising.times, conditions=context.conditions)
            terms.append(Term(Denoising(student, self.denoising.weighting), data, self.denoising.weight, "denoising"))
        if self.inversion > 0:
            upwards = InverseConsistency(
                student, averaged, Fixed(context.teacher), times, self.rule, self.max_steps, distance
            )
            terms.append(Term(upwards, forward_states(context, times[1:]), self.inversion, "inversion"))
        return Built(
            [Stage("distill", context.training.steps, [student_phase(context, terms, averages=[target]), *critics])]
        )
