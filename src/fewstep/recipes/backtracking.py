"""DisBack as an axis: the target of a recipe, and what a backtracked one needs before and while the student is distilled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, NetworkDenoiser, device_of
from fewstep.errors import UserError
from fewstep.objectives import ScoreMatching
from fewstep.random import Place
from fewstep.recipes import config
from fewstep.recipes.context import Context
from fewstep.recipes.parts import build_optimizer
from fewstep.stateful import untouched
from fewstep.states import States, Step
from fewstep.stopping import StopRule
from fewstep.targets import Backtracked, ByDistance, DegradationPath, Every, EverySteps, Fixed, Plateau, RecordRule, ReflectedTarget, SwitchRule, Target
from fewstep.training import CopyNode, Phase, Stage, Term
from fewstep.training.actions import Action


@dataclass(frozen=True, eq=False)
class TargetParts:
    """``target``; ``record``: the stages before the distillation; ``begin``: its actions; ``until``: its end."""

    target: Target
    record: list[Stage]
    begin: list[Action]
    until: int | StopRule
    backtracked: Backtracked | None
    path: DegradationPath | None

    @property
    def hook(self) -> Callable[[int, Any], None] | None:
        """What moves the target, after each of the student's steps."""
        return None if self.backtracked is None else self.backtracked.advance


def build_target(context: Context, degraded: NetworkDenoiser, objective: ScoreMatching, states: States, start: NetworkDenoiser | None, learned: bool) -> TargetParts:
    """The recipe's target. A backtracked one is recorded by training ``degraded`` (whose weights are the teacher's) by ``objective`` on the untrained student's samples;
    the distillation begins by copying its last node into ``start``, the fake score, unless that is None. ``learned``: whether the method has a learned fake score.
    """
    choice, steps = context.target, context.training.steps
    if isinstance(choice, config.FixedTarget):
        return TargetParts(Fixed(context.teacher), [], [], steps, None, None)
    if not learned and isinstance(choice.switch, config.SwitchAtPlateau):
        raise UserError("'target.switch.kind: plateau' watches the gap between the target and a fake score that is learned, which this method has not; use 'target.switch.kind: every'.")
    path = DegradationPath(context.folder / "path", context.original, {"method": context.method.model_dump(mode="json"), "target": choice.model_dump(mode="json")})
    backtracked = Backtracked(path, _switch_rule(choice.switch))
    target: Target = backtracked
    if context.threshold is not None and "teacher" in context.roles:
        target = ReflectedTarget(backtracked, context.threshold)
    if choice.nodes == 1:
        return TargetParts(target, [], [], steps, backtracked, path)
    recorder = path.recorder(_record_rule(choice, context.original, objective, states))
    phase = Phase("degrade", degraded, [Term(objective, states, name="degradation")], build_optimizer(choice.optimizer), 1, choice.optimizer.clip, recorder)
    begin: list[Action] = [] if start is None else [CopyNode(path, start)]
    return TargetParts(target, [Stage("record", path.full(choice.nodes), [phase])], begin, path.rest(steps, _least_steps(choice)), backtracked, path)


def _record_rule(choice: config.BacktrackedTarget, teacher: Denoiser, objective: ScoreMatching, states: States) -> RecordRule:
    if isinstance(choice.record, config.RecordEvery):
        return EverySteps(choice.record.steps)

    @functools.cache
    def inputs() -> tuple[Tensor, Tensor, Condition]:
        step = Step(Place(0, "record-probe"), 64, device=device_of(teacher))
        # Not a batch of the run: a collection must not grow by it.
        with untouched(states):
            state = step.state(states)
        x0 = step.sample(objective.student, state)
        t = objective.times.draw(teacher.schedule, step.place, "probe-time", step.rows)
        return teacher.schedule.add_noise(x0, t, step.noise_like("probe-noise", x0)), t, state.condition

    return ByDistance(choice.record.distance, lambda model: model(*inputs()), teacher, choice.record.floor, choice.record.max_steps)


def _switch_rule(choice: config.SwitchEvery | config.SwitchAtPlateau) -> SwitchRule:
    if isinstance(choice, config.SwitchEvery):
        return Every(choice.steps)
    return Plateau(choice.window, choice.improvement, choice.min_steps, choice.max_steps)


def _least_steps(choice: config.BacktrackedTarget) -> int:
    """At least one step for the teacher, after the least that the other nodes take."""
    nodes = choice.nodes - 2
    if isinstance(choice.switch, config.SwitchAtPlateau):
        return nodes * choice.switch.min_steps + 1
    each = [choice.switch.steps] if isinstance(choice.switch.steps, int) else list(choice.switch.steps)
    return sum((each + each[-1:] * nodes)[:nodes]) + 1
