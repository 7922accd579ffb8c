"""Easy consistency tuning (ECT, Geng et al. 2024): consistency from data alone, from denoising on,
by a gap between two noise levels that narrows over the run.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import annotated_types as at
from pydantic import Field

from fewstep.denoisers import Denoiser
from fewstep.objectives import EasyConsistency, EDMWeight, GapCurriculum
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.methods.method import Built, Example, Method, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.states import ForwardDiffusion, States
from fewstep.times import LogNormalTimes, RhoGrid, TimeDistribution
from fewstep.training import Stage, Term
from fewstep.values import MOST, Few, Positive, Share


class TunesOnData(Method, abc.ABC):
    """A method whose student learns consistency from data alone, by a gap that narrows."""

    if TYPE_CHECKING:
        # Declared by each method, whose fields have an order that its runs are known by.
        times: config.TimesChoice
        weighting: config.DenoisingWeighting
        factor: float
        stage: int
        widening: float
        falling: float
        power: float
        constant: float
        grid: config.GridName
        steps: int

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward"}),
        False,
        roles=("student",),
        because=dict.fromkeys(
            ("rollout", "ddil", "per-batch"), "a state must know the clean sample and the noise it is made of"
        ),
    )

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling("renoise", self.grid, self.steps)

    def diffused(self, context: Context, times: TimeDistribution) -> States:
        """Data at these times."""
        return ForwardDiffusion(context.data, context.schedule, times, conditions=context.conditions)

    def objective(self, context: Context, begun: int = 0, nearer: Denoiser | None = None) -> EasyConsistency:
        """What trains the student; ``begun``: the steps that the gap has narrowed for before."""
        curriculum = GapCurriculum(self.factor, self.stage, self.widening, self.falling, begun)
        return EasyConsistency(context.denoising_student, curriculum, self.weighting, self.power, self.constant, nearer)


class EasyTuningMethod(TunesOnData):
    """``times`` and ``weighting``: of training. ``factor``: by which the gap narrows every
    ``stage`` steps; ``widening`` and ``falling``: k and b of the gap at low noise.

    ``power`` and ``constant``: p and c of the adaptive weight. ``grid``: of the student's
    ``steps``. The teacher is where the student begins, and is not asked.
    """

    kind: Literal["easy-consistency"]
    times: config.TimesChoice = LogNormalTimes(-1.1, 2.0)
    weighting: config.DenoisingWeighting = EDMWeight()
    factor: float = Field(2.0, gt=1)
    stage: Annotated[int, at.Interval(ge=1, le=MOST), Share()] = 400
    widening: float = Field(8.0, ge=0)
    falling: float = Field(1.0, ge=0)
    power: float = Field(0.5, ge=0)
    constant: Positive = 1e-3
    grid: config.GridName = RhoGrid()
    steps: Few = 2

    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({}),
        "1 step, plain": Example({"steps": 1, "power": 0.0, "factor": 4.0, "stage": 1}),
        "images": Example({"stage": 2}, on_digits=True),
    }

    def build(self, context: Context) -> Built:
        # Asked for here, so that a grid without such steps is refused before anything is trained.
        context.student_times()
        term = Term(self.objective(context), self.diffused(context, self.times), name="easy consistency")
        return Built([Stage("distill", context.training.steps, [student_phase(context, [term])])])
