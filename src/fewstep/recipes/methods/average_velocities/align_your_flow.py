"""Align Your Flow (AYF, Sabour et al. 2025): the flow map between any two times, by the normalised
tangent along the teacher's trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import annotated_types as at
from pydantic import Field

from fewstep.denoisers import TrajectoryDenoiser
from fewstep.objectives import AlignedFlow
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.methods.average_velocities.mean_flow import LearnsAverages
from fewstep.recipes.methods.method import Example
from fewstep.solvers.sampling import Sampling
from fewstep.targets import Fixed
from fewstep.times import LogNormalTimes, RhoGrid
from fewstep.values import MOST, Few, Positive, Share


class AlignedFlowMethod(LearnsAverages):
    """``times``: of training, log-normal in sigma / alpha, which is logit-normal on the straight
    line. ``same``: the share of states that are trained at equal times, ``end``: that of jumps to
    clean samples.

    ``tangent_warmup``: the steps over which the derivative's part of the tangent rises to
    ``tangent_share``; ``tangent_constant``: c of its normalisation. ``grid`` and ``gamma``: of
    sampling in ``steps``.
    """

    kind: Literal["align-your-flow"]
    times: config.TimesChoice = LogNormalTimes(-0.8, 1.0)
    same: float = Field(0.0, ge=0, le=1)
    end: float = Field(0.25, ge=0, le=1)
    tangent_warmup: Annotated[int, at.Interval(ge=0, le=MOST), Share()] = 0
    tangent_share: float = Field(0.99, gt=0, le=1)
    tangent_constant: Positive = 0.1
    grid: config.GridName = RhoGrid()
    gamma: float = Field(0.0, ge=0, le=1)
    steps: Few = 4

    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "warmup, 1 step": Example({"tangent_warmup": 20, "steps": 1, "same": 0.5}),
        "images": Example({"gamma": 0.5}, on_digits=True),
    }

    @property
    def sampling(self) -> Sampling:
        return Sampling("gamma", self.grid, self.steps, self.gamma)

    def objective(self, student: TrajectoryDenoiser, context: Context) -> AlignedFlow:
        return AlignedFlow(
            student,
            Fixed(context.teacher),
            self.same,
            self.end,
            self.tangent_warmup,
            self.tangent_share,
            self.tangent_constant,
        )
