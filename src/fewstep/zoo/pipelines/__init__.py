"""Text-to-image models that diffusers saved, as teachers: denoiser, codec and text encoders."""

from fewstep.zoo.pipelines.pipeline import (
    OpenedPipeline,
    TextPipeline,
    from_pipeline,
    load_pipeline,
    open_pipeline,
    time_ids,
)
from fewstep.zoo.pipelines.text_encoder import TextEncoder

__all__ = [
    "OpenedPipeline",
    "TextEncoder",
    "TextPipeline",
    "from_pipeline",
    "load_pipeline",
    "open_pipeline",
    "time_ids",
]
