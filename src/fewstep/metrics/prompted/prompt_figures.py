"""All that is measured of pictures and their prompts, by one call.

A figure that cannot be had is left out with its reason, and takes no other along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.features import Features, FeatureSpace, Readings
from fewstep.metrics.prompted.accuracy import prompt_accuracy
from fewstep.metrics.prompted.prompt_diversities import PromptDiversity, prompt_diversity


@dataclass(frozen=True)
class PromptedFigures:
    """``accuracy``: by kind, as ``prompt_accuracy`` has it, None where it cannot be had;
    ``diversity``: the same; ``left_out``: by the name of each figure that is None, why.
    """

    accuracy: Mapping[str, float] | None
    diversity: PromptDiversity | None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def beside(self, teacher: PromptedFigures | None = None) -> dict[str, Any]:
        """The figures as a result's file has them: ``prompt_accuracy`` by kind,
        ``prompt_diversity``, and ``prompt_diversity_ratio`` to the ``teacher``'s where that is
        given and not zero.
        """
        found: dict[str, Any] = {}
        if self.accuracy is not None:
            found["prompt_accuracy"] = dict(self.accuracy)
        if self.diversity is not None:
            found["prompt_diversity"] = self.diversity.mean
            if teacher is not None and teacher.diversity is not None and teacher.diversity.mean > 0:
                found["prompt_diversity_ratio"] = self.diversity.over(teacher.diversity)
        return found


@dataclass(frozen=True, eq=False)
class PromptedMeasures:
    """Called with pictures (N, *D) and the prompt of each; ``readings``: what tells a picture's
    attributes, None for a feature space that has no reader.

    Prompt accuracy is taken of all pictures, and diversity of those prompts that have two or more.
    """

    features: Features
    readings: Readings | None = None

    @classmethod
    def of(cls, space: FeatureSpace) -> PromptedMeasures:
        """In a feature space, by its own reader."""
        return cls(space.extract, space.readings)

    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> PromptedFigures:
        accuracy, unread = self.accuracy(pictures, prompts)
        diversity, alone = self.diversity(pictures, prompts)
        return PromptedFigures(accuracy, diversity, {**unread, **alone})

    def accuracy(self, pictures: Tensor, prompts: Sequence[str]) -> tuple[dict[str, float] | None, dict[str, str]]:
        """Prompt accuracy; where it cannot be had, None, and why by its name."""
        if self.readings is None:
            return None, {"prompt_accuracy": "the feature space has no reader"}
        try:
            return prompt_accuracy(self.readings, pictures, prompts), {}
        except UserError as error:
            return None, {"prompt_accuracy": str(error).removesuffix(".")}

    def diversity(self, pictures: Tensor, prompts: Sequence[str]) -> tuple[PromptDiversity | None, dict[str, str]]:
        """The same of diversity a prompt."""
        try:
            return prompt_diversity(self.features, pictures, prompts), {}
        except UserError as error:
            return None, {"prompt_diversity": str(error).removesuffix(".")}
