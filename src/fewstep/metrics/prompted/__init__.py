"""What is measured of pictures and the prompts that they were asked for by."""

from fewstep.metrics.prompted.accuracy import prompt_accuracy, similarities
from fewstep.metrics.prompted.prompt_diversities import PromptDiversity, prompt_diversity, protocol, several_of_each
from fewstep.metrics.prompted.prompt_figures import PromptedFigures, PromptedMeasures
from fewstep.metrics.prompted.rises import caption_rises

__all__ = [
    "PromptDiversity",
    "PromptedFigures",
    "PromptedMeasures",
    "caption_rises",
    "prompt_accuracy",
    "prompt_diversity",
    "protocol",
    "several_of_each",
    "similarities",
]
