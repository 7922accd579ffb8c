"""DisBack as an axis: the target of a recipe, and what a backtracked one needs before and while the
student is distilled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewstep.denoisers import NetworkDenoiser
from fewstep.errors import UserError
from fewstep.objectives import ScoreMatching
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.states import States, Step
from fewstep.targets import Backtracked, DegradationPath, Fixed, GuidedTarget, Probes, ReflectedTarget, Target
from fewstep.targets.hook import StopRule
from fewstep.training import CopyNode, MeasureSpacing, Phase, Stage, Term
from fewstep.training.actions import Action
from fewstep.training.monitors import Check, Reading


@dataclass(frozen=True, eq=False)
class TargetParts:
    """``target``; ``record``: the stages before the distillation; ``begin``: its actions;
    ``until``: its end.
    """

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


@dataclass(frozen=True)
class LeastSteps:
    """The fewest steps after recording whose last has the teacher as its target, called with the
    nodes that were recorded.

    ``each``: the student's updates at each node in the order of use; ``every``: the steps of the
    run for one of them.
    """

    each: tuple[int, ...]
    every: int

    def __call__(self, recorded: int) -> int:
        return self.every * sum(self.each[: recorded - 1]) + 1


def build_target(
    context: Context,
    degraded: NetworkDenoiser,
    objective: ScoreMatching,
    states: States,
    start: NetworkDenoiser | None,
    learned: bool,
) -> TargetParts:
    """The recipe's target.

    A backtracked one is recorded by training ``degraded`` (whose weights are the teacher's) by
    ``objective`` on the untrained student's samples, at some of them without their condition where
    the target is guided; the distillation begins by copying its last node into ``start``, the fake
    score, unless that is None. ``learned``: whether the method has a learned fake score.
    """
    choice, steps = context.target.backtracked, context.training.steps
    if choice is None:
        return TargetParts(Fixed(context.teacher), [], [], steps, None, None)
    check_switch(context.target, learned)
    path = DegradationPath(
        context.folder / "path",
        context.original,
        {"method": context.method.model_dump(mode="json"), "target": choice.model_dump(mode="json")},
        degraded if choice.recorded_as == "lora" else None,
    )
    backtracked = Backtracked(path, choice.switch.rule())
    target: Target = backtracked
    if choice.guidance.guides:
        target = GuidedTarget(target, choice.guidance, context.conditions)
    if context.threshold is not None and "teacher" in context.roles:
        target = ReflectedTarget(target, context.threshold)
    if choice.nodes == 1:
        return TargetParts(target, [], [], steps, backtracked, path)
    probes = Probes(objective.student, states, objective.times, context.original)
    recorder = path.recorder(choice.record.rule(probes, context.original))
    recorded_by = replace(
        objective, dropout=choice.dropped(bool(context.method.guiding)), conditions=context.conditions
    )
    phase = Phase("degrade", degraded, [Term(recorded_by, states, name="degradation")], choice.optimizer, 1, recorder)
    begin: list[Action] = [MeasureSpacing(path, degraded, probes), *([] if start is None else [CopyNode(path, start)])]
    least = LeastSteps(tuple(choice.switch.updates(choice.nodes - 2)[0]), context.method.student_every)
    return TargetParts(
        target,
        [Stage("record", path.full(choice.nodes), [phase])],
        begin,
        path.rest(steps, choice.nodes, least),
        backtracked,
        path,
    )


@dataclass(frozen=True)
class Walk:
    """What a path takes of a run's steps before the target is the teacher: ``record`` and
    ``nodes``, the least and the most of each; ``least_but_rounding``: the least of both together if
    every share of the run that is above 1 was rounded up from half a step less, and every share of
    1 from nothing.
    """

    record: tuple[int, int]
    nodes: tuple[int, int]
    least_but_rounding: float

    @property
    def least(self) -> int:
        """The fewest steps of a run whose last one has the teacher as its target."""
        return self.record[0] + self.nodes[0] + 1

    @property
    def most(self) -> int:
        """The steps with which a run reaches the teacher whatever is measured."""
        return self.record[1] + self.nodes[1] + 1


def walk_of(choice: config.TargetChoice, student_every: int) -> Walk | None:
    """The walk of a recipe's target, None where no path is recorded.

    ``student_every``: the steps of the run for one update of the student, in which switches are
    counted.
    """
    target = choice.backtracked
    if target is None or target.nodes == 1:
        return None
    planned = target.nodes - 1
    record = target.record.bounds(planned)
    fewest, most = target.switch.updates(target.nodes - 2)
    if target.record.measures:
        # A path that is measured may end at its first node, after which the target is the teacher.
        return Walk(record, (0, student_every * sum(most)), 0.0)
    rounding = planned * _unrounded(record[0] // planned) + student_every * sum(map(_unrounded, fewest))
    return Walk(record, (student_every * sum(fewest), student_every * sum(most)), rounding)


def check_nodes(choice: config.TargetChoice, adapts: bool) -> None:
    """Raises ``UserError`` for a path of adapters of a method whose fake score ``adapts`` not."""
    path = choice.backtracked
    if path is not None and path.recorded_as == "lora" and not adapts:
        raise UserError(
            "'target.recorded_as: lora' records the nodes of the path as the fake score's adapters, of its rank, alpha "
            "and layers, and this method's fake score is no adapter; use 'method.fake.kind: lora', or "
            "'target.recorded_as: copy'."
        )


def check_passes(choice: config.TargetChoice, adapts: bool, sharded: bool) -> None:
    """Raises ``UserError`` where target and fake score cannot share a batch: a fake score that
    ``adapts`` not, another base for each, networks that are ``sharded``.
    """
    path = choice.backtracked
    if not adapts or (path is not None and path.nodes > 1 and path.recorded_as == "copy"):
        raise UserError(
            "'method.passes' other than 'separate' makes the estimates of target and fake score in one batch of the "
            "network that both are adapters on, and here each has a network of its own; use 'method.fake.kind: lora' "
            "and, on a path, 'target.recorded_as: lora', or 'method.passes: separate'."
        )
    if sharded:
        raise UserError(
            "'method.passes' other than 'separate' and 'distributed.mode: fsdp' cannot be combined: a sharded adapter "
            "is gathered by a pass of its own; use 'method.passes: separate', or 'distributed.mode: ddp'."
        )


def check_switch(choice: config.TargetChoice, learned: bool) -> None:
    """Raises ``UserError`` for a switch rule that watches a learned fake score, of a method without
    such a score.
    """
    if not learned and _measures_switches(choice):
        raise UserError(
            "'target.switch.kind: plateau' watches the gap between the target and a fake score that is "
            "learned, which this method has not; use 'target.switch.kind: every'."
        )


def check_reach(choice: config.TargetChoice, student_every: int, steps: int) -> None:
    """Raises ``UserError`` for a run of ``steps`` steps that cannot reach the teacher.

    Shares that were rounded up in a short run are no reason: such a run takes the steps that it
    lacks.
    """
    walk = walk_of(choice, student_every)
    if walk is not None and walk.least_but_rounding >= steps:
        each = (
            ""
            if student_every == 1
            else f" ({student_every} for each of the student's updates, in which switches are counted)"
        )
        raise UserError(
            f"'training.steps' is {steps}, but recording the path takes {walk.record[0]} steps and walking "
            f"it back at least {walk.nodes[0]}{each}, so that the run would end before its "
            f"target is the teacher; set 'training.steps' in the recipe to {walk.least} or more, or "
            "'target.record' and 'target.switch' to fewer steps."
        )


def open_end(choice: config.TargetChoice, student_every: int, steps: int) -> str:
    """What a plan says where it depends on what is measured whether, or when, a run of ``steps``
    steps reaches the teacher; nothing where it surely does in these steps.
    """
    walk = walk_of(choice, student_every)
    if walk is None or walk.most <= steps:
        return ""
    if _measures_switches(choice):
        return (
            "the run may end before its target is the teacher: recording and walking back the path take "
            f"{walk.least:,} to {walk.most:,} of its steps, by what is measured."
        )
    return (
        f"the run may take up to {walk.most:,} steps: so many until its target is the teacher, if recording "
        "takes its most."
    )


@dataclass(frozen=True, eq=False)
class Reach(Check):
    """The steps that a run of ``steps`` steps lacks for its target to reach the teacher, if each
    node is left after ``least`` of the student's updates: above 0 it will not be reached.
    """

    target: Backtracked
    least: int
    student_every: int
    steps: int

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        if self.target.node is None:
            return None
        left = max(0, self.steps - step.key.step)
        needed = (
            1 + self.student_every * max(1, self.target.node * self.least - self.target.steps)
            if self.target.node
            else 0
        )
        lacking = max(0, needed - left)
        warning = (
            f"the target stands at node {self.target.node} with {left} steps left, and will not reach the "
            "teacher: raise 'training.steps', or lower 'target.switch.max_steps'."
        )
        return Reading("steps_short_of_teacher", float(lacking), warning if lacking else "")


def reach_check(choice: config.TargetChoice, student_every: int, steps: int, target: Backtracked | None) -> list[Check]:
    """The check of a target whose switches are measured; others reach the teacher by themselves."""
    section = choice.backtracked
    if target is None or section is None or not section.switch.measures:
        return []
    (least,), _ = section.switch.updates(1)
    return [Reach(target, least, student_every, steps)]


def _measures_switches(choice: config.TargetChoice) -> bool:
    """Whether the target moves by what is measured."""
    return choice.backtracked is not None and choice.backtracked.switch.measures


def _unrounded(share: int) -> float:
    """The least that a share of a run may have been before it was rounded."""
    return share - 0.5 if share > 1 else 0.0
