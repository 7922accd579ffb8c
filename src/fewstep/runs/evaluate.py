"""Measures a run's teacher and student: what ``fewstep evaluate`` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import distributed
from fewstep.cost import metered
from fewstep.data import Dataset
from fewstep.denoisers import Denoiser, device_of
from fewstep.metrics.mismatch import assessed_mismatch, comparable_means, comparable_norms, training_mismatch
from fewstep.metrics.quality import Evaluator
from fewstep.random import Place
from fewstep.recipes.parts import build_data, build_evaluator
from fewstep.runs.folder import RunFolder
from fewstep.runs.gallery import write_worst
from fewstep.runs.guidance import guided_samplers
from fewstep.runs.origins import measured_origins
from fewstep.runs.sampler import Sampler, StudentSampler, load, load_teacher
from fewstep.training import Silent, Watcher

MISMATCH_ROWS = 1000


@dataclass(frozen=True)
class _Job:
    """A model to be measured at a number of steps; ``into`` takes what is found."""

    name: str
    sampler: Sampler
    steps: int
    into: dict[str, Any]


def evaluate(
    run: Path | str,
    teacher_steps: Sequence[int] | None = None,
    student_steps: Sequence[int] | None = None,
    draws: int | None = None,
    watcher: Watcher | None = None,
    guidance: Sequence[float] = (),
) -> dict[str, Any]:
    """Quality, breadth, network evaluations and milliseconds an image, by model and number of steps; also written to ``evaluation.json``.

    The student's worst samples are shown in ``samples/worst.png``.

    Steps and draws default to the recipe's. Teacher and student are measured on the same noise and classes; breadth (recall, diversity and so on) on the first draw only. With ``guidance``
    scales, ``result["guidance"][str(scale)]`` has the same for the guided teacher at its most steps and, where it was conditioned on the scale, for the student at its usual steps.
    """
    folder = RunFolder(Path(run))
    recipe = folder.read_distill_recipe()
    choice = recipe.evaluation
    draws = draws or choice.draws
    student, teacher = load(folder.path), load_teacher(folder.path)
    evaluator = build_evaluator(choice, build_data(recipe.data), device_of(student.model))
    watcher = watcher or Silent()
    result: dict[str, Any] = {"teacher": {}, "student": {}, "origins": measured_origins(folder, recipe, evaluator.data, watcher.say)}
    teacher_steps = teacher_steps or choice.teacher_steps
    jobs = [_Job("teacher", teacher, steps, result["teacher"]) for steps in teacher_steps]
    jobs += [_Job("student", student, steps, result["student"]) for steps in student_steps or choice.student_steps]
    result["reference"] = {"halves_fd": evaluator.halves(), "samples": evaluator.samples, "draws": draws}
    if guidance:
        result["guidance"] = {}
        for scale, samplers in guided_samplers(folder.path, student, guidance).items():
            result["guidance"][scale] = {name: {} for name in samplers}
            for name, sampler in samplers.items():
                steps = max(teacher_steps) if name == "teacher" else student.usual_steps
                jobs.append(_Job(f"{name} guided by {scale}", sampler, steps, result["guidance"][scale][name]))
    _work_off(jobs, evaluator, draws, watcher)
    result["mismatch"] = _mismatch(teacher.denoiser, student, evaluator.data)
    result["worst"] = write_worst(folder, student, evaluator.data, evaluator.features, evaluator.seed, watcher.say)
    folder.write(folder.evaluation, json.dumps(result, indent=2) + "\n", watcher.say)
    return result


def _work_off(jobs: Sequence[_Job], evaluator: Evaluator, draws: int, watcher: Watcher) -> None:
    """Measures each job into its dictionary."""
    with watcher:
        watcher.stage("evaluate", len(jobs) * draws, 0)
        done = 0
        for job in jobs:

            def report(note: str = f"{job.name} at {job.steps}") -> None:
                nonlocal done
                done += 1
                watcher.step(done, note)

            job.into[str(job.steps)] = _measure(evaluator, job.sampler, job.steps, draws, report)


def _mismatch(teacher: Denoiser, student: StudentSampler, data: Dataset) -> dict[str, Any]:
    """Both readings of DisBack's Eq. 9 per noise level, from equally many samples (Fig. 11)."""
    rows = min(len(data), MISMATCH_ROWS)
    place = Place(0, "mismatch")
    order = place.permutation("subset", len(data))[:rows]
    subset = data.subset(order)
    training = training_mismatch(teacher, subset, place)
    labels = subset.labels if student.prior.classes else None
    assessed = assessed_mismatch(teacher, student.draw(place, rows, labels, student.usual_steps), labels, place)
    assessed_mean, training_mean = comparable_means(assessed, training)
    norms = dict(zip(("assessed_norm", "training_norm"), map(asdict, comparable_norms(assessed, training)), strict=True))
    return {
        "levels": training.levels,
        "training": training.degrees,
        "assessed": assessed.degrees,
        "reliable": [a and b for a, b in zip(training.reliable, assessed.reliable, strict=True)],
        "training_mean": training_mean,
        "assessed_mean": assessed_mean,
        # Eq. 9 as it is printed.
        **norms,
        "norms": {name: {"mean": each.norms, "deviation": each.deviations} for name, each in (("training", training), ("assessed", assessed))},
    }


def _measure(evaluator: Evaluator, sampler: Sampler, steps: int, draws: int, report: Callable[[], None]) -> dict[str, Any]:
    spent = 0.0

    def sample(place: Place, n: int, labels: Tensor | None) -> Tensor:
        nonlocal spent
        began = time.perf_counter()
        samples = sampler.draw(place, n, labels, steps).clamp(sampler.low, sampler.high)
        spent += time.perf_counter() - began
        report()
        return samples

    with metered() as meter:
        found = evaluator.describe(sample, draws)
    # Of all processes: each counts what it did itself.
    evaluations = float(distributed.total(torch.tensor([meter.evaluations]))[0])
    quality = found.quality
    images = draws * evaluator.samples
    entry: dict[str, Any] = {"fd": quality.fd, "fd_spread": quality.fd_spread}
    if quality.accuracy is not None:
        entry["accuracy"] = quality.accuracy
    return {**entry, **asdict(found.breadth), "nfe": evaluations / images, "ms_per_image": 1e3 * spent / images}
