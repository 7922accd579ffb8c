"""The figures of a model while it trains: quick ones at each cadence, and by what a student is the
best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.data import SampleSpace
from fewstep.data.prompts.conditions import PromptConditions
from fewstep.data.scenes.scene_latents import SceneLatents
from fewstep.denoisers import Denoiser, device_of
from fewstep.metrics.diversity import class_diversity
from fewstep.metrics.frechet import features_of
from fewstep.metrics.prompted import caption_rises, prompt_accuracy, several_of_each
from fewstep.metrics.quality import Evaluator
from fewstep.random import Key
from fewstep.runs.sampler import Sampler
from fewstep.training import Probe
from fewstep.training.saving.best_student import Draw, StudentMeasure

WORDS_ROWS = 128
_DRAWS: dict[Draw, int] = {"proposes": 0, "decides": 1, "tells": 2}


def quality_figures(
    evaluator: Evaluator, draw: Callable[[Key, int, Tensor | None], Tensor], space: SampleSpace, draws: int
) -> dict[str, float]:
    """Frechet distance and class accuracy over so many draws, as far as they can be had."""
    quality = evaluator.measure(lambda key, n, labels: draw(key, n, labels).clamp(space.low, space.high), draws)
    return {name: value for name, value in (("fd", quality.fd), ("accuracy", quality.accuracy)) if value is not None}


def words_probe(data: SceneLatents, model: Callable[[], Any], every: int) -> Probe:
    """Measures which words of captions a denoiser has learnt, on scenes of the data."""
    index = data.head(WORDS_ROWS)

    def measure(_step: int) -> Mapping[str, float]:
        denoiser = model()
        assert isinstance(denoiser, Denoiser)

        def conditions(texts: Sequence[str]) -> Conditions:
            return PromptConditions(data.embedded(texts))

        x0 = data.take(index).to(device_of(denoiser))
        return caption_rises(denoiser, x0, data.scenes.words(index), conditions, Key(0, "words"))

    return Probe("words", every, measure)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Where figures of a student come from: samples (N, *D) of ``sampler`` in ``steps`` steps, on
    noise of their own for each draw, measured as ``evaluator`` measures.
    """

    evaluator: Evaluator
    sampler: Sampler
    steps: int
    draw: Draw

    def samples(self, rows: int, numbers: Tensor | None) -> Tensor:
        """Samples of the conditions of these numbers (rows,)."""
        key = Key(self.evaluator.seed, "best-student", _DRAWS[self.draw])
        drawn = self.sampler.draw(key, rows, numbers, self.steps)
        return drawn.clamp(self.sampler.low, self.sampler.high)


def _distance(drawn: Drawn) -> float:
    evaluator = drawn.evaluator
    return evaluator.distance(drawn.samples(evaluator.samples, evaluator.labels))


@torch.no_grad()
def _prompt_accuracy(drawn: Drawn) -> float:
    evaluator, texts = drawn.evaluator, drawn.sampler.owner.texts
    assert evaluator.readings is not None
    assert evaluator.labels is not None
    samples = drawn.samples(evaluator.samples, evaluator.labels)
    return prompt_accuracy(evaluator.readings, samples, [texts[number] for number in evaluator.labels.tolist()])["all"]


def _diversity(drawn: Drawn) -> float:
    rows, numbers = several_of_each(drawn.sampler.classes)
    return class_diversity(features_of(drawn.samples(rows, numbers), drawn.evaluator.features), numbers)


_BEST: Mapping[str, tuple[str, bool, Callable[[Drawn], float]]] = {
    "fd": ("Frechet distance", True, _distance),
    "prompt-accuracy": ("prompt accuracy", False, _prompt_accuracy),
    "diversity": ("mean distance within a condition", False, _diversity),
}
"""By the name in ``training.keep_best.measure``: what it is called, whether less is better, and how
it is taken.
"""


def best_measure(name: str, evaluator: Evaluator, sampler: Callable[[], Sampler], steps: int) -> StudentMeasure:
    """The measure of that name, of the student that ``sampler`` gives when it is measured."""
    words, least, taken = _BEST[name]
    return StudentMeasure(name, words, least, lambda draw: taken(Drawn(evaluator, sampler(), steps, draw)))
