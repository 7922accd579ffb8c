"""Builds distribution matching: Diff-Instruct, its warm ablation, and DisBack are one builder, told apart by the target.

- target ``fixed``: the fake score starts at the teacher (Diff-Instruct, VSD, DMD without pairs);
- target ``backtracked`` with one node: the same, bit for bit, with two: the fake score starts degraded, the target is the teacher (the warm ablation), with more: DisBack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewstep.data import Dataset
from fewstep.denoisers import Denoiser, Generator, NetworkDenoiser, copy_of
from fewstep.metrics.mismatch import training_mismatch
from fewstep.objectives import DistributionMatching, ScoreMatching
from fewstep.random import Place
from fewstep.recipes import config
from fewstep.recipes.config import BacktrackedTarget, DistillRecipe
from fewstep.recipes.parts import build_data, build_denoising_weight, build_matching_weight, build_optimizer, build_student, build_teacher, build_times
from fewstep.states import Prior, Step
from fewstep.stopping import StopRule
from fewstep.targets import Backtracked, ByDistance, DegradationPath, Every, EverySteps, Fixed, Plateau, RecordRule, SwitchRule, Target
from fewstep.training import CopyNode, Monitor, Phase, Stage, Term
from fewstep.training.monitors import Check, FakeScoreLag, Gap, GradientNorm, Mismatch, Saturation, Spread


@dataclass(frozen=True, eq=False)
class Distillation:
    """The parts of a distillation run; ``path`` where there is one."""

    teacher: NetworkDenoiser
    student: NetworkDenoiser | Generator
    fake: NetworkDenoiser
    prior: Prior
    data: Dataset
    stages: list[Stage]
    monitor: Monitor
    path: DegradationPath | None


def build_distillation(recipe: DistillRecipe, folder: Path) -> Distillation:
    """The stages that the recipe asks for; a path is recorded in ``folder``/path."""
    data = build_data(recipe.data)
    teacher = build_teacher(recipe.teacher, data)
    student, prior = build_student(recipe.student, teacher)
    fake = copy_of(teacher)
    fake_objective = _fake_objective(recipe, fake, student)
    stages: list[Stage] = []
    path: DegradationPath | None = None
    target: Target = Fixed(teacher)
    until: int | StopRule = recipe.training.steps
    if isinstance(recipe.target, BacktrackedTarget):
        path = DegradationPath(folder / "path", teacher, {"recipe": recipe.model_dump(mode="json", exclude={"training", "evaluation"})})
        target = Backtracked(path, _switch_rule(recipe.target.switch))
        if recipe.target.nodes > 1:
            stages.append(_recording(recipe, recipe.target, path, fake, fake_objective, prior))
            until = path.rest(recipe.training.steps, _least_steps(recipe.target))
    begin = [CopyNode(path, fake)] if path is not None and stages else []
    stages.append(Stage("distill", until, _phases(recipe, student, fake, target, fake_objective, prior), begin))
    return Distillation(teacher, student, fake, prior, data, stages, _monitor(recipe, teacher, student, fake_objective, prior, data), path)


def _fake_objective(recipe: DistillRecipe, fake: Denoiser, student: NetworkDenoiser | Generator) -> ScoreMatching:
    choice = recipe.method.fake
    return ScoreMatching(fake, student, build_times(choice.times), build_denoising_weight(choice.weighting))


def _phases(recipe: DistillRecipe, student: NetworkDenoiser | Generator, fake: Denoiser, target: Target, fake_objective: ScoreMatching, prior: Prior) -> list[Phase]:
    method, fake_choice = recipe.method, recipe.method.fake.optimizer
    matching = DistributionMatching(student, fake, target, build_times(method.times), build_matching_weight(method.weighting))
    hook = target.advance if isinstance(target, Backtracked) else None
    return [
        Phase("student", student, [Term(matching, prior, name="matching")], build_optimizer(method.optimizer), method.fake.updates, method.optimizer.clip, hook),
        Phase("fake", fake, [Term(fake_objective, prior, name="fake score")], build_optimizer(fake_choice), clip=fake_choice.clip),
    ]


def _recording(recipe: DistillRecipe, choice: BacktrackedTarget, path: DegradationPath, fake: Denoiser, objective: ScoreMatching, prior: Prior) -> Stage:
    recorder = path.recorder(_record_rule(choice, path.teacher, objective, prior))
    phase = Phase("degrade", fake, [Term(objective, prior, name="degradation")], build_optimizer(choice.optimizer), 1, choice.optimizer.clip, recorder)
    return Stage("record", path.full(choice.nodes), [phase])


def _record_rule(choice: BacktrackedTarget, teacher: Denoiser, objective: ScoreMatching, prior: Prior) -> RecordRule:
    if isinstance(choice.record, config.RecordEvery):
        return EverySteps(choice.record.steps)
    step = Step(Place(0, "record-probe"), 64)
    state = step.state(prior)
    x0 = step.sample(objective.student, state)
    schedule = teacher.schedule
    t = objective.times.draw(schedule, step.place, "probe-time", step.rows)
    x_t = schedule.add_noise(x0, t, step.noise_like("probe-noise", x0))

    def probe(model: Denoiser) -> Tensor:
        return model(x_t, t, state.condition)

    return ByDistance(choice.record.distance, probe, teacher, choice.record.floor, choice.record.max_steps)


def _switch_rule(choice: config.SwitchEvery | config.SwitchAtPlateau) -> SwitchRule:
    if isinstance(choice, config.SwitchEvery):
        return Every(choice.steps)
    return Plateau(choice.window, choice.improvement, choice.min_steps, choice.max_steps)


def _least_steps(choice: BacktrackedTarget) -> int:
    """At least one step for the teacher, after the least that the other nodes take."""
    nodes = choice.nodes - 2
    if isinstance(choice.switch, config.SwitchAtPlateau):
        return nodes * choice.switch.min_steps + 1
    each = [choice.switch.steps] if isinstance(choice.switch.steps, int) else list(choice.switch.steps)
    return sum((each + each[-1:] * nodes)[:nodes]) + 1


def _monitor(recipe: DistillRecipe, teacher: Denoiser, student: NetworkDenoiser | Generator, objective: ScoreMatching, prior: Prior, data: Dataset) -> Monitor:
    rows = 256
    subset = Dataset(data.samples[:rows], None if data.labels is None else data.labels[:rows], data.classes, data.low, data.high)
    bound = training_mismatch(teacher, subset, Place(0, "mismatch-bound"))
    checks: Sequence[Check] = [
        FakeScoreLag(objective, prior),
        Gap(),
        Mismatch(teacher, student, prior, bound),
        Spread(student, prior, data),
        Saturation(student, prior, data),
        *([] if recipe.method.optimizer.clip is None else [GradientNorm("student", recipe.method.optimizer.clip)]),
    ]
    return Monitor(checks, recipe.training.health_every, rows, warn_from=recipe.training.steps // 4)
