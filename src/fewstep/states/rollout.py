r"""States on a model's own trajectory: what it meets when it is sampled from.

A student that is trained on forward diffusion only sees, when sampled from, states that its own
errors have moved: covariate shift. DDIL therefore trains on backward trajectories (Garrepalli et
al. 2024, Alg. 1, "student backward" and "teacher backward"): from the prior's x at t_0 a flow map
goes

    x_{k+1} = map(x_k, t_k, t_{k+1}),    t_0 > t_1 > ...,

and each sample stops at its own index k, drawn uniformly. With latent consistency models the number
of steps is itself drawn (3, 4 or 5); with DMD2 there may be one stop, t = 0.5. Alg. 1 as printed
stops a batch at any time T_s: at the times above T_s, then at T_s itself (``OpenRollout``). A
trajectory costs as many evaluations whether one of its states is kept or all are: what collects
states (``Dagger``) may take all, by ``trajectories``. A state at t = 0 cannot be trained on, so
rollouts never jump there; this also spares a ``Solver`` of several steps its last jump, whose inner
points are not the nested grid's (``Grid.times`` goes through t_min).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.schedule import Schedule
from fewstep.solvers import FlowMap
from fewstep.states.guidance import WithGuidance
from fewstep.states.prior import Prior
from fewstep.states.state import State, States, select
from fewstep.states.step import Step
from fewstep.times import TimeDistribution


def check_trajectory(what: str, prior: States, times: tuple[float, ...]) -> None:
    """Raises ``UserError`` unless ``times`` decrease, are >= 0, and begin at the time of ``prior``:
    a ``Prior``, or one with guidance.
    """
    source = prior.source if isinstance(prior, WithGuidance) else prior
    if not isinstance(source, Prior):
        raise UserError(
            f"{what}: a trajectory starts at a Prior (or WithGuidance around one), got {type(source).__name__}."
        )
    if not times or times[-1] < 0 or any(s >= t for t, s in pairwise(times)):
        raise UserError(f"{what}: the times must decrease and be at least 0, got {times}.")
    if times[0] != source.time:
        raise UserError(
            f"{what}: the first time {times[0]} is not the prior's time {source.time}; begin the times there."
        )


@dataclass(frozen=True)
class Rollout(States):
    """``prior``'s noise carried along ``times`` by ``flow_map`` (bound to the step's place), each
    sample to one of ``stops``.

    ``stops``: indices into ``times``, drawn from uniformly; all whose time is above 0, unless
    given. Index 0 is the prior itself. The whole batch goes to the last stop, so that every process
    calls the same networks equally often; a sample keeps its x of when it arrived. The State has
    the times reached and the prior's condition; x0 and noise are None. Raises ``UserError`` for
    times that do not decrease from the prior's time, and for stops that are no index or lie at t =
    0.
    """

    flow_map: FlowMap
    prior: States
    times: tuple[float, ...]
    stops: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_trajectory("rollout", self.prior, self.times)
        stops = self.indices
        if (
            not stops
            or len(set(stops)) != len(stops)
            or any(not 0 <= stop < len(self.times) or self.times[stop] == 0 for stop in stops)
        ):
            raise UserError(
                "rollout: stops must be different indices of times above 0 (no network is trained at 0), "
                f"got {stops} for times {self.times}."
            )

    @property
    def indices(self) -> tuple[int, ...]:
        """The stops: those given, or all."""
        return tuple(index for index, time in enumerate(self.times) if time > 0) if self.stops is None else self.stops

    def draw(self, step: Step) -> State:
        begin = step.state(self.prior)
        indices = torch.tensor(self.indices)
        stop = indices[step.key.integers("rollout-stop", step.rows, len(indices), step.start)]
        kept = begin.x
        for index, x in enumerate(_passed(step, self.flow_map, begin, self.times[: int(indices.max()) + 1])):
            kept = select(stop == index, x, kept)
        return State(kept, torch.tensor(self.times, dtype=torch.float64)[stop], begin.condition)

    def trajectories(self, step: Step) -> State:
        begin, stops = step.state(self.prior), sorted(self.indices)
        passed = list(_passed(step, self.flow_map, begin, self.times[: stops[-1] + 1]))
        return _one_after_another(
            [passed[stop] for stop in stops], [self.times[stop] for stop in stops], begin.condition
        )


@dataclass(frozen=True, eq=False)
class OpenRollout(States):
    """``prior``'s noise carried by ``flow_map`` along those of ``times`` that lie above a time T_s,
    and then to T_s (DDIL, Alg. 1).

    T_s is from ``stops`` under ``schedule``, and the same for the whole batch, as the listing has
    it: a flow map jumps between two times. A T_s above the first time counts as the first time.
    Raises ``UserError`` for times that do not decrease from the prior's time, or that end at 0.
    """

    flow_map: FlowMap
    prior: States
    times: tuple[float, ...]
    schedule: Schedule
    stops: TimeDistribution

    def __post_init__(self) -> None:
        check_trajectory("open rollout", self.prior, self.times)
        if self.times[-1] == 0:
            raise UserError(
                f"open rollout: the times must end above 0, where the last jump to a stop begins, got {self.times}."
            )

    def draw(self, step: Step) -> State:
        begin, path = step.state(self.prior), self.path(step)
        *_, x = _passed(step, self.flow_map, begin, path)
        return State(x, torch.full((len(x),), path[-1], dtype=torch.float64), begin.condition)

    def trajectories(self, step: Step) -> State:
        begin, path = step.state(self.prior), self.path(step)
        return _one_after_another(list(_passed(step, self.flow_map, begin, path)), path, begin.condition)

    def path(self, step: Step) -> tuple[float, ...]:
        """The times of this step's trajectories, T_s the last."""
        # No start: T_s is the whole batch's, and so every process's.
        stop = min(float(self.stops.draw(self.schedule, step.key, "rollout-any-stop", 1)), self.times[0])
        return (*(t for t in self.times if t > stop), stop)


@dataclass(frozen=True, eq=False)
class RandomRollout(States):
    """A ``Rollout`` whose number of steps is drawn for the whole batch, uniformly: DDIL with latent
    consistency models, 3, 4 or 5 (Garrepalli et al. 2024, Sec. 5).

    ``grids``: the times of each number of steps; ``stops``: those of its rollout, all unless given.
    Raises ``UserError`` where ``Rollout`` does, and for a grid whose number of times is not its
    number of steps + 1.
    """

    flow_map: FlowMap
    prior: States
    grids: Mapping[int, tuple[float, ...]]
    stops: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.grids:
            raise UserError("random rollout: give the times of at least one number of steps.")
        for steps, times in self.grids.items():
            if len(times) != steps + 1:
                raise UserError(f"random rollout: {steps} steps need {steps + 1} times, got {times}.")
            Rollout(self.flow_map, self.prior, times, self.stops.get(steps))

    def draw(self, step: Step) -> State:
        return self.chosen(step).draw(step)

    def trajectories(self, step: Step) -> State:
        return self.chosen(step).trajectories(step)

    def chosen(self, step: Step) -> Rollout:
        """The rollout of this step's number of steps."""
        numbers = sorted(self.grids)
        steps = numbers[int(step.key.integers("rollout-steps", 1, len(numbers)))]
        return Rollout(self.flow_map, self.prior, self.grids[steps], self.stops.get(steps))


def _passed(step: Step, flow_map: FlowMap, begin: State, times: Sequence[float]) -> Iterator[Tensor]:
    """x at each of the times, begin's own first."""
    bound, x = flow_map.at(step.key, step.start), begin.x
    yield x
    for t, s in pairwise(times):
        with torch.no_grad():
            x = bound(x, t, s, begin.condition)
        yield x


def _one_after_another(passed: Sequence[Tensor], times: Sequence[float], condition: Condition) -> State:
    """The states of trajectories that stood at the same times, sample after sample."""
    x = torch.stack(list(passed), 1)
    rows, stops = x.shape[:2]
    sample = torch.arange(rows).repeat_interleave(stops)
    return State(
        x.flatten(0, 1), torch.tensor(list(times), dtype=torch.float64).repeat(rows), condition[sample.to(x.device)]
    )
