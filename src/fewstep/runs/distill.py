"""Runs recipes: what ``fewstep distill`` and ``fewstep pretrain`` do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.condition import Classes
from fewstep.data import Dataset, SampleSpace
from fewstep.data.scenes.scene_latents import SceneLatents
from fewstep.denoisers import (
    Denoiser,
    Generator,
    NetworkDenoiser,
    adapter_of,
    merged,
    save_adapter,
    save_model,
)
from fewstep.errors import all_without_secrets
from fewstep.keeping.objects import Objects
from fewstep.keeping.origins import settle_origins
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.keeping.run_identity import run_of
from fewstep.keeping.settling import held_for_run, settle, write_recipe
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.frechet import FeatureStatistics
from fewstep.metrics.quality import Evaluator
from fewstep.networks.adapters import apart, bases_of
from fewstep.networks.kinds.network_files import load_strictly, save_network
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, PretrainRecipe, Recipe
from fewstep.recipes.building.device import resolve_device
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.building.parts import build_evaluator, build_settings, evaluator_in
from fewstep.recipes.building.placement import place_roles
from fewstep.recipes.building.pretrain import Pretraining, build_pretraining
from fewstep.recipes.building.untrained_students import remarks_of_starts
from fewstep.recipes.config import TEACHER_STEPS, LowRankStudent
from fewstep.recipes.reading.places import without_folders
from fewstep.runs.pictures.gallery import write_path_picture
from fewstep.runs.pictures.image_sets import announce
from fewstep.runs.pictures.plane import DATA, GENERATED, write_directions
from fewstep.runs.pictures.sample_files import captions_below, write_captions, write_samples
from fewstep.runs.probing.student_figures import best_measure, quality_figures, words_probe
from fewstep.runs.sampler import Sampler, StudentSampler, TeacherSampler, labels_for
from fewstep.runs.teacher_reference import teacher_moments
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior
from fewstep.system import distributed
from fewstep.system.launch import restarted
from fewstep.training import Listener, Monitor, Probe, Settings, Trainer
from fewstep.training.layout import is_sharded
from fewstep.training.listeners import Several
from fewstep.training.saving.best_student import BestStudent

WITHOUT_DATA = (
    "the recipe has no data: distances to it (Frechet, spread, mismatch degree) and saturation are not measured."
)
WITH_TEACHER_ALONE = (
    "the recipe has no data: Frechet distances are to the teacher's samples, and spread, mismatch degree and "
    "saturation are not measured."
)


def distill(
    source: str | Path,
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    *,
    teacher: Any = None,
    data: Dataset | None = None,
    features: FeatureSpace | None = None,
    prompts: Sequence[str] | None = None,
) -> Path:
    """Runs a distillation recipe (a shipped name or a YAML file) and returns its run folder.

    ``teacher`` (a ``NetworkDenoiser`` around a registered network, or a pipeline of diffusers'),
    ``data`` and ``features`` take the place of what the recipe names. The teacher is kept in the
    folder; data and features are to be given again where the run is resumed or measured in another
    process. ``prompts``: what the
    student of a text-to-image teacher is trained to draw, in the place of the recipe's.

    ``out`` defaults to ``runs/NAME``. With ``resume`` an existing run of the same recipe goes on;
    ``training.steps`` alone may be raised. ``listeners`` are told how it goes.
    """
    folder = _folder(source, out)
    with distributed.joined(), held_for_run(folder, _heard(listeners).say):
        heard = _heard(listeners)
        resume = resume or restarted()
        given = Objects(teacher, data, features, prompts)
        recipe = settle(folder, source, [*overrides, *given.overrides(folder)], resume, DistillRecipe)
        given.keep_teacher(folder)
        parts = distributed.in_step(lambda: build_distillation(recipe, folder.path, begun=folder.checkpoints.is_dir()))
        # What training shards cannot be copied any more.
        sharded = is_sharded(recipe.distributed.mode) and bool(bases_of(parts.student))
        whole = apart(parts.average.average) if sharded else None
        origins = settle_origins(folder, recipe, parts.data, resume)
        trainer = _trainer(folder, recipe, parts, replace(_settings(recipe), origins=origins), heard, whole)
        write_recipe(folder, recipe)
        announce(parts.data, heard, folder.passed_over)
        for remark in (*recipe.teacher.remarks(), *remarks_of_starts(recipe, parts.teacher.network)):
            heard.say(remark)
        if parts.data is None:
            heard.say(WITHOUT_DATA if recipe.evaluation.reference is None else WITH_TEACHER_ALONE)
        student = trainer.fit(resume)
        assert isinstance(student, (Denoiser, Generator))
        trainer.bring(student, parts.codec)
        if parts.target is not None and parts.target.short:
            heard.say(parts.target.short)
        _save(folder, recipe, student, parts, whole)
        if parts.path is not None and parts.path.last:
            conditions = parts.prior.conditions
            trainer.bring(parts.path.carrier, parts.codec)
            write_path_picture(folder.samples, parts.path, conditions, parts.codec, recipe.evaluation)
            trainer.bring(student, parts.codec)
        sampler = _sampler(recipe, parts, student)
        _write_picture(folder.samples / "final.png", sampler, parts, recipe.evaluation.pictures)
        _write_captions(folder.samples / "final.png", sampler, parts, recipe.evaluation.pictures)
        if parts.space.shape == (2,):
            trainer.bring(student, parts.teacher, parts.fake)
            _write_directions(folder, sampler, parts)
    return folder.path


def pretrain(
    source: str | Path,
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> Path:
    """Runs a pretraining recipe; its folder's ``model.safetensors`` is the averaged model."""
    folder = _folder(source, out)
    with distributed.joined(), held_for_run(folder, _heard(listeners).say):
        heard = _heard(listeners)
        resume = resume or restarted()
        recipe = settle(folder, source, overrides, resume, PretrainRecipe)
        parts = distributed.in_step(lambda: build_pretraining(recipe))
        announce(parts.data, heard, folder.passed_over)
        probes = []
        if isinstance(parts.data, SceneLatents):
            probes.append(words_probe(parts.data, lambda: trainer.average.average, recipe.evaluation.every))
        elif isinstance(parts.model, (NetworkDenoiser, Generator)):
            evaluator = build_evaluator(recipe.evaluation, parts.data, resolve_device(recipe.training.device))

            def measure(_step: int) -> Mapping[str, float]:
                sampler, steps = _pretrained_sampler(trainer.average.average, recipe, parts)
                return quality_figures(
                    evaluator, lambda key, n, labels: sampler.draw(key, n, labels, steps), parts.data.space, 1
                )

            probes.append(Probe("evaluation", recipe.evaluation.every, measure))
        origins = settle_origins(folder, recipe, parts.data, resume, {"data", "evaluation"} if probes else {"data"})
        trainer = Trainer(
            folder.path,
            parts.stages,
            parts.model,
            replace(_settings(recipe), origins=origins),
            recipe.training.average,
            probes,
            [heard],
        )
        write_recipe(folder, recipe)
        model = trainer.fit(resume)
        if isinstance(model, NetworkDenoiser):
            save_model(folder.model, model, {"range": [parts.data.low, parts.data.high]})
        elif parts.prior is not None:
            save_model(folder.model, model, _how_it_samples(parts.prior, parts.data.space, Sampling()))
        else:
            save_network(folder.model, model)
    return folder.path


def _folder(source: str | Path, out: Path | str | None) -> RunFolder:
    return RunFolder(Path(out) if out is not None else Path("runs") / Path(str(source)).stem)


def _heard(listeners: Sequence[Listener]) -> Listener:
    """Of several processes one talks."""
    return Several(listeners if distributed.first() else ())


def _trainer(
    folder: RunFolder,
    recipe: DistillRecipe,
    parts: Distillation,
    settings: Settings,
    heard: Listener,
    whole: nn.Module | None,
) -> Trainer:
    device = resolve_device(recipe.training.device)
    space = recipe.evaluation.features.space(parts.pictured, place_roles(recipe, device).get("features", device))
    evaluator = evaluator_in(space, recipe.evaluation, parts.data, parts.prior.conditions.count)
    evaluator = replace(evaluator, conditional=bool(parts.prior.conditions.count))
    if recipe.evaluation.reference is not None:
        evaluator = replace(evaluator, reference=_reference(recipe, parts, space, heard))

    def sampler() -> StudentSampler:
        student = parts.average.average
        assert isinstance(student, (Denoiser, Generator))
        return _sampler(recipe, parts, student)

    def measure(_step: int) -> Mapping[str, float]:
        return quality_figures(
            evaluator,
            lambda key, n, labels: sampler().pictured.draw(key, n, labels, parts.sampling.steps),
            parts.pictured,
            1,
        )

    def picture(step: int) -> Mapping[str, Any]:
        name = f"step-{step:08d}.png"
        _write_picture(folder.samples / name, sampler(), parts, recipe.evaluation.pictures)
        heard.picture(step, folder.samples / name)
        return {"file": f"samples/{name}"}

    pictured = [module for module in (parts.average, parts.codec) if module is not None]
    # Moments of the teacher's samples that are not kept yet are made by the first measurement.
    compared = [] if recipe.evaluation.reference is None else [parts.teacher]
    every, figures = recipe.evaluation.every, {"fd", "accuracy"} - set(evaluator.lacking())
    probes: list[Probe | Monitor] = [
        *([Probe("evaluation", every, measure, [*pictured, *compared])] if figures else []),
        Probe("samples", every, picture, pictured),
        parts.monitor,
    ]
    best = _best(folder, recipe, parts, evaluator, lambda: sampler().pictured, whole)
    return Trainer(folder.path, parts.stages, parts.average, settings, probes=probes, listeners=[heard], best=best)


def _best(
    folder: RunFolder,
    recipe: DistillRecipe,
    parts: Distillation,
    evaluator: Evaluator,
    sampler: Callable[[], Sampler],
    whole: nn.Module | None,
) -> BestStudent | None:
    """What keeps the best student, as ``sampler`` gives it; None where the recipe asks for none.
    ``whole`` as in ``_save``.
    """
    choice = recipe.training.keep_best
    if choice is None:
        return None

    def write(student: nn.Module, said: Mapping[str, Any]) -> None:
        assert isinstance(student, (Denoiser, Generator))
        _save(folder, recipe, student, parts, whole, "best", said)

    compared = [] if recipe.evaluation.reference is None else [parts.teacher]
    uses = [*([] if parts.codec is None else [parts.codec]), *compared]
    measure = best_measure(choice.measure, evaluator, sampler, parts.sampling.steps)
    return BestStudent(parts.average, measure, write, recipe.evaluation.every, choice.patience, uses)


def _reference(
    recipe: DistillRecipe, parts: Distillation, space: FeatureSpace, heard: Listener
) -> Callable[[], FeatureStatistics]:
    """The moments of the teacher's samples, computed when the student is first measured."""
    solver, conditions = recipe.evaluation.solver, parts.prior.conditions
    teacher = TeacherSampler(
        parts.space.low,
        parts.space.high,
        parts.teacher,
        solver.rule,
        solver.grid,
        conditions,
        solver.churn,
        parts.codec,
        recipe.evaluation.batch,
    )
    return lambda: teacher_moments(recipe, teacher, space, parts.data, heard.say).get()


def _settings(recipe: Recipe) -> Settings:
    return replace(
        build_settings(recipe.training, recipe.distributed),
        run=run_of(recipe),
        device=resolve_device(recipe.training.device),
    )


def _sampler(recipe: DistillRecipe, parts: Distillation, student: Denoiser | Generator) -> StudentSampler:
    """A student of the run."""
    space, batch = parts.space, recipe.evaluation.batch
    return StudentSampler(space.low, space.high, student, parts.prior, parts.sampling, parts.codec, batch)


def _write_picture(path: Path, sampler: StudentSampler, parts: Distillation, pictures: int) -> None:
    """Samples on noise that is the same for every picture of every run; points over the data's."""
    plane = parts.space.shape == (2,)
    rows = 2000 if plane else pictures
    labels = labels_for(rows, None, sampler.classes)
    samples = sampler.pictured.draw(Key(0, "picture"), rows, labels, parts.sampling.steps)
    data = parts.data.take(parts.data.head(rows)) if plane and parts.data is not None else None
    write_samples(path, samples, parts.pictured.low, parts.pictured.high, data=data)


def _write_captions(path: Path, sampler: StudentSampler, parts: Distillation, pictures: int) -> None:
    """What the images of ``_write_picture`` were asked for by."""
    if len(parts.space.shape) == 3:
        names = () if parts.data is None else parts.data.names
        write_captions(path, captions_below(sampler.owner, labels_for(pictures, None, sampler.classes), names))


def _write_directions(folder: RunFolder, sampler: StudentSampler, parts: Distillation) -> None:
    samples = sampler.draw(Key(0, "picture"), 1000, labels_for(1000, None, sampler.classes), parts.sampling.steps)
    panels: list[tuple[str, Denoiser, Tensor, str]] = []
    if parts.data is not None:
        panels.append(("teacher's score, training data", parts.teacher, parts.data.take(parts.data.head(1000)), DATA))
    else:
        panels.append(("teacher's score, student's samples", parts.teacher, samples, GENERATED))
    if parts.fake is not None:
        panels.append(("fake score, student's samples", parts.fake, samples, GENERATED))
    write_directions(folder.samples / "directions.png", panels)


def _save(
    folder: RunFolder,
    recipe: DistillRecipe,
    student: Denoiser | Generator,
    parts: Distillation,
    whole: nn.Module | None,
    which: Which = "last",
    said: Mapping[str, Any] | None = None,
) -> None:
    """The student with how it is sampled, and what is ``said`` of it; of an adapted one also the
    adapter alone, for another teacher of the same shape. ``whole``: a copy of one that is sharded,
    from before it was.
    """
    extra = {**_how_it_samples(parts.prior, parts.space, parts.sampling), **(said or {})}
    if isinstance(recipe.student, LowRankStudent):
        if whole is not None:
            assert isinstance(whole, Denoiser)
            values = {name: distributed.whole(value) for name, value in student.state_dict().items()}
            load_strictly(whole, values, "the student")
            student = whole
        save_adapter(
            folder.adapter_of(which),
            adapter_of(student),
            {"teacher": all_without_secrets(without_folders(recipe.teacher).model_dump(mode="json")), **extra},
        )
        student = merged(student)
    save_model(folder.student_of(which), student, extra)


def _how_it_samples(prior: Prior, space: SampleSpace, sampling: Sampling) -> dict[str, Any]:
    """What a few-step model's file says besides the model; ``runs.load`` reads it."""
    return {
        "prior": {"time": prior.time, "scale": prior.std},
        "range": [space.low, space.high] if math.isfinite(space.low) else None,
        "sampling": sampling.holding(prior.schedule, prior.time).describe(),
    }


def _pretrained_sampler(model: nn.Module, recipe: PretrainRecipe, parts: Pretraining) -> tuple[Sampler, int]:
    """What makes samples of a denoiser or a generator that is being trained, and in how many
    steps.
    """
    low, high, solver = parts.data.low, parts.data.high, recipe.evaluation.solver
    if isinstance(model, Generator):
        assert parts.prior is not None
        return StudentSampler(low, high, model, parts.prior), 1
    assert isinstance(model, NetworkDenoiser)
    grid, steps = solver.grid, (recipe.evaluation.teacher_steps or [TEACHER_STEPS])[0]
    sampler = TeacherSampler(low, high, model, solver.rule, grid, Classes(model.classes), solver.churn)
    return sampler.guided(recipe.evaluation.guidance), steps
