"""Builds a distillation: the parts that every method has, checked against one another, and the method's stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.data import Dataset
from fewstep.denoisers import Averaged, Denoiser, Generator, NetworkDenoiser, Reflected, copy_of
from fewstep.denoisers.threshold import StraightThrough, Threshold
from fewstep.errors import UserError
from fewstep.metrics.mismatch import training_mismatch
from fewstep.networks import add_adapter, build
from fewstep.random import Place
from fewstep.recipes import config
from fewstep.recipes.axes import build_threshold
from fewstep.recipes.context import Context, Student
from fewstep.recipes.legality import check
from fewstep.recipes.methods import Built, Method
from fewstep.recipes.parts import build_data, build_decay, build_features, build_teacher
from fewstep.recipes.recipe import DistillRecipe
from fewstep.solvers.sampling import Sampling
from fewstep.stateful import find_stateful
from fewstep.states import Generated, Prior, States, WithGuidance
from fewstep.targets import DegradationPath
from fewstep.training import Monitor, Stage
from fewstep.training.monitors import Check, FakeScoreLag, Gap, GradientNorm, Mismatch, Saturation, Spread


@dataclass(frozen=True, eq=False)
class Distillation:
    """The parts of a distillation run. ``fake`` and ``path`` where there are any; ``average`` follows the student and is the run's result."""

    teacher: NetworkDenoiser
    student: Denoiser | Generator
    average: Averaged
    prior: Prior
    sampling: Sampling
    data: Dataset
    stages: list[Stage]
    monitor: Monitor
    fake: Denoiser | None
    path: DegradationPath | None


def build_distillation(recipe: DistillRecipe, folder: Path) -> Distillation:
    """The run that the recipe asks for; files that it makes on the way (a path, pairs) go into ``folder``. Raises ``UserError`` for parts that do not go together."""
    method, choice = recipe.method, recipe.reflected
    roles = () if isinstance(choice, config.NotReflected) else choice.on or _usual_roles(method, recipe.student.kind)
    check(method, recipe.student.kind, recipe.target.kind, recipe.states.kind, roles)
    data = build_data(recipe.data)
    original = build_teacher(recipe.teacher, data)
    if method.sampling.guidance is not None and not original.classes:
        raise UserError("'method.guidance' needs a teacher with classes to be guided to; leave it out, or use another teacher.")
    threshold = build_threshold(choice, max(abs(data.low), abs(data.high)))
    student, prior = _student(recipe, original, threshold if "student" in roles else None)
    context = Context(
        method=method,
        target=recipe.target,
        states=recipe.states,
        training=recipe.training,
        folder=folder,
        data=data,
        features=build_features(recipe.evaluation.features, data),
        original=original,
        teacher=original if threshold is None or "teacher" not in roles else Reflected(original, threshold),
        student=student,
        prior=prior,
        sampling=method.sampling,
        average=Averaged(student.model, build_decay(recipe.training.average)),
        threshold=threshold,
        roles=frozenset(roles),
    )
    built = method.build(context)
    fake = None if built.fake is None else built.fake.fake
    return Distillation(original, student.model, context.average, prior, context.sampling, data, built.stages, _monitor(context, built), fake, built.path)


def _usual_roles(method: Method, student: str) -> Sequence[str]:
    """Those that DDIL thresholds for the method; of a generator, whose output is no denoiser's, not the student's."""
    traits = method.in_force
    return [role for role in (traits.roles if traits.usual_roles is None else traits.usual_roles) if not (role == "student" and student == "latent-mlp")]


def _student(recipe: DistillRecipe, teacher: NetworkDenoiser, threshold: Threshold | None) -> tuple[Student, Prior]:
    choice, method = recipe.student, recipe.method
    if isinstance(choice, config.LatentStudent):
        return _generator(choice, teacher)
    copy = copy_of(teacher)
    adapter = add_adapter(copy, choice.rank, choice.scale, choice.seed) if isinstance(choice, config.LowRankStudent) else None
    network = method.grown(copy)
    student = method.wrapped(network if threshold is None else Reflected(network, StraightThrough(threshold)))
    time = float(teacher.schedule.time_at_sigma(choice.first_sigma))
    if not teacher.schedule.t_min <= time <= teacher.schedule.t_max:
        raise UserError(f"'student.first_sigma' is {choice.first_sigma}, outside the noise levels that the teacher was trained for.")
    return Student(student, adapter), method.prior(student, choice.first_sigma)


def _generator(choice: config.LatentStudent, teacher: NetworkDenoiser) -> tuple[Student, Prior]:
    if len(teacher.shape) != 1:
        raise UserError("'student.kind: latent-mlp' makes points; this teacher makes images: use 'copy'.")
    description = {"kind": "latent-mlp", "latent": choice.latent, "dim": teacher.shape[0], "width": choice.width, "depth": choice.depth, "classes": teacher.classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        network = build(description)
    generator = Generator(network, (choice.latent,), teacher.shape, teacher.classes)
    return Student(generator), Prior(teacher.schedule, (choice.latent,), teacher.schedule.t_max, scale=1.0, classes=teacher.classes)


def _monitor(context: Context, built: Built) -> Monitor:
    rows = 256
    data, clip = context.data, context.method.optimizer.clip
    subset = Dataset(data.samples[:rows], None if data.labels is None else data.labels[:rows], data.classes, data.low, data.high)
    bound = training_mismatch(context.original, subset, Place(0, "mismatch-bound"))
    samples = generated(context.student.model, context.prior, context.sampling)
    checks: list[Check] = []
    # A collection grows when it is drawn from, which a monitor must not make it do.
    if built.fake is not None and built.states is not None and not find_stateful(built.states):
        checks.append(FakeScoreLag(built.fake, built.states))
    # Against a fake score that is not learned the gap says nothing about convergence.
    if built.fake is not None:
        checks.append(Gap())
    checks += [Mismatch(context.original, samples, bound), Spread(samples, data), Saturation(samples, data)]
    if clip is not None:
        checks.append(GradientNorm("student", clip))
    return Monitor(checks, context.training.health_every, rows, warn_from=context.training.steps // 4)


def generated(student: Denoiser | Generator, prior: Prior, sampling: Sampling) -> States:
    """The student's samples, made as it is meant to make them."""
    schedule = student.schedule if isinstance(student, Denoiser) else prior.schedule
    start: States = prior if sampling.guidance is None else WithGuidance(prior, sampling.guidance, sampling.guidance)
    return Generated(sampling.flow_map(student, schedule), start, tuple(sampling.times(schedule, prior.time).tolist()))
