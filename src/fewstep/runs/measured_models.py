"""Measures models at numbers of steps, one after another: quality, breadth, evaluations, time, and
what they make of prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.cost import metered
from fewstep.metrics.diversity import class_diversity
from fewstep.metrics.frechet import features_of
from fewstep.metrics.prompted import PromptedFigures, PromptedMeasures, protocol, several_of_each
from fewstep.metrics.quality import Evaluator
from fewstep.random import Key
from fewstep.runs.sampler import Sampler
from fewstep.system import distributed
from fewstep.training import Listener


@dataclass
class MeasuredModel:
    """A model to be measured at a number of steps; ``into`` takes what is found, ``left_out`` the
    reasons of what could not be, ``prompted`` what is found of prompts, where there are prompts,
    ``within`` the distance within a class where there are none.
    """

    name: str
    sampler: Sampler
    steps: int
    into: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)
    prompted: PromptedFigures | None = None
    within: float = 0.0


def work_off(jobs: Sequence[MeasuredModel], evaluator: Evaluator, draws: int, listener: Listener) -> None:
    """Measures each job into its dictionary."""
    with listener:
        listener.stage("evaluate", len(jobs) * draws, 0)
        done = 0
        for job in jobs:

            def report(note: str = f"{job.name} at {job.steps}") -> None:
                nonlocal done
                done += 1
                listener.step(done, note)

            _measure(evaluator, job, draws, report)
    # Diversity is beside that of the teacher at its most steps.
    teachers = sorted((job for job in jobs if job.name == "teacher"), key=lambda job: job.steps)
    for job in jobs:
        if job.prompted is not None:
            job.into[str(job.steps)] |= job.prompted.beside(teachers[-1].prompted if teachers else None)
            job.left_out.update(job.prompted.left_out)
        else:
            job.into[str(job.steps)] |= _beside(job.within, teachers[-1].within if teachers else 0.0)


def _measure(evaluator: Evaluator, job: MeasuredModel, draws: int, report: Callable[[], None]) -> None:
    spent, sampler = 0.0, job.sampler
    first: list[tuple[Tensor, Tensor | None]] = []

    def sample(key: Key, n: int, labels: Tensor | None) -> Tensor:
        nonlocal spent
        began = time.perf_counter()
        samples = sampler.draw(key, n, labels, job.steps).clamp(sampler.low, sampler.high)
        spent += time.perf_counter() - began
        report()
        if not first:
            first.append((samples, labels))
        return samples

    with metered() as meter:
        found = replace(evaluator, conditional=bool(sampler.classes)).describe(sample, draws)
    # Of all processes: each counts what it did itself.
    evaluations = float(distributed.total(torch.tensor([meter.evaluations]))[0])
    images = draws * evaluator.samples
    figures = {
        **asdict(found.quality),
        **asdict(found.breadth),
        "nfe": evaluations / images,
        "ms_per_image": 1e3 * spent / images,
    }
    job.into[str(job.steps)] = {name: value for name, value in figures.items() if value is not None}
    job.left_out.update(found.left_out)
    job.prompted = measured_prompts(evaluator, sampler, job.steps, *first[0])
    if job.prompted is None:
        job.within = _within_classes(evaluator, sampler, job.steps)


def _beside(own: float, teacher: float) -> dict[str, float]:
    """The mean distance within a class, and its share of the teacher's where that is not zero."""
    return {"class_diversity": own, **({"class_diversity_ratio": own / teacher} if teacher > 0 else {})}


def _within_classes(evaluator: Evaluator, sampler: Sampler, steps: int) -> float:
    """The mean distance between ten samples of a class, over at most fifty classes; between as many
    samples in all where there are no classes. Their noise is the same for all models.
    """
    rows, numbers = several_of_each(sampler.classes)
    samples = sampler.draw(Key(evaluator.seed, "class-diversity"), rows, numbers, steps)
    return class_diversity(features_of(samples.clamp(sampler.low, sampler.high), evaluator.features), numbers)


def measured_prompts(
    evaluator: Evaluator, sampler: Sampler, steps: int, pictures: Tensor, numbers: Tensor | None
) -> PromptedFigures | None:
    """The prompt accuracy of ``pictures``, which the sampler made of the conditions ``numbers``,
    and the diversity a prompt of ten further ones of each of fifty prompts.

    Their noise is the same for all models of one evaluation. None where conditions are no prompts.
    """
    texts = sampler.owner.texts
    if not texts or numbers is None:
        return None
    measures, asked = PromptedMeasures(evaluator.features, evaluator.readings), protocol(len(texts))
    several = sampler.draw(Key(evaluator.seed, "prompt-diversity"), len(asked), asked, steps)
    several = several.clamp(sampler.low, sampler.high)
    accuracy, found = measures.accuracy(pictures, [texts[number] for number in numbers.tolist()])
    diversity, others = measures.diversity(several, [texts[number] for number in asked.tolist()])
    return PromptedFigures(accuracy, diversity, {**found, **others})
