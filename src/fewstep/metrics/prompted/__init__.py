"""What is measured of pictures and the prompts that they were asked for by."""

from fewstep.metrics.prompted.accuracy import prompt_accuracy

__all__ = ["prompt_accuracy"]
