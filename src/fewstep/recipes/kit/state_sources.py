"""From a recipe's choice of states to their sources: data, pure noise, and trajectories (DDIL,
Algorithms 1 to 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.recipes import config
from fewstep.recipes.config.axes import Stops
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.shares import planned
from fewstep.solvers import FlowMap, Solver
from fewstep.states import (
    Alternate,
    Constant,
    Dagger,
    ForwardDiffusion,
    Linear,
    Mixture,
    OpenRollout,
    PerBatch,
    RandomRollout,
    Rollout,
    Started,
    States,
)
from fewstep.states.weights import Weights
from fewstep.times import GridTimes, UniformTimes


@dataclass(frozen=True)
class Transitions:
    """The jumps of collected trajectories: along ``times`` (the student's, ending in 0), the
    student by ``student``, the teacher by ``teacher``; ``diffused`` makes the forward diffusion of
    data at these times, for those that ask for it.

    ``whole``: a trajectory is wholly the student's or wholly the teacher's (DMD2), rather than
    alternating (progressive distillation). ``grids``: the times of each number of steps, of which
    one is drawn at random for a trajectory; trajectories are then the student's alone (consistency
    distillation). ``anywhere``: the objective takes states at any time, not only at ``times``.
    """

    times: tuple[float, ...]
    student: FlowMap
    teacher: FlowMap
    diffused: Callable[[], States]
    whole: bool = False
    grids: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    anywhere: bool = False

    @property
    def data(self) -> States:
        """Forward diffusion of data at these times."""
        return self.diffused()


def forward_states(context: Context, times: tuple[float, ...]) -> States:
    """Forward diffusion of the data to the given times, 0 left out."""
    return context.method.guided(diffused(context, times))


def diffused(context: Context, times: tuple[float, ...]) -> States:
    """The same, of students that take a guidance scale as well without one."""
    grid = GridTimes(tuple(t for t in times if t > 0))
    return ForwardDiffusion(context.data, context.schedule, grid, conditions=context.conditions)


def started_states(context: Context, times: tuple[float, ...]) -> States:
    """The same, but at the first of the student's times the noise that its samples start from: for
    methods that train the student on its own samples.
    """
    return Started(forward_states(context, times), context.prior)


def build_states(
    context: Context, usual: States, transitions: Transitions, part: int | None = None, length: int | None = None
) -> States:
    """The states that the recipe asks for.

    ``part`` 0 or 1: the part of a stage with two parts, whose weights are then constant; None: one
    part, whose weights move from the one to the other over its ``length`` (the whole run unless
    given).
    """
    length = length or planned(context.training)
    return context.states.chosen(_Sources(context, usual, transitions, part, length))


@dataclass(frozen=True)
class _Sources:
    """The answers to ``config.StateSources``."""

    context: Context
    usual_states: States
    transitions: Transitions
    part: int | None
    length: int

    def usual(self) -> States:
        return self.usual_states

    def prior(self) -> States:
        return _prior(self.context)

    def forward(self) -> States:
        return self.transitions.data

    def rollout(self, choice: config.RolloutStates, /) -> States:
        transitions = self._stopped(choice.stops)
        return _rollout(self.context, transitions.student, transitions, choice.stops)

    def per_batch(self, choice: config.PerBatchStates, /) -> States:
        return _per_batch(self.context, choice, self._stopped(choice.stops))

    def aggregated(self, choice: config.DDILStates, /) -> States:
        return _aggregated(self.context, choice, self._stopped(choice.stops), self.part, self.length)

    def _stopped(self, stops: Stops) -> Transitions:
        """The jumps of trajectories that stop there.

        Raises ``UserError`` where the method takes no states from there.
        """
        if stops != "any":
            return self.transitions
        context, transitions = self.context, self.transitions
        if not transitions.anywhere:
            kind = context.method.kind
            raise UserError(
                f"'method.kind: {kind}' and 'states.stops: any' cannot be combined: its steps begin at the "
                "times of its grid and nowhere else; "
                "use 'all', or shares of the trajectory such as [0.5]."
            )
        # Alg. 1 draws T_s first, for data and trajectories alike.
        anytime = UniformTimes(high=transitions.times[0])
        return replace(
            transitions,
            diffused=lambda: context.method.guided(
                ForwardDiffusion(context.data, context.schedule, anytime, conditions=context.conditions)
            ),
        )


def states_of_data(context: Context) -> States:
    """What a student that learns from noised data is asked at: data at its own times unless the
    recipe says otherwise, and at the first of them the noise that its samples start from.
    """
    times = context.student_times()
    transitions = Transitions(
        times,
        context.student_map,
        teacher_transition(context.teacher, 4, context),
        lambda: started_states(context, times),
        whole=True,
        anywhere=True,
    )
    return build_states(context, transitions.data, transitions)


def trajectory_states(context: Context, steps: int) -> States:
    """What a student that is trained by its own samples is asked at: pure noise for one step, and
    for several its own trajectory unless the recipe says otherwise.

    With DDIL, a trajectory is wholly the student's or wholly the teacher's, as in DMD2.
    """
    if steps == 1:
        return context.prior
    times = context.student_times(steps)
    transitions = Transitions(
        times,
        context.student_map,
        teacher_transition(context.teacher, 4, context),
        lambda: started_states(context, times),
        whole=True,
        anywhere=True,
    )
    return build_states(context, _rollout(context, context.student_map, transitions, "all"), transitions)


def teacher_transition(teacher: Denoiser, steps: int, context: Context) -> FlowMap:
    """A transition of the student as ``steps`` DDIM steps of the teacher on the finer grid."""
    return Solver(teacher, steps, grid=context.sampling.grid)


def stops_at(shares: Sequence[float], steps: int) -> tuple[int, ...]:
    """The indices of the times that lie after these shares of ``steps`` steps, the nearest from
    which a step is taken; each once, ascending.
    """
    return tuple(sorted({min(round(share * steps), steps - 1) for share in shares}))


def _rollout(context: Context, flow_map: FlowMap, transitions: Transitions, stops: Stops) -> States:
    prior, times = _prior(context), transitions.times[:-1]
    if stops == "any":
        return OpenRollout(flow_map, prior, times, context.schedule, UniformTimes(high=times[0]))
    if transitions.grids:
        indices = {} if stops == "all" else {steps: stops_at(stops, steps) for steps in transitions.grids}
        return RandomRollout(flow_map, prior, transitions.grids, indices)
    return Rollout(flow_map, prior, times, None if stops == "all" else stops_at(stops, len(times)))


def _per_batch(context: Context, choice: config.PerBatchStates, transitions: Transitions) -> States:
    sources: dict[str, States] = {
        "data": transitions.data,
        "student": _rollout(context, transitions.student, transitions, choice.stops),
    }
    weights = {"data": choice.data, "student": choice.student}
    if choice.teacher > 0:
        sources["teacher"], weights["teacher"] = (
            _rollout(context, transitions.teacher, replace(transitions, grids={}), choice.stops),
            choice.teacher,
        )
    return PerBatch(sources, Constant(weights))


def _aggregated(
    context: Context, choice: config.DDILStates, transitions: Transitions, part: int | None, length: int
) -> States:
    steps = max(1, round(length * choice.first_part))
    student, collected = (
        _moving(choice.student, choice.later_student, part, steps),
        _moving(choice.collected, choice.later_collected, part, steps),
    )
    if transitions.grids:
        trajectories = _rollout(context, transitions.student, transitions, choice.stops)
    elif transitions.whole:
        sources = {
            "student": _rollout(context, transitions.student, transitions, choice.stops),
            "teacher": _rollout(context, transitions.teacher, transitions, choice.stops),
        }
        trajectories = PerBatch(sources, _named(student, "student", "teacher"))
    else:
        alternate = Alternate(
            {"student": transitions.student, "teacher": transitions.teacher}, _named(student, "student", "teacher")
        )
        trajectories = _rollout(context, alternate, transitions, choice.stops)
    kept = Dagger(trajectories, choice.capacity, choice.collect, choice.keep, choice.every, choice.of_each)
    return Mixture({"data": transitions.data, "collected": kept}, _named(collected, "collected", "data"))


def _moving(early: float, late: float, part: int | None, steps: int) -> tuple[float, float, int]:
    """(the first value, the last, the steps between)."""
    if part is not None:
        return (early, early, 1) if part == 0 else (late, late, 1)
    return early, late, steps


def _named(moving: tuple[float, float, int], name: str, rest: str) -> Weights:
    first, last, steps = moving
    start: Mapping[str, float] = {name: first, rest: 1 - first}
    return Constant(start) if first == last else Linear(start, {name: last, rest: 1 - last}, steps)


def _prior(context: Context) -> States:
    return context.method.guided(context.prior)
