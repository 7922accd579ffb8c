"""Rectified flow (Liu et al. 2022; InstaFlow, Liu et al. 2023): reflow straightens the teacher's
trajectories, then a regression distils them into one step.

The student is a flow (``Rescheduled`` around a copy of the teacher, whatever its schedule), so any
teacher will do.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.condition import Classes
from fewstep.denoisers import Denoiser, Rescheduled
from fewstep.objectives import EndpointRegression, SquaredL2, VelocityRegression
from fewstep.recipes import config
from fewstep.recipes.building.parts import fitting_grid
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.shares import divided, drawn, extended, planned
from fewstep.recipes.methods.method import Built, Example, Method, Traits, student_phase
from fewstep.schedule import RectifiedFlow
from fewstep.solvers import HEUN, FlowMap, Rescaled, Solver
from fewstep.solvers.sampling import Sampling
from fewstep.states import Pairs, Prior
from fewstep.times import UniformGrid
from fewstep.training import Stage, Term
from fewstep.training.actions import MakePairs
from fewstep.values import Costly, Few


class FlowMethod(Method, abc.ABC):
    """Of methods whose student is a flow, whatever the teacher's schedule, sampled by Euler steps
    from where no signal is left.
    """

    @property
    def sampling(self) -> Sampling:
        return Sampling("ddim", UniformGrid(), self.steps_of_student)

    def wrapped(self, student: Denoiser) -> Denoiser:
        return Rescheduled(student, RectifiedFlow())

    def prior(self, student: Denoiser, time: float) -> Prior:
        # A flow starts where no signal is left.
        return Prior(student.schedule, student.shape, 1.0, 1.0, Classes(student.classes))


class RectifiedFlowMethod(FlowMethod):
    """``reflows`` rounds of reflow on ``pairs`` couplings each (no more than its steps draw), the
    first made by ``solver_steps`` steps of the teacher, the later ones by ``flow_steps`` Euler
    steps of the flow. ``distil``: the share of the run that the last stage takes, which makes a
    one-step student of the flow; 0 for none: the student is then the flow, for ``steps`` Euler
    steps.
    """

    kind: Literal["rectified-flow"]
    reflows: Few = 1
    pairs: Annotated[int, Field(ge=1, le=10_000_000), Costly(8)] = 20_000
    solver: config.SolverChoice = config.SolverChoice(rule=HEUN)
    solver_steps: Annotated[Few, Costly(2)] = 18
    flow_steps: Annotated[Few, Costly(2)] = 20
    distil: float = Field(0.4, ge=0, lt=1)
    distance: config.DistanceChoice = SquaredL2()
    steps: Few = 1

    traits: ClassVar[Traits] = Traits(
        frozenset(),
        False,
        roles=("teacher", "student"),
        usual_roles=("teacher",),
        because=dict.fromkeys(
            ("prior", "forward", "rollout", "ddil", "per-batch"),
            "it is trained on couplings of noise and sample that a flow has made",
        ),
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "no distillation": Example({"distil": 0.0, "reflows": 2, "steps": 3}),
    }

    @model_validator(mode="after")
    def _distilled_is_one_step(self) -> RectifiedFlowMethod:
        if self.distil > 0 and self.steps > 1:
            raise ValueError(
                f"'steps' ({self.steps}) must be 1 where the flow is distilled; set 'distil' to 0 for several steps"
            )
        return self

    @property
    def steps_of_student(self) -> int:
        return self.steps

    def build(self, context: Context) -> Built:
        distils = self.distil > 0
        lengths = divided(
            planned(context.training),
            [(1 - self.distil) / self.reflows] * self.reflows + ([self.distil] if distils else []),
        )
        stages = []
        for index, length in enumerate(lengths[: self.reflows]):
            flow_map = self._of_teacher(context) if index == 0 else self._of_flow(context)
            pairs, action = self._couple(context, flow_map, f"pairs-{index + 1}", length)
            term = Term(VelocityRegression(context.denoising_student), pairs, name="velocity")
            stages.append(Stage(f"reflow-{index + 1}", length, [student_phase(context, [term])], [action]))
        if distils:
            pairs, action = self._couple(context, self._of_flow(context), "pairs-last", lengths[-1])
            objective = EndpointRegression(context.student.model, self.distance.within(context.features))
            stages.append(
                Stage(
                    "distill",
                    lengths[-1],
                    [student_phase(context, [Term(objective, pairs, name="regression")])],
                    [action],
                )
            )
        return Built(extended(stages, context.training))

    def _couple(self, context: Context, flow_map: FlowMap, name: str, length: int) -> tuple[Pairs, MakePairs]:
        path, count = context.folder / f"{name}.safetensors", drawn(self.pairs, length, context.training)
        return Pairs(path, context.schedule, 1.0, context.conditions), MakePairs(
            flow_map, context.prior, count, path, context.training.seed, name, device=context.device
        )

    def _of_teacher(self, context: Context) -> FlowMap:
        schedule = context.original.schedule
        solver = Solver(
            context.teacher,
            self.solver_steps,
            self.solver.rule,
            fitting_grid(self.solver, schedule, "method.solver", (self.solver_steps,), schedule.t_max),
        )
        return Rescaled(solver, schedule.prior_scale, schedule.t_max)

    def _of_flow(self, context: Context) -> FlowMap:
        return Solver(context.averaged, self.flow_steps, grid=UniformGrid())
