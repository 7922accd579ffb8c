"""Teachers: those that ship with the package (each has a model card beside its weights, and a
recipe that made it), and readers of foreign weights, which run no code of a file's.
"""

from fewstep.zoo import consistency_models, diffusers_models, nvidia, pipelines
from fewstep.zoo.shipped import (
    SHIPPED_DENOISERS,
    SHIPPED_PIPELINES,
    digit_features,
    digits,
    mixture2d,
    scenes_reader,
    shipped_denoiser,
    shipped_pipeline,
)

__all__ = [
    "SHIPPED_DENOISERS",
    "SHIPPED_PIPELINES",
    "consistency_models",
    "diffusers_models",
    "digit_features",
    "digits",
    "mixture2d",
    "nvidia",
    "pipelines",
    "scenes_reader",
    "shipped_denoiser",
    "shipped_pipeline",
]
