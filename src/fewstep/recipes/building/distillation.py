"""Builds a distillation: the parts that every method has, checked against one another, and the
method's stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import Averaged, Denoiser, Generator, NetworkDenoiser, Reflected
from fewstep.errors import UserError
from fewstep.metrics.features import Features
from fewstep.networks import DenoisingNetwork
from fewstep.recipes import config
from fewstep.recipes.building.device import building_device, resolve_device
from fewstep.recipes.building.frozen_teachers import build_teacher, space_of
from fewstep.recipes.building.parts import build_features, check_guidance, data_of, fitting_grid
from fewstep.recipes.building.untrained_students import build_student
from fewstep.recipes.kit.backtracking import check_reach, check_switch, reach_check
from fewstep.recipes.kit.context import Context
from fewstep.recipes.legality import check, is_generator
from fewstep.recipes.methods import Built, Method
from fewstep.recipes.recipe import DistillRecipe
from fewstep.resumable import find_resumable
from fewstep.solvers.sampling import Sampling
from fewstep.states import Generated, Prior, States, WithGuidance
from fewstep.targets import Backtracked, DegradationPath
from fewstep.training import Monitor, Stage
from fewstep.training.monitors import Check, FakeScoreLag, Gap, GradientNorm, Mismatch, Saturation, Spread


@dataclass(frozen=True, eq=False)
class Distillation:
    """The parts of a distillation run.

    ``fake``, ``path`` and the backtracked ``target`` where there are any; ``average`` follows the
    student and is the run's result.
    """

    teacher: NetworkDenoiser
    student: Denoiser | Generator
    average: Averaged
    prior: Prior
    sampling: Sampling
    data: Dataset | None
    space: SampleSpace
    stages: list[Stage]
    monitor: Monitor
    fake: Denoiser | None
    path: DegradationPath | None
    target: Backtracked | None = None


def build_distillation(recipe: DistillRecipe, folder: Path, begun: bool = False) -> Distillation:
    """The run that the recipe asks for, on ``training.device`` (its networks on the CPU where they
    are yet to be sharded); files that it makes on the way (a path, pairs) go into ``folder``.
    ``begun``: whether it is a run that goes on, which is not refused for its steps and
    measurements.

    Raises ``UserError`` for parts that do not go together, and for a device that is not there.
    """
    check_parts(recipe, begun)
    data, device = data_of(recipe.data), resolve_device(recipe.training.device)
    teacher = build_teacher(recipe.teacher, data).to(building_device(recipe.distributed, device))
    features = build_features(
        recipe.evaluation.features, space_of(recipe.teacher, teacher) if data is None else data.space, device
    )
    if not begun:
        fitting_grid(recipe.evaluation.solver, teacher.schedule, "evaluation.solver")
    context = build_context(recipe, folder, data, teacher, features, device)
    if not begun:
        check_guidance(recipe.evaluation, context.prior.conditions.count)
    built = recipe.method.build(context)
    recompute([phase.network for stage in built.stages for phase in stage.phases], recipe.training.recompute)
    fake = None if built.fake is None else built.fake.fake
    student = context.student.model
    target = next((found for found in find_resumable(built.stages).values() if isinstance(found, Backtracked)), None)
    monitor = _monitor(context, built, target)
    return Distillation(
        context.original,
        student,
        context.average,
        context.prior,
        context.sampling,
        data,
        context.space,
        built.stages,
        monitor,
        fake,
        built.path,
        target,
    )


def recompute(models: Iterable[nn.Module], on: bool) -> None:
    """Sets gradient checkpointing of all networks in the models."""
    for model in models:
        for module in model.modules():
            if isinstance(module, DenoisingNetwork):
                module.recompute = on


def check_parts(recipe: DistillRecipe, begun: bool = False) -> None:
    """Raises ``UserError`` for parts that do not go together, and unless ``begun`` for too few
    steps to reach the teacher; needs no data and no weights.
    """
    check(recipe.method, recipe.student.kind, recipe.target.kind, recipe.states.kind, _roles(recipe))
    check_switch(recipe.target, recipe.method.learns_fake)
    if not begun:
        check_reach(recipe.target, recipe.method.student_every, recipe.training.steps)


def build_context(
    recipe: DistillRecipe,
    folder: Path,
    data: Dataset | None,
    original: NetworkDenoiser,
    features: Features,
    device: torch.device,
) -> Context:
    """What the method's builder is given: ``original`` is the frozen teacher, ``data`` None for a
    recipe without data, ``features`` the space of perceptual distances; the run works on the device
    ``device``.
    """
    method, roles = recipe.method, _roles(recipe)
    if method.sampling.guidance is not None and not original.classes:
        raise UserError(
            "'method.guidance' needs a teacher with classes to be guided to; leave it out, or use another teacher."
        )
    space = space_of(recipe.teacher, original) if data is None else data.space
    threshold = recipe.reflected.threshold(max(abs(space.low), abs(space.high)))
    student, prior = build_student(recipe.student, method, original, threshold if "student" in roles else None)
    return Context(
        method=method,
        target=recipe.target,
        states=recipe.states,
        training=recipe.training,
        folder=folder,
        found=data,
        space=space,
        features=features,
        original=original,
        teacher=original if threshold is None or "teacher" not in roles else Reflected(original, threshold),
        student=student,
        prior=prior,
        sampling=method.sampling,
        average=Averaged(student.model, recipe.training.average),
        threshold=threshold,
        roles=frozenset(roles),
        device=device,
    )


def _roles(recipe: DistillRecipe) -> Sequence[config.Role]:
    """Whose estimates are thresholded."""
    return recipe.reflected.roles(_usual_roles(recipe.method, recipe.student.kind))


def _usual_roles(method: Method, student: str) -> Sequence[config.Role]:
    """Those that DDIL thresholds for the method; of a generator, whose output is no denoiser's, not
    the student's.
    """
    traits = method.effective_traits
    return [
        role
        for role in (traits.roles if traits.usual_roles is None else traits.usual_roles)
        if not (role == "student" and is_generator(student))
    ]


def _monitor(context: Context, built: Built, target: Backtracked | None) -> Monitor:
    rows = 256
    data, clip = context.found, context.method.optimizer.clip
    samples = _generated(context.student.model, context.prior, context.sampling)
    checks: list[Check] = []
    # A collection grows when it is drawn from, which a monitor must not make it do.
    if built.fake is not None and built.states is not None and not find_resumable(built.states):
        checks.append(FakeScoreLag(built.fake, built.states))
    # Against a fake score that is not learned the gap says nothing about convergence.
    if built.fake is not None:
        checks.append(
            Gap(advice="a lower rate helps" if built.path is not None else "a degradation path or a lower rate helps")
        )
    if data is not None:
        checks += [Mismatch(context.original, samples, data.subset(data.head(rows))), Spread(samples, data)]
        checks.append(Saturation(samples, data, advice=_against_saturation(context)))
    if clip is not None:
        checks.append(GradientNorm("student", clip))
    checks += reach_check(context.target, context.method.student_every, context.training.steps, target)
    return Monitor(checks, context.training.health_every, rows, warn_from=context.training.steps // 4)


def _against_saturation(context: Context) -> str:
    """What keeps a student within the data's range, of what this recipe has or may have."""
    turns = [] if context.sampling.guidance is None else ["a lower guidance scale"]
    if context.threshold is None and isinstance(context.student.model, Denoiser):
        turns.append("thresholding ('reflected')")
    return f"{' or '.join(turns)} helps" if turns else ""


def _generated(student: Denoiser | Generator, prior: Prior, sampling: Sampling) -> States:
    """The student's samples, made as it is meant to make them."""
    schedule = student.schedule if isinstance(student, Denoiser) else prior.schedule
    start: States = prior if sampling.guidance is None else WithGuidance(prior, sampling.guidance, sampling.guidance)
    return Generated(sampling.flow_map(student, schedule), start, tuple(sampling.times(schedule, prior.time).tolist()))
