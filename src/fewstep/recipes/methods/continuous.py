"""Consistency in continuous time (sCM, Lu and Song 2024), distilled from a teacher of any
schedule.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import annotated_types as at
import torch

from fewstep.errors import UserError
from fewstep.objectives import ContinuousConsistency, LogWeight
from fewstep.recipes import config
from fewstep.recipes.kit.axes import Transitions, build_states, teacher_transition
from fewstep.recipes.kit.context import Context
from fewstep.recipes.methods.base import Built, Method, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.states import ForwardDiffusion
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes, RhoGrid
from fewstep.training import Stage, Term
from fewstep.values import MOST, Few, Positive, Share, name_of


class ContinuousMethod(Method):
    """``times``: of training, the paper's for CIFAR-10 unless given.

    ``sigma_data``: the data's standard deviation. ``tangent_warmup``: steps.

    ``grid``: of the student's ``steps``.
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

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling("renoise", name_of(self.grid), self.steps)

    def build(self, context: Context) -> Built:
        student, times = context.denoising_student, context.student_times()
        _check_ends_at_x(context)
        diffused = ForwardDiffusion(context.data, context.schedule, self.times)
        teacher = teacher_transition(context.teacher, 2, context)
        transitions = Transitions(times, context.student_map, teacher, lambda: diffused, whole=True, anywhere=True)
        states = build_states(context, diffused, transitions)
        weight = LogWeight().to(context.building_device)
        objective = ContinuousConsistency(
            student, Fixed(context.teacher), weight, self.sigma_data, self.tangent_warmup, self.tangent_constant
        )
        return Built(
            [
                Stage(
                    "distill",
                    context.training.steps,
                    [student_phase(context, [Term(objective, states, name="continuous consistency")])],
                )
            ]
        )


def _check_ends_at_x(context: Context) -> None:
    """Raises ``UserError`` for a student whose estimate of a clean sample is not that sample."""
    model = context.original
    skip, out = model.prediction.coefficients(model.schedule, torch.zeros(1, dtype=torch.float64))
    if not (abs(float(skip) - 1) < 1e-9 and abs(float(out)) < 1e-9):
        raise UserError(
            "'method.kind: continuous-consistency' needs a network whose estimate of a clean sample is "
            f"that sample, which a prediction of '{name_of(model.prediction)}' "
            "does not make so; use a teacher that predicts edm, eps, v or velocity, or 'method.kind: consistency'."
        )
