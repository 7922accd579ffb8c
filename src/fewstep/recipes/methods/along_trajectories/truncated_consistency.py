"""Truncated consistency (TCM, Lee et al. 2024): a second stage at late times alone, whose boundary
is the model of the first, which is easy consistency tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import annotated_types as at
from pydantic import Field

from fewstep.denoisers import Truncated, copy_of, freeze
from fewstep.errors import UserError
from fewstep.objectives import EDMWeight
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.shares import divided, extended, planned
from fewstep.recipes.methods.along_trajectories.easy_tuning import TunesOnData
from fewstep.recipes.methods.method import Built, Example, student_phase
from fewstep.times import GridTimes, LateTimes, LogNormalTimes, RhoGrid
from fewstep.training import Copy, Stage, Term
from fewstep.values import MOST, Few, NotNegative, Positive, Share


class TruncatedMethod(TunesOnData):
    """``first``: the share of the run's steps that are easy consistency tuning at ``times``.

    ``boundary``: t' of the second stage, as a noise level sigma / alpha, and ``boundary_weight`` of
    its loss at t' itself; ``late_times``: of its other loss, those from t' on. The gap goes on
    narrowing through both stages. The other fields are easy consistency tuning's.
    """

    kind: Literal["truncated-consistency"]
    times: config.TimesChoice = LogNormalTimes(-1.1, 2.0)
    first: float = Field(0.5, gt=0, lt=1)
    boundary: Positive = 1.0
    boundary_weight: NotNegative = 0.1
    late_times: config.TimesChoice = LogNormalTimes(1.0, 1.5)
    weighting: config.DenoisingWeighting = EDMWeight()
    factor: float = Field(2.0, gt=1)
    stage: Annotated[int, at.Interval(ge=1, le=MOST), Share()] = 400
    widening: float = Field(8.0, ge=0)
    falling: float = Field(1.0, ge=0)
    power: float = Field(0.5, ge=0)
    constant: Positive = 1e-3
    grid: config.GridName = RhoGrid()
    steps: Few = 1

    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"stage": 2}),
        "2 steps": Example({"steps": 2, "boundary": 0.05, "stage": 1, "factor": 4.0}),
        "images": Example({"stage": 2}, on_digits=True),
    }

    def build(self, context: Context) -> Built:
        late = self.late(context)
        first = freeze(copy_of(context.denoising_student))
        lengths = divided(planned(context.training), [self.first, 1 - self.first])
        whole = Term(self.objective(context), self.diffused(context, self.times), name="easy consistency")
        nearer = Truncated(context.denoising_student, first, late)
        objective = self.objective(context, lengths[0], nearer)
        times = LateTimes(self.late_times, late)
        # Asked for here, so that times of which none are late are refused before any training.
        times.low_share(context.schedule)
        terms = [Term(objective, self.diffused(context, times), name="truncated consistency")]
        if self.boundary_weight > 0:
            at_boundary = self.diffused(context, GridTimes((late,)))
            terms.append(Term(objective, at_boundary, self.boundary_weight, "boundary"))
        stages = [
            Stage("first", lengths[0], [student_phase(context, [whole])]),
            Stage("truncated", lengths[1], [student_phase(context, terms)], [Copy(context.averaged, first)]),
        ]
        return Built(extended(stages, context.training))

    def late(self, context: Context) -> float:
        """t'. Raises ``UserError`` where it is not below all of the student's own times."""
        schedule = context.schedule
        late = float(schedule.time_at_sigma(self.boundary))
        own = context.student_times()[:-1]
        if not schedule.t_min <= late <= own[-1]:
            level = float(schedule.rho(own[-1]))
            raise UserError(
                f"'method.boundary' ({self.boundary:g}) must be no more than the least noise level at which the "
                f"student is asked, {level:.4g}, and no less than {float(schedule.rho(schedule.t_min)):.2g}; lower it, "
                "or take fewer steps."
            )
        return late
