"""Text-to-image models that diffusers saved, as teachers: denoiser, codec and text encoders; and
students of theirs as folders that diffusers samples.
"""

from fewstep.zoo.pipelines.encoders.text_encoder import TextEncoder
from fewstep.zoo.pipelines.exported_folder import ExportSource, PipelinePlace, export_pipeline
from fewstep.zoo.pipelines.pipeline import (
    OpenedPipeline,
    TextPipeline,
    from_pipeline,
    load_pipeline,
    open_pipeline,
    time_ids,
)

__all__ = [
    "ExportSource",
    "OpenedPipeline",
    "PipelinePlace",
    "TextEncoder",
    "TextPipeline",
    "export_pipeline",
    "from_pipeline",
    "load_pipeline",
    "open_pipeline",
    "time_ids",
]
