"""A sampler measured on its prompts: what ``evaluate`` says of text to image."""

from __future__ import annotations

from torch import Tensor

from fewstep.metrics.prompted import PromptedFigures, PromptedMeasures, protocol
from fewstep.metrics.quality import Evaluator
from fewstep.random import Key
from fewstep.runs.sampler import Sampler


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
