"""Piecewise rectified flow (PeRFlow, Yan et al. 2024): the student is a flow that is straight
inside each of a few windows of time, for one Euler step in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from fewstep.denoisers import Rescheduled
from fewstep.objectives import PiecewiseVelocity
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import forward_states
from fewstep.recipes.methods.along_trajectories.rectified_flow import FlowMethod
from fewstep.recipes.methods.method import Built, Example, Traits, student_phase
from fewstep.solvers import EULER, HEUN, Rule
from fewstep.targets import Fixed
from fewstep.training import Stage, Term
from fewstep.values import Costly, Few


class PiecewiseFlowMethod(FlowMethod):
    """``steps``: the windows of time, in each of which a sample takes one Euler step. The teacher
    goes through a window by ``solver_steps`` steps of ``rule``.
    """

    kind: Literal["piecewise-rectified-flow"]
    rule: Annotated[Rule, config.ByName({rule.name: rule for rule in (EULER, HEUN)})] = HEUN
    solver_steps: Annotated[Few, Costly(2)] = 4
    steps: Few = 4

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward"}),
        False,
        roles=("teacher", "student"),
        usual_roles=("teacher",),
        because=dict.fromkeys(
            ("rollout", "ddil", "per-batch"), "a window begins at data with noise, from which the teacher goes on"
        ),
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "1 window": Example({"steps": 1, "rule": "euler"}),
        "images": Example({"steps": 2}, on_digits=True),
    }

    @property
    def steps_of_student(self) -> int:
        return self.steps

    def build(self, context: Context) -> Built:
        student, edges = context.denoising_student, context.student_times()
        teacher = Rescheduled(context.teacher, student.schedule)
        objective = PiecewiseVelocity(student, Fixed(teacher), edges, self.solver_steps, self.rule)
        term = Term(objective, forward_states(context, edges), name="velocity")
        return Built([Stage("distill", context.training.steps, [student_phase(context, [term])])])
