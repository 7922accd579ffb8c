"""What is measured of pictures and the prompts that they were asked for by."""

from fewstep.metrics.prompted.accuracy import prompt_accuracy
from fewstep.metrics.prompted.diversity import PromptDiversity, prompt_diversity, protocol
from fewstep.metrics.prompted.figures import PromptedFigures, PromptedMeasures

__all__ = [
    "PromptDiversity",
    "PromptedFigures",
    "PromptedMeasures",
    "prompt_accuracy",
    "prompt_diversity",
    "protocol",
]
