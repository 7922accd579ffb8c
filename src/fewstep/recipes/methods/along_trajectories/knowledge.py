"""Knowledge distillation (Luhman and Luhman 2021): regression on the end of the teacher's
trajectory, on pairs made once and stored, or on the fly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.objectives import EndpointRegression, SquaredL2
from fewstep.recipes import config
from fewstep.recipes.building.parts import fitting_grid
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.shares import drawn, planned
from fewstep.recipes.kit.state_sources import Transitions, build_states, forward_states, teacher_transition
from fewstep.recipes.methods.method import Built, Example, Method, Traits, student_phase
from fewstep.solvers import HEUN, Solver
from fewstep.solvers.sampling import Sampling
from fewstep.states import Pairs
from fewstep.times import RhoGrid
from fewstep.training import Stage, Term
from fewstep.training.actions import MakePairs
from fewstep.values import Costly, Few, Later


class StoredPairs(config.Section):
    """``count`` pairs, but no more than the run's steps draw, made before the first step and kept
    in the run's folder.
    """

    kind: Literal["stored"]
    count: Annotated[int, Field(ge=1, le=10_000_000), Costly(8)] = 20_000


class PairsOnTheFly(config.Section):
    """A solver run for every training state; any states will do."""

    kind: Literal["on-the-fly"]


PairsChoice = Annotated[StoredPairs | PairsOnTheFly, Field(discriminator="kind")]


class KnowledgeMethod(Method):
    """``solver_steps``: of the teacher, for one sample of the student.

    ``steps``: the student's, of which stored pairs allow only 1; ``grid``: of their times.
    """

    kind: Literal["knowledge"]
    pairs: PairsChoice = StoredPairs(kind="stored")
    solver: config.SolverChoice = config.SolverChoice(rule=HEUN)
    solver_steps: Annotated[Few, Costly(2)] = 18
    distance: config.DistanceChoice = SquaredL2()
    steps: Few = 1
    grid: Annotated[config.GridName, Later()] = RhoGrid()

    traits: ClassVar[Traits] = Traits(frozenset(), False, roles=("teacher", "student"), usual_roles=("teacher",))
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "on the fly": Example({"pairs": {"kind": "on-the-fly"}}),
        "on the fly, 2 steps": Example({"pairs": {"kind": "on-the-fly"}, "steps": 2}),
    }

    @model_validator(mode="after")
    def _one_step_from_pairs(self) -> KnowledgeMethod:
        if self.steps > 1 and isinstance(self.pairs, StoredPairs):
            raise ValueError(
                f"'steps' is {self.steps}, but stored pairs start from pure noise and make students of 1 "
                "step; use 'pairs.kind: on-the-fly'"
            )
        return self

    @property
    def effective_traits(self) -> Traits:
        because = dict.fromkeys(
            ("prior", "forward", "rollout", "ddil", "per-batch"),
            "stored pairs start from pure noise, as the usual states do, while pairs made 'on-the-fly' start anywhere",
        )
        if isinstance(self.pairs, StoredPairs):
            return replace(self.traits, because=because)
        states = frozenset({"prior"}) if self.steps == 1 else frozenset({"forward", "rollout", "ddil", "per-batch"})
        return replace(
            self.traits, states=states, because={"prior": "a student of several steps is trained at all of its times"}
        )

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling(grid=self.grid, steps=self.steps)

    def build(self, context: Context) -> Built:
        student = context.student.model
        grid = fitting_grid(self.solver, context.schedule, "method.solver", (self.solver_steps,), context.prior.time)
        solver = Solver(context.teacher, self.solver_steps, self.solver.rule, grid)
        distance = self.distance.within(context.features)
        if isinstance(self.pairs, StoredPairs):
            path = context.folder / "pairs.safetensors"
            begin = [
                MakePairs(
                    solver,
                    context.prior,
                    drawn(self.pairs.count, planned(context.training), context.training),
                    path,
                    context.training.seed,
                    device=context.device,
                )
            ]
            term = Term(
                EndpointRegression(student, distance),
                Pairs(path, context.schedule, context.prior.time, context.conditions),
                name="regression",
            )
            return Built([Stage("distill", context.training.steps, [student_phase(context, [term])], begin)])
        times = context.student_times()
        transitions = Transitions(
            times,
            context.student_map,
            teacher_transition(context.teacher, 4, context),
            lambda: forward_states(context, times),
            whole=True,
            anywhere=True,
        )
        states = build_states(context, context.prior if self.steps == 1 else transitions.data, transitions)
        term = Term(EndpointRegression(student, distance, solver), states, name="regression")
        return Built([Stage("distill", context.training.steps, [student_phase(context, [term])])])
