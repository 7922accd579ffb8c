"""What a method is to a recipe: its settings, what it can be combined with, and the stages it makes
of the parts.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from fewstep.condition import Classes
from fewstep.denoisers import Averaged, Denoiser, NetworkDenoiser
from fewstep.objectives import PseudoHuber, ScoreMatching
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.solvers import EULER, HEUN, Rule
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior, States
from fewstep.targets import DegradationPath
from fewstep.times import RhoGrid
from fewstep.training import Adam, Optimizer, Phase, Stage, Term
from fewstep.values import Few


@dataclass(frozen=True)
class Traits:
    """What a method goes with.

    ``states``: besides the usual ones; ``scores``: whether it follows the target's scores, so that
    the target may be a degraded one; ``students``: 'copy' (denoisers all of whose weights are
    trained), 'lora', 'generator'; ``roles``: whose estimates may be thresholded; ``usual_roles``:
    whose are unless the recipe names some, all if None. ``because``: the reason of a refusal by the
    refused kind, where the general one does not fit. ``guided``: whether the target may be guided;
    where it may not, ``because`` says why.
    """

    states: frozenset[str]
    scores: bool
    students: frozenset[str] = frozenset({"copy", "lora"})
    roles: tuple[config.Role, ...] = ("teacher",)
    usual_roles: tuple[config.Role, ...] | None = None
    because: Mapping[str, str] = field(default_factory=dict)
    guided: bool = True


@dataclass(frozen=True)
class Example:
    """Settings of a method that differ in kind from its usual ones, which tests run with every
    choice of every axis.

    ``on_digits``: whether they need classes or digits, and not points in the plane.
    """

    settings: Mapping[str, Any]
    on_digits: bool = False


class Method(config.Section, abc.ABC):
    """A section ``method`` of a recipe. ``examples``: by name, '' the usual settings."""

    if TYPE_CHECKING:
        # Declared by each method, with its one name.
        kind: str

    traits: ClassVar[Traits]
    examples: ClassVar[Mapping[str, Example]] = {"": Example({})}
    optimizer: config.OptimizerChoice = Adam()

    @property
    def effective_traits(self) -> Traits:
        """The traits under these settings; the class's, unless a setting changes them."""
        return self.traits

    @property
    def steps_of_student(self) -> int:
        """The number of steps for which the student is trained."""
        return 1

    @property
    def learns_fake(self) -> bool:
        """Whether it trains a fake score."""
        return False

    @property
    def adapts_fake(self) -> bool:
        """Whether its fake score is a low-rank adapter, as which a path can be recorded."""
        return False

    @property
    def judged_apart(self) -> bool:
        """Whether it trains a critic on networks of its own, neither on the teacher nor on the
        fake score.
        """
        return False

    @property
    def guiding(self) -> tuple[str, ...]:
        """The settings by which its estimates are guided, for which the teacher must know
        conditions.
        """
        return ()

    @property
    def in_one_batch(self) -> bool:
        """Whether estimates of target and fake score may be made in one batch."""
        return False

    @property
    def student_every(self) -> int:
        """The steps of the run for one update of the student, where another network is updated more
        often.
        """
        return 1

    @property
    def sampling(self) -> Sampling:
        """How its students make samples."""
        return Sampling(steps=self.steps_of_student)

    def grown(self, copy: NetworkDenoiser) -> Denoiser:
        """The student's network, from a copy of the teacher; methods whose students take more
        inputs grow it.
        """
        return copy

    def wrapped(self, student: Denoiser) -> Denoiser:
        """What the method puts around the student's network."""
        return student

    def prior(self, student: Denoiser, time: float) -> Prior:
        """Where samples of a denoising student start: noise of the level at ``time``."""
        return Prior(student.schedule, student.shape, time, conditions=Classes(student.classes))

    def guided(self, states: States) -> States:
        """The states with a guidance scale, for methods whose students take one."""
        return states

    @abc.abstractmethod
    def build(self, context: Context) -> Built:
        """The stages of the method."""


class GridMethod(Method, abc.ABC):
    """Of methods that learn jumps along a grid: ``points`` steps of it, from the first level to
    t_min; the teacher's ``rule``; ``ema``: half-life in steps of the average that makes the target,
    0 for the student itself; ``steps``: for sampling.
    """

    points: int = Field(18, ge=2, le=10_000)
    rule: Annotated[Rule, config.ByName({rule.name: rule for rule in (EULER, HEUN)})] = HEUN
    grid: config.GridName = RhoGrid()
    distance: config.DistanceChoice = PseudoHuber()
    ema: float = Field(20.0, ge=0)
    steps: Few = 2

    def grid_times(self, context: Context) -> tuple[float, ...]:
        """The grid, (points + 1,)."""
        return (*context.student_times(self.points)[:-1], context.schedule.t_min)

    def coarse(self, times: Sequence[float], steps: int) -> tuple[float, ...]:
        """The times of a trajectory of ``steps`` steps, down to 0: those of the grid's times, on
        which the states must stand, at which it stops.
        """
        return (*(times[index] for index in self.grid.stops(self.points, steps)), 0.0)


@dataclass(frozen=True, eq=False)
class Built:
    """``stages``; where there is one, the recorded ``path``, and the fake score's objective
    ``fake`` with the ``states`` it is trained on, for the monitors and pictures.
    """

    stages: list[Stage]
    path: DegradationPath | None = None
    fake: ScoreMatching | None = None
    states: States | None = None


Hook = Callable[[int, Any], None]


def student_phase(
    context: Context,
    terms: Sequence[Term],
    every: int = 1,
    hook: Hook | None = None,
    averages: Sequence[Averaged] = (),
    warmup: int | None = None,
) -> Phase:
    """The phase that trains the student; the run's average follows it, and ``averages`` besides."""
    optimizer = context.method.optimizer
    optimizer = optimizer if warmup is None else replace(optimizer, warmup=warmup)
    return Phase("student", context.student.model, terms, optimizer, every, hook, (context.average, *averages))


def trained(name: str, network: nn.Module, terms: Sequence[Term], optimizer: Optimizer) -> Phase:
    """A phase of another network than the student's."""
    return Phase(name, network, terms, optimizer)
