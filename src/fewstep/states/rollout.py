r"""States on a model's own trajectory: what it meets when it is sampled from.

A student that is trained on forward diffusion only sees, when sampled from, states that its own errors have moved: covariate shift. DDIL therefore trains on backward
trajectories (Garrepalli et al. 2024, Alg. 1, "student backward" and "teacher backward"): from the prior's x at t_0 a flow map goes

    x_{k+1} = map(x_k, t_k, t_{k+1}),    t_0 > t_1 > ...,

and each sample stops at its own index k, drawn uniformly. With latent consistency models the number of steps is itself drawn (3, 4 or 5); with DMD2 there is one stop, t = 0.5.
A state at t = 0 cannot be trained on, so rollouts never jump there; this also spares a ``Solver`` of several steps its last jump, whose inner points are not the nested grid's
(``Grid.times`` goes through t_min).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch

from fewstep.errors import UserError
from fewstep.solvers import FlowMap
from fewstep.states.guidance import WithGuidance
from fewstep.states.prior import Prior
from fewstep.states.state import State, States, select
from fewstep.states.step import Step


def check_trajectory(what: str, prior: States, times: tuple[float, ...]) -> None:
    """Raises ``UserError`` unless ``times`` decrease, are >= 0, and begin at the time of ``prior``: a ``Prior``, or one with guidance."""
    source = prior.source if isinstance(prior, WithGuidance) else prior
    if not isinstance(source, Prior):
        raise UserError(f"{what}: a trajectory starts at a Prior (or WithGuidance around one), got {type(source).__name__}.")
    if not times or times[-1] < 0 or any(s >= t for t, s in pairwise(times)):
        raise UserError(f"{what}: the times must decrease and be at least 0, got {times}.")
    if times[0] != source.time:
        raise UserError(f"{what}: the first time {times[0]} is not the prior's time {source.time}; begin the times there.")


@dataclass(frozen=True)
class Rollout(States):
    """``prior``'s noise carried along ``times`` by ``flow_map`` (bound to the step's place), each sample to one of ``stops``.

    ``stops``: indices into ``times``, drawn from uniformly; all whose time is above 0, unless given. Index 0 is the prior itself. The whole batch goes to the last stop, so that
    every process calls the same networks equally often; a sample keeps its x of when it arrived. The State has the times reached and the prior's condition; x0 and noise are None.
    Raises ``UserError`` for times that do not decrease from the prior's time, and for stops that are no index or lie at t = 0.
    """

    flow_map: FlowMap
    prior: States
    times: tuple[float, ...]
    stops: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_trajectory("rollout", self.prior, self.times)
        stops = self.indices
        if not stops or len(set(stops)) != len(stops) or any(not 0 <= stop < len(self.times) or self.times[stop] == 0 for stop in stops):
            raise UserError(f"rollout: stops must be different indices of times above 0 (no network is trained at 0), got {stops} for times {self.times}.")

    @property
    def indices(self) -> tuple[int, ...]:
        """The stops: those given, or all."""
        return tuple(index for index, time in enumerate(self.times) if time > 0) if self.stops is None else self.stops

    @torch.no_grad()
    def draw(self, step: Step) -> State:
        begin = step.state(self.prior)
        flow_map = self.flow_map.at(step.place, step.start)
        indices = torch.tensor(self.indices)
        stop = indices[step.place.integers("rollout-stop", step.rows, len(indices), step.start)]
        x = kept = begin.x
        for index in range(1, int(indices.max()) + 1):
            x = flow_map(x, self.times[index - 1], self.times[index], begin.condition)
            kept = select(stop == index, x, kept)
        return State(kept, torch.tensor(self.times, dtype=torch.float64)[stop], begin.condition)


@dataclass(frozen=True, eq=False)
class RandomRollout(States):
    """A ``Rollout`` whose number of steps is drawn for the whole batch, uniformly: DDIL with latent consistency models, 3, 4 or 5 (Garrepalli et al. 2024, Sec. 5).

    ``grids``: the times of each number of steps. Raises ``UserError`` where ``Rollout`` does, and for a grid whose number of times is not its number of steps + 1.
    """

    flow_map: FlowMap
    prior: States
    grids: Mapping[int, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not self.grids:
            raise UserError("random rollout: give the times of at least one number of steps.")
        for steps, times in self.grids.items():
            if len(times) != steps + 1:
                raise UserError(f"random rollout: {steps} steps need {steps + 1} times, got {times}.")
            Rollout(self.flow_map, self.prior, times)

    def draw(self, step: Step) -> State:
        numbers = sorted(self.grids)
        steps = numbers[int(step.place.integers("rollout-steps", 1, len(numbers)))]
        return Rollout(self.flow_map, self.prior, self.grids[steps]).draw(step)
