"""Measures a run's teacher and student: what ``fewstep evaluate`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep.data import Dataset
from fewstep.denoisers import Denoiser, device_of
from fewstep.errors import UserError
from fewstep.keeping.origins import measured_origins
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.mismatch import assessed_mismatch, comparable_means, comparable_norms, training_mismatch
from fewstep.metrics.step_counts import STEPS, worse_with_more
from fewstep.random import Key
from fewstep.recipes import config
from fewstep.recipes.building.parts import data_of, evaluator_in
from fewstep.recipes.given import give
from fewstep.runs.loading import guided_samplers, load_beside, teacher_of
from fewstep.runs.measured_models import MeasuredModel, work_off
from fewstep.runs.pictures.gallery import write_worst
from fewstep.runs.pictures.image_sets import announce, said_of
from fewstep.runs.sampler import Sampler, StudentSampler
from fewstep.runs.teacher_reference import teacher_moments
from fewstep.training import Listener
from fewstep.training.listeners import Several

MISMATCH_ROWS = 1000


def evaluate(
    run: Path | str,
    teacher_steps: Sequence[int] | None = None,
    student_steps: Sequence[int] | None = None,
    draws: int | None = None,
    listeners: Sequence[Listener] = (),
    guidance: Sequence[float] = (),
    samples: int | None = None,
    *,
    data: Dataset | None = None,
    features: FeatureSpace | None = None,
    which: Which = "last",
) -> dict[str, Any]:
    """Quality, breadth, network evaluations and milliseconds an image, by model and number of
    steps; also written to ``evaluation.json``. ``which``: the last student, or the best that the
    run kept; that one's figures are in ``evaluation.best.json``, with ``result["best"]`` of it. The
    noise is not that by which the best was chosen.

    ``data`` and ``features``: of a run that was given them as objects, where this process was not.
    Steps, draws and ``samples`` a draw default to the recipe's; they have its bounds. A student of
    several steps is measured in 1, 2, 4 and 8 besides, unless steps are given, and
    ``result["worse_with_more_steps"]`` says where more of them are worse. A figure that
    cannot be had is left out, with its reason in ``result["left_out"]``. The student's worst
    samples are shown in ``samples/worst.png``.

    Teacher and student are measured on the same noise and classes; breadth (recall, diversity and
    so on) on the first draw only. With ``guidance`` scales, ``result["guidance"][str(scale)]`` has
    the same for the guided teacher at its most steps and, where it was conditioned on the scale,
    for the student at its usual steps.
    """
    folder = RunFolder(Path(run))
    give(data, features)
    recipe = folder.read_distill_recipe()
    choice = chosen(
        recipe.evaluation, samples=samples, draws=draws, teacher_steps=teacher_steps, student_steps=student_steps
    )
    data = data_of(recipe.data)
    plain = teacher_of(recipe, data)
    student = load_beside(folder.path, plain, which=which)
    teacher = plain.guided(recipe.evaluation.guidance)
    look = student.pictured.space if data is None else data.space
    space = choice.features.space(look, device_of(student.model))
    evaluator = evaluator_in(space, choice, data, student.classes)
    listener = Several(listeners)
    announce(data, listener)
    origins = measured_origins(folder, recipe, data, listener.say)
    result: dict[str, Any] = {"teacher": {}, "student": {}, "origins": origins, "reference": {}}
    steps_of_student, unfit = (
        (choice.student_steps, {}) if student_steps else _steps_measured(student, choice.student_steps)
    )
    if which == "best":
        result["best"] = folder.read_best()
    if teacher is not plain:
        result["teacher_guidance"] = recipe.evaluation.guidance
    jobs = [MeasuredModel("teacher", teacher.pictured, steps, result["teacher"]) for steps in choice.teacher_steps]
    jobs += [MeasuredModel("student", student.pictured, steps, result["student"]) for steps in steps_of_student]
    if recipe.evaluation.reference is not None:
        moments = teacher_moments(recipe, plain, space, data, listener.say)
        # Before anything is measured, whose evaluations and time these are not.
        found = moments.get(listener)
        evaluator = replace(evaluator, reference=lambda: found)
        result["reference"]["teacher"] = moments.described
    no_halves = evaluator.why_no_halves()
    result["reference"] |= {} if no_halves else {"halves_fd": evaluator.halves()}
    result["reference"] |= {"samples": evaluator.samples, "draws": choice.draws}
    result["left_out"] = {**({"halves_fd": no_halves} if no_halves else {}), **unfit}
    if guidance:
        most = max(choice.teacher_steps, default=teacher.usual_steps)
        steps, result["guidance"] = {"teacher": most, "student": student.usual_steps}, {}
        jobs += _guided_jobs(guided_samplers(plain, student, guidance), steps, result["guidance"])
    work_off(jobs, evaluator, choice.draws, listener)
    result.update(_worse_with_more(result["student"], choice.draws))
    result.update(said_of(evaluator.data))
    for job in jobs:
        result["left_out"] |= job.left_out
    if evaluator.data is None:
        result["left_out"] |= dict.fromkeys(("mismatch", "worst"), "there is no data to compare with")
    else:
        if student.codec is None:
            result["mismatch"] = _mismatch(plain.denoiser, student, evaluator.data)
        else:
            result["left_out"]["mismatch"] = "the teacher works in latents, and the data are pictures"
        result["worst"] = write_worst(
            folder, student, evaluator.data, evaluator.features, evaluator.seed, listener.say, which
        )
    folder.write(folder.evaluation_of(which), json.dumps(result, indent=2) + "\n", listener.say)
    return result


def _worse_with_more(by_steps: Mapping[str, Mapping[str, Any]], draws: int) -> dict[str, Any]:
    """Where a student's distances rise with its steps, for a result; nothing where they do not."""
    distances = {int(steps): (entry["fd"], entry["fd_spread"]) for steps, entry in by_steps.items() if "fd" in entry}
    worse = worse_with_more(distances, draws)
    return {"worse_with_more_steps": [{**asdict(each), "sentence": each.sentence} for each in worse]} if worse else {}


def _steps_measured(student: StudentSampler, asked: Sequence[int]) -> tuple[list[int], dict[str, str]]:
    """The numbers of steps at which a student is measured: those that the recipe asks for, and of a
    student of several steps also 1, 2, 4 and 8; why any of these is left out, by its name.
    """
    if student.usual_steps == 1 and max(asked, default=1) == 1:
        return list(asked), {}
    found, unfit = list(asked), {}
    for steps in STEPS:
        if steps in asked:
            continue
        try:
            student.sampling.times(student.schedule, student.prior.time, steps)
            found.append(steps)
        except UserError as error:
            unfit[f"student at {steps} steps"] = str(error).removesuffix(".")
    return sorted(set(found)), unfit


def _guided_jobs(
    samplers: Mapping[str, Mapping[str, Sampler]], steps: Mapping[str, int], into: dict[str, dict[str, dict[str, Any]]]
) -> list[MeasuredModel]:
    """A job for each of the ``samplers`` by scale and name, at the ``steps`` of its name."""
    jobs = []
    for scale, named in samplers.items():
        into[scale] = {name: {} for name in named}
        jobs += [
            MeasuredModel(f"{name} guided by {scale}", sampler.pictured, steps[name], into[scale][name])
            for name, sampler in named.items()
        ]
    return jobs


def _mismatch(teacher: Denoiser, student: StudentSampler, data: Dataset) -> dict[str, Any]:
    """Both readings of DisBack's Eq. 9 per noise level, from equally many samples (Fig. 11)."""
    rows = min(len(data), MISMATCH_ROWS)
    key = Key(0, "mismatch")
    order = key.permutation("subset", len(data))[:rows]
    subset = data.subset(order)
    training = training_mismatch(teacher, subset, key)
    labels = subset.labels if student.prior.conditions.count else None
    assessed = assessed_mismatch(teacher, student.draw(key, rows, labels, student.usual_steps), labels, key)
    assessed_mean, training_mean = comparable_means(assessed, training)
    norms = dict(
        zip(("assessed_norm", "training_norm"), map(asdict, comparable_norms(assessed, training)), strict=True)
    )
    return {
        "levels": training.levels,
        "training": training.degrees,
        "assessed": assessed.degrees,
        "reliable": [a and b for a, b in zip(training.reliable, assessed.reliable, strict=True)],
        "training_mean": training_mean,
        "assessed_mean": assessed_mean,
        # Eq. 9 as it is printed.
        **norms,
        "norms": {
            name: {"mean": each.norms, "deviation": each.deviations}
            for name, each in (("training", training), ("assessed", assessed))
        },
    }


def chosen(choice: config.Evaluation, **given: Any) -> config.Evaluation:
    """The recipe's evaluation with what was given instead, within the bounds of its keys; raises
    ``UserError`` for what is outside them.
    """
    # What a command was not given: an option that may be repeated is then an empty list.
    values = {
        name: list(value) if isinstance(value, Sequence) else value
        for name, value in given.items()
        if value is not None and value != []
    }
    try:
        return config.Evaluation.of({**choice.model_dump(mode="json"), **values})
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            f"'{problem['loc'][0]}' is {problem['input']}: {problem['msg'][:1].lower()}{problem['msg'][1:]}."
        ) from error
