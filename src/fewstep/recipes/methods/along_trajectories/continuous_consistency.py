"""Consistency in continuous time (sCM, Lu and Song 2024), distilled from a teacher of any
schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import annotated_types as at
import torch

from fewstep.errors import UserError
from fewstep.objectives import ContinuousConsistency, LogWeight
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import Transitions, build_states, teacher_transition
from fewstep.recipes.methods.method import Built, Example, Method, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.states import ForwardDiffusion
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes, RhoGrid
from fewstep.training import Stage, Term
from fewstep.values import MOST, Few, Positive, Share, name_of


class ContinuousMethod(Method):
    """``times``: of training. ``sigma_data``: the data's standard deviation.

    ``tangent_warmup``: the steps over which the tangent becomes whole; ``tangent_constant``: c of
    its normalisation. ``grid``: of the student's ``steps``.
    """

    kind: Literal["continuous-consistency"]
    times: config.TimesChoice = LogNormalTimes(-1.0, 1.4)
    sigma_data: Positive = 0.5
    tangent_warmup: Annotated[int, at.Interval(ge=0, le=MOST), Share()] = 0
    tangent_constant: Positive = 0.1
    grid: config.GridName = RhoGrid()
    steps: Few = 2

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}),
        False,
        frozenset({"copy", "lora"}),
        ("teacher", "student"),
        ("teacher",),
    )

    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"sigma_data": 2.3}),
        "warmup, 1 step": Example({"sigma_data": 2.3, "tangent_warmup": 2, "steps": 1}),
        "images": Example({"sigma_data": 0.75}, on_digits=True),
    }

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling("renoise", self.grid, self.steps)

    def build(self, context: Context) -> Built:
        student, times = context.denoising_student, context.student_times()
        check_differentiable(context)
        diffused = ForwardDiffusion(context.data, context.schedule, self.times, conditions=context.conditions)
        teacher = teacher_transition(context.teacher, 2, context)
        transitions = Transitions(times, context.student_map, teacher, lambda: diffused, whole=True, anywhere=True)
        states = build_states(context, diffused, transitions)
        weight = context.devices.placed("student", LogWeight())
        objective = ContinuousConsistency(
            student, Fixed(context.teacher), weight, self.sigma_data, self.tangent_warmup, self.tangent_constant
        )
        phase = student_phase(context, [Term(objective, states, name="continuous consistency")])
        return Built([Stage("distill", context.training.steps, [phase])])


def check_differentiable(context: Context) -> None:
    """Raises ``UserError`` for a student whose raw output in TrigFlow's coordinates is not finite,
    or that has no derivative by the time.
    """
    model = context.original
    # At t = 0 itself a prediction may be 0 / 0: just above it, skip is 1 and out no more than a
    # noise level.
    near = torch.full((1,), 1e-6 * model.schedule.t_min, dtype=torch.float64)
    skip, out = model.prediction.coefficients(model.schedule, near)
    if not (abs(float(skip) - 1) < 1e-6 and abs(float(out)) < 100 * float(model.schedule.sigma(near))):
        raise UserError(
            f"'method.kind: {context.method.kind}' needs a network whose estimate of a clean sample is that sample, "
            f"which a prediction of '{name_of(model.prediction)}' does not make so; use a teacher that predicts edm, "
            "eps, v or velocity, or 'method.kind: consistency'."
        )
    check_told_a_time(context)


def check_told_a_time(context: Context) -> None:
    """Raises ``UserError`` for a network that is no function of the time that has a derivative."""
    model = context.original
    time = torch.full((1,), 0.5 * model.schedule.t_max, dtype=torch.float64, requires_grad=True)
    if not model.inputs.scale_and_label(model.schedule, time)[1].requires_grad:
        raise UserError(
            f"'method.kind: {context.method.kind}' needs a network that is told a time, and inputs of "
            f"'{name_of(model.inputs)}' tell it the nearest index, which has no derivative; use another teacher, or "
            "'method.kind: consistency'."
        )
