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
_BEST = {
    "fd": ("Frechet distance", True),
    "prompt-accuracy": ("prompt accuracy", False),
    "diversity": ("mean distance within a condition", False),
}


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
class BestFigure:
    """A figure of the student that ``sampler`` gives, in ``steps`` steps, on noise of its own for
    each draw; ``name`` as in ``training.keep_best.measure``.
    """

    name: str
    evaluator: Evaluator
    sampler: Callable[[], Sampler]
    steps: int

    @property
    def measure(self) -> StudentMeasure:
        """The figure by its name, with its words."""
        words, least = _BEST[self.name]
        return StudentMeasure(self.name, words, least, self)

    def __call__(self, draw: Draw) -> float:
        sampler, evaluator = self.sampler(), self.evaluator
        key = Key(evaluator.seed, "best-student", _DRAWS[draw])
        rows, numbers = several_of_each(sampler.classes)
        if self.name != "diversity":
            rows, numbers = evaluator.samples, evaluator.labels
        samples = sampler.draw(key, rows, numbers, self.steps).clamp(sampler.low, sampler.high)
        if self.name == "fd":
            return evaluator.distance(samples)
        if self.name == "diversity":
            return class_diversity(features_of(samples, evaluator.features), numbers)
        texts = sampler.owner.texts
        assert texts
        assert numbers is not None
        return self._accuracy(samples, [texts[number] for number in numbers.tolist()])

    @torch.no_grad()
    def _accuracy(self, samples: Tensor, prompts: Sequence[str]) -> float:
        assert self.evaluator.readings is not None
        return prompt_accuracy(self.evaluator.readings, samples, prompts)["all"]
