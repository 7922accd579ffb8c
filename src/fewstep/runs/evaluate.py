"""Measures a run's teacher and student: what ``fewstep evaluate`` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.cost import metered
from fewstep.data import Dataset
from fewstep.denoisers import Denoiser
from fewstep.files import write_text
from fewstep.metrics.mismatch import assessed_mismatch, comparable_means, training_mismatch
from fewstep.metrics.quality import Evaluator
from fewstep.random import Place
from fewstep.recipes.parts import build_data, build_evaluator
from fewstep.runs.folder import RunFolder
from fewstep.runs.sampler import Sampler, StudentSampler, load, load_teacher
from fewstep.training import Silent, Watcher

MISMATCH_ROWS = 1000


def evaluate(
    run: Path | str,
    teacher_steps: Sequence[int] | None = None,
    student_steps: Sequence[int] | None = None,
    draws: int | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Frechet distance, class accuracy, network evaluations and milliseconds an image, by model and number of steps; also written to ``evaluation.json``.

    Steps and draws default to the recipe's. Teacher and student are measured on the same noise and classes.
    """
    folder = RunFolder(Path(run))
    recipe = folder.read_distill_recipe()
    choice = recipe.evaluation
    evaluator = build_evaluator(choice, build_data(recipe.data))
    draws = draws or choice.draws
    watcher = watcher or Silent()
    student, teacher = load(folder.path), load_teacher(folder.path)
    jobs: list[tuple[str, Sampler, int]] = [("teacher", teacher, steps) for steps in teacher_steps or choice.teacher_steps]
    jobs += [("student", student, steps) for steps in student_steps or choice.student_steps]
    result: dict[str, Any] = {"teacher": {}, "student": {}}
    result["reference"] = {"halves_fd": evaluator.halves(), "samples": evaluator.samples, "draws": draws}
    with watcher:
        watcher.stage("evaluate", len(jobs) * draws, 0)
        done = 0
        for name, sampler, steps in jobs:

            def report(name: str = name, steps: int = steps) -> None:
                nonlocal done
                done += 1
                watcher.step(done, f"{name} at {steps}")

            result[name][str(steps)] = _measure(evaluator, sampler, steps, draws, report)
    result["mismatch"] = _mismatch(teacher.denoiser, student, evaluator.data)
    write_text(folder.evaluation, json.dumps(result, indent=2) + "\n")
    return result


def _mismatch(teacher: Denoiser, student: StudentSampler, data: Dataset) -> dict[str, Any]:
    """Both readings of DisBack's Eq. 9 per noise level, from equally many samples (Fig. 11)."""
    rows = min(len(data), MISMATCH_ROWS)
    place = Place(0, "mismatch")
    order = place.permutation("subset", len(data))[:rows]
    subset = replace(data, samples=data.samples[order], labels=None if data.labels is None else data.labels[order])
    training = training_mismatch(teacher, subset, place)
    labels = subset.labels if student.prior.classes else None
    assessed = assessed_mismatch(teacher, student.draw(place, rows, labels, 1), labels, place)
    assessed_mean, training_mean = comparable_means(assessed, training)
    return {
        "levels": training.levels,
        "training": training.degrees,
        "assessed": assessed.degrees,
        "reliable": [a and b for a, b in zip(training.reliable, assessed.reliable, strict=True)],
        "training_mean": training_mean,
        "assessed_mean": assessed_mean,
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
        quality = evaluator.measure(sample, draws)
    images = draws * evaluator.samples
    entry: dict[str, Any] = {"fd": quality.fd, "fd_spread": quality.fd_spread}
    if quality.accuracy is not None:
        entry["accuracy"] = quality.accuracy
    return {**entry, "nfe": meter.evaluations / images, "ms_per_image": 1e3 * spent / images}
