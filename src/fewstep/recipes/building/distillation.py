"""Builds a distillation: the parts that every method has, checked against one another, and the
method's stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fewstep.condition import Conditions
from fewstep.data import Dataset, SampleSpace
from fewstep.denoisers import Averaged, Denoiser, Generator, NetworkDenoiser, Reflected, device_of
from fewstep.errors import UserError
from fewstep.metrics.features import Features
from fewstep.networks import Codec, DenoisingNetwork
from fewstep.networks.adapters import AdaptedBase
from fewstep.networks.precision import shorten
from fewstep.recipes import config
from fewstep.recipes.building.device import building_device, resolve_device
from fewstep.recipes.building.frozen_teachers import Teacher, open_teacher
from fewstep.recipes.building.parts import check_guidance, check_kept_best, data_of, fitting_grid
from fewstep.recipes.building.placement import Places, place_roles
from fewstep.recipes.building.untrained_students import build_student
from fewstep.recipes.kit.backtracking import check_nodes, check_passes, check_reach, check_switch, reach_check
from fewstep.recipes.kit.context import Context, RoleDevices
from fewstep.recipes.legality import check, is_generator
from fewstep.recipes.methods import Built, Method
from fewstep.recipes.recipe import DistillRecipe
from fewstep.resumable import find_resumable
from fewstep.solvers.sampling import Sampling
from fewstep.states import Generated, Prior, States, WithGuidance
from fewstep.targets import Backtracked, DegradationPath, NoGuidance
from fewstep.training import Monitor, Stage
from fewstep.training.health.fake_score_health import FakeScoreLag, FakeScoreMoves, Gap
from fewstep.training.health.sample_levels import Contrast, MeanShift, OwnLevels
from fewstep.training.layout import is_sharded
from fewstep.training.monitors import Check, GradientNorm, Mismatch, Saturation, Spread
from fewstep.values import name_of


@dataclass(frozen=True, eq=False)
class Distillation:
    """The parts of a distillation run.

    ``fake``, ``path`` and the backtracked ``target`` where there are any; ``average`` follows the
    student and is the run's result. ``data``: as the recipe names it. ``space``: what the networks'
    samples look like; ``codec`` makes pictures of them where they are latents, which look like
    ``pictured``.
    """

    teacher: NetworkDenoiser
    student: Denoiser | Generator
    average: Averaged
    prior: Prior
    sampling: Sampling
    data: Dataset | None
    space: SampleSpace
    pictured: SampleSpace
    stages: list[Stage]
    monitor: Monitor
    fake: Denoiser | None
    path: DegradationPath | None
    target: Backtracked | None = None
    codec: Codec | None = None


def build_distillation(recipe: DistillRecipe, folder: Path, begun: bool = False) -> Distillation:
    """The run that the recipe asks for, on ``training.device`` (its networks on the CPU where they
    are yet to be sharded); files that it makes on the way (a path, pairs) go into ``folder``.
    ``begun``: whether it is a run that goes on, which is not refused for its steps and
    measurements.

    Raises ``UserError`` for parts that do not go together, and for a device that is not there.
    """
    check_parts(recipe, begun)
    data, device = data_of(recipe.data), resolve_device(recipe.training.device)
    places, building = place_roles(recipe, device), building_device(recipe.training, recipe.distributed, device)
    teacher = open_teacher(recipe, data, building, device if recipe.training.offload else building)
    space = recipe.evaluation.features.space(teacher.pictured, places.get("features", device))
    check_kept_best(recipe.training.keep_best, recipe.evaluation, data, teacher.conditions, space)
    if not begun:
        schedule, steps = teacher.denoiser.schedule, recipe.evaluation.teacher_steps
        fitting_grid(recipe.evaluation.solver, schedule, "evaluation.solver", steps)
        check_guidance(recipe.evaluation, teacher.conditions.count)
    context = build_context(recipe, folder, teacher, space.extract, device, places)
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
        teacher.pictured,
        built.stages,
        monitor,
        fake,
        built.path,
        target,
        teacher.codec,
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
    check(
        recipe.method,
        recipe.student.kind,
        recipe.target.kind,
        recipe.states.kind,
        _roles(recipe),
        name_of(recipe.target.guidance) if recipe.target.guidance.guides else name_of(NoGuidance()),
    )
    check_switch(recipe.target, recipe.method.learns_fake)
    check_nodes(recipe.target, recipe.method.adapts_fake)
    if recipe.method.in_one_batch:
        check_passes(recipe.target, recipe.method.adapts_fake, is_sharded(recipe.distributed.mode))
    if not begun:
        check_reach(recipe.target, recipe.method.student_every, recipe.training.steps)


def build_context(
    recipe: DistillRecipe,
    folder: Path,
    opened: Teacher,
    features: Features,
    device: torch.device,
    places: Places | None = None,
) -> Context:
    """What the method's builder is given: ``features`` is the space of perceptual distances; the
    run works on the device ``device``, and networks of some roles are at ``places``, None for none.
    """
    method, roles, original = recipe.method, _roles(recipe), opened.denoiser
    devices = RoleDevices(device_of(original), places or {})
    devices.placed("teacher", original)
    threshold = recipe.reflected.threshold(opened.bound)
    if recipe.training.frozen == "bf16":
        shorten(original.network)
    base = AdaptedBase(original.network)
    student, prior = build_student(
        recipe.student, method, original, base, opened.conditions, threshold if "student" in roles else None, devices
    )
    _check_guidable(recipe, opened.conditions)
    teacher = recipe.target.guidance.guided(original, opened.conditions, degraded=0.0)
    return Context(
        method=method,
        target=recipe.target,
        states=recipe.states,
        training=recipe.training,
        folder=folder,
        found=opened.data,
        space=opened.space,
        features=features,
        original=original,
        base=base,
        teacher=teacher if threshold is None or "teacher" not in roles else Reflected(teacher, threshold),
        student=student,
        prior=prior,
        sampling=method.sampling,
        average=Averaged(student.model, recipe.training.average),
        threshold=threshold,
        roles=frozenset(roles),
        device=device,
        devices=devices,
    )


def _check_guidable(recipe: DistillRecipe, conditions: Conditions) -> None:
    """Raises ``UserError`` for guidance of a teacher that knows no conditions, or was never without
    one.
    """
    asked = {
        "method.guidance": recipe.method.sampling.guidance is not None,
        "target.guidance": recipe.target.guidance.guides,
        **{f"method.{name}": True for name in recipe.method.guiding},
    }
    for key, guides in asked.items():
        if guides and not conditions.count:
            raise UserError(
                f"'{key}' needs a teacher with classes or prompts to be guided to, and this one was never told "
                "any; leave it out, or use another teacher."
            )
        if guides and recipe.teacher.always_told:
            raise UserError(
                f"'{key}' needs an estimate without a class, and the networks of 'teacher.kind: {recipe.teacher.kind}' "
                "were trained with the class of every sample; leave it out, or use another teacher."
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
        checks.append(FakeScoreMoves(built.fake.fake))
    if data is not None:
        # A field of the samples of one prompt, of which there is one, says nothing.
        if not context.conditions.texts:
            checks.append(Mismatch(context.original, samples, data.subset(data.head(rows))))
        checks.append(Spread(samples, data))
        checks.append(Saturation(samples, data, advice=_against_saturation(context)))
        checks += [MeanShift(samples, data), Contrast(samples, data, advice=_against_saturation(context))]
    else:
        checks.append(OwnLevels(samples))
    if clip is not None:
        checks.append(GradientNorm("student", clip))
    checks += reach_check(context.target, context.method.student_every, context.training.steps, target)
    return Monitor(checks, context.training.health_every, rows, warn_from=context.training.steps // 4)


def _against_saturation(context: Context) -> str:
    """What keeps a student within the data's range, of what this recipe has or may have."""
    guided = context.sampling.guidance is not None or context.target.guidance.guides
    turns = ["a lower guidance scale"] if guided else []
    if context.threshold is None and isinstance(context.student.model, Denoiser):
        turns.append("thresholding ('reflected')")
    return f"{' or '.join(turns)} helps" if turns else ""


def _generated(student: Denoiser | Generator, prior: Prior, sampling: Sampling) -> States:
    """The student's samples, made as it is meant to make them."""
    schedule = student.schedule if isinstance(student, Denoiser) else prior.schedule
    start: States = prior if sampling.guidance is None else WithGuidance(prior, sampling.guidance, sampling.guidance)
    return Generated(sampling.flow_map(student, schedule), start, tuple(sampling.times(schedule, prior.time).tolist()))
