"""Phased consistency models (PCM, Wang et al. 2024): consistency inside each of several segments of
the grid, with an adversarial term between its two sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.denoisers import Averaged, Boundary, Denoiser, FrozenTrunk, HalfLife
from fewstep.objectives import ConsistencyDistillation, Hinge, Ladder, PhasedCritic, PhasedGenerator
from fewstep.recipes import config
from fewstep.recipes.kit.adversaries import head_on_teacher
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import forward_states
from fewstep.recipes.methods.method import Built, Example, GridMethod, Traits, student_phase, trained
from fewstep.solvers.sampling import Sampling
from fewstep.targets import Fixed
from fewstep.training import Adam, Phase, Stage, Term
from fewstep.values import Count, Few, Positive


class PhasedAdversary(config.Section):
    """A critic that tells the student's ends from its average's: a head of ``width`` on the frozen
    teacher's bottleneck, in a phase of its own; ``weight``: the student's term's.
    """

    weight: Positive = 0.1
    width: Count = 64
    optimizer: config.OptimizerChoice = Adam()


class PhasedMethod(GridMethod):
    """``phases``: equal parts of the ``points``, in each of which the student goes to the lower
    edge; a sample takes one step in each. ``skip``: how many of the points a teacher's step takes.
    """

    kind: Literal["phased-consistency"]
    phases: Few = 4
    skip: Few = 1
    steps: Few = 4
    adversarial: PhasedAdversary | None = None
    points: int = Field(16, ge=2, le=10_000)

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward"}),
        False,
        roles=("teacher", "target", "student"),
        usual_roles=("teacher", "target"),
        because=dict.fromkeys(
            ("rollout", "ddil", "per-batch"),
            "a phase goes to its own lower edge, so that its samples are no consistency model's multistep samples",
        ),
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"points": 8, "phases": 2, "steps": 2}),
        "critic": Example({"points": 8, "phases": 4, "steps": 4, "adversarial": {}}),
        "images": Example({"points": 4, "phases": 2, "steps": 2, "adversarial": {}}, on_digits=True),
    }

    @model_validator(mode="after")
    def _phases_fit(self) -> PhasedMethod:
        if self.points % self.phases or self.steps != self.phases:
            raise ValueError(
                f"'points' ({self.points}) must be a multiple of 'phases' ({self.phases}), and 'steps' ({self.steps}) "
                "must be 'phases', since a sample takes one step in each phase"
            )
        return self

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling("ddim", self.grid, self.steps)

    def wrapped(self, student: Denoiser) -> Denoiser:
        return Boundary(student)

    def build(self, context: Context) -> Built:
        student, times = context.denoising_student, self.grid_times(context)
        ladder = Ladder.in_parts(times, self.skip, self.phases)
        target = Averaged(student, HalfLife(self.ema, ramp=0.0))
        averaged = target.average
        assert isinstance(averaged, Denoiser)
        objective = ConsistencyDistillation(
            student,
            context.reflected(averaged, "target"),
            Fixed(context.teacher),
            ladder,
            self.rule,
            self.distance.within(context.features),
        )
        states = forward_states(context, ladder.starts)
        terms, critics = [Term(objective, states, name="consistency")], list[Phase]()
        if self.adversarial is not None:
            head = head_on_teacher(context, self.adversarial.width, "method.adversarial")
            critic, loss = FrozenTrunk(context.original, head), Hinge()
            terms.append(Term(PhasedGenerator(objective, critic, loss), states, self.adversarial.weight, "adversarial"))
            of_critic = Term(PhasedCritic(critic, objective, loss), states, name="critic")
            critics.append(trained("critic", critic, [of_critic], self.adversarial.optimizer))
        phase = student_phase(context, terms, averages=[target])
        return Built([Stage("distill", context.training.steps, [phase, *critics])])
