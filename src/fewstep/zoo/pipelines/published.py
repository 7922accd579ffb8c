"""Text-to-image models on the hub whose sizes are known by their ids, so that a plan needs neither
the hub nor the weights.
"""

from __future__ import annotations

from typing import NoReturn

from fewstep.errors import UserError
from fewstep.system.locations import is_hub_id
from fewstep.zoo.pipelines.pipeline import OpenedPipeline, PipelinePart
from fewstep.zoo.pipelines.pipeline_kinds import KINDS
from fewstep.zoo.pipelines.published_sizes import MODELS


def published(source: str) -> OpenedPipeline | None:
    """The sizes of a published model, whose weights are not read; None for a folder, and for a
    model that is not listed (``published_sizes``).
    """
    if source not in MODELS or not is_hub_id(source, "models"):
        return None
    model = MODELS[source]
    kind = KINDS[model.pipeline]
    configs = {kind.network: model.network, "vae": model.vae}
    parts = {part: PipelinePart(dict(config), _unread, source, part) for part, config in configs.items()}
    return OpenedPipeline(kind, parts, _unread, (dict(model.scheduler), source), kind.pooled)


def _unread() -> NoReturn:
    raise UserError("a published model's sizes are known, and its weights were not read.")
