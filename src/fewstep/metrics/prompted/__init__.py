"""What is measured of pictures and the prompts that they were asked for by."""

from fewstep.metrics.prompted.accuracy import prompt_accuracy
from fewstep.metrics.prompted.rises import caption_rises

__all__ = ["caption_rises", "prompt_accuracy"]
